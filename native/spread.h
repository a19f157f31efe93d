// Independent items of work over the pool's threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>

#include "pool.h"

namespace cierzo {

// A thread that works alone: beside a model's steps, where taking turns at the pool would cost both more than a core's time.
inline thread_local bool alone = false;
struct Alone {
    Alone() { alone = true; }
    ~Alone() { alone = false; }
};

// Calls body(first, last) for runs of items that together are all of them, on whichever thread is free; runs, for the
// memory's sake.
template <class F>
void spread_runs(size_t items, F body) {
    if (items <= 1 || alone) {  // waking the others would take longer
        if (items) body(size_t(0), items);
        return;
    }
    const std::shared_ptr<Pool> pool = Pool::get();
    const size_t run = std::max<size_t>(1, items / (size_t(pool->size()) * 8));
    std::atomic<size_t> next{0};
    pool->run([&] {
        for (size_t first; (first = next.fetch_add(run)) < items;) body(first, std::min(first + run, items));
    });
}

// Calls body(item) for every item.
template <class F>
void spread(size_t items, F body) {
    spread_runs(items, [&](size_t first, size_t last) {
        for (size_t item = first; item < last; ++item) body(item);
    });
}

}  // namespace cierzo
