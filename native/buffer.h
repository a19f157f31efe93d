// Memory of numbers that begins where a line of the caches does, so that vectors of 64 bytes, one after the other, lie on one
// each: two would cost tiles of matrix units and stores time.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

namespace cierzo {

template <class T>
struct OnLines {
    using value_type = T;
    static constexpr std::align_val_t line{64};

    OnLines() = default;
    template <class U>
    OnLines(const OnLines<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
    void deallocate(T* p, size_t) { ::operator delete(p, line); }
    bool operator==(const OnLines&) const { return true; }
    bool operator!=(const OnLines&) const { return false; }
};

template <class T>
using Buffer = std::vector<T, OnLines<T>>;

}  // namespace cierzo
