// Independent items of work over the pool's threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>

#include "pool.h"

namespace cierzo {

// Calls body(item) for every item, on whichever thread is free; items are taken in runs, for the memory's sake.
template <class F>
void spread(size_t items, F body) {
    if (items <= 1) {  // waking the others would take longer
        if (items) body(0);
        return;
    }
    const std::shared_ptr<Pool> pool = Pool::get();
    const size_t run = std::max<size_t>(1, items / (size_t(pool->size()) * 8));
    std::atomic<size_t> next{0};
    pool->run([&] {
        for (size_t first; (first = next.fetch_add(run)) < items;)
            for (size_t item = first; item < std::min(first + run, items); ++item) body(item);
    });
}

}  // namespace cierzo
