// Independent items of work over the pool's threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>

#include "pool.h"

namespace cierzo {

// Calls body(item) for every item, on whichever thread is free; items are taken in runs, for the memory's sake.
template <class F>
void spread(Pool& pool, size_t items, F body) {
    const size_t run = std::max<size_t>(1, items / (size_t(pool.size()) * 8));
    std::atomic<size_t> next{0};
    pool.run([&](int) {
        for (size_t first; (first = next.fetch_add(run)) < items;)
            for (size_t item = first; item < std::min(first + run, items); ++item) body(item);
    });
}

}  // namespace cierzo
