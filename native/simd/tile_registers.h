// The eight tile registers of AMX, each 16 rows of 64 bytes. With CIERZO_EMULATED_TILES they are memory, so that processors
// without tiles can run what is written with them: for tests alone.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace cierzo::CIERZO_TARGET {

// Rows, and bytes a row, of the registers.
struct alignas(64) TileShapes {
    constexpr TileShapes(const uint8_t (&heights)[8], const uint16_t (&widths)[8]) {
        for (int i = 0; i < 8; ++i) {
            rows[i] = heights[i];
            row_bytes[i] = widths[i];
        }
    }
    void configure() const;

    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

#ifndef CIERZO_EMULATED_TILES

// As assembly that says which bytes are read or written; gcc 12's intrinsics do not.
inline void TileShapes::configure() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }
inline void release_tiles() { asm volatile("tilerelease"); }

template <int T>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void load_tile(const void* p) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
                 ::"i"(T), "r"(p), "r"(64L), "m"(*static_cast<const int8_t(*)[1024]>(p)));
}
// With a hint that keeps what is loaded out of the first cache.
template <int T>
inline void stream_tile(const int8_t* p) {
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0"
                 ::"i"(T), "r"(p), "r"(64L), "m"(*reinterpret_cast<const int8_t(*)[1024]>(p)));
}
template <int T>
inline void store_tile(int32_t* to) {
    asm volatile("tilestored %%tmm%c1, (%2,%3,1)" : "=m"(*reinterpret_cast<int32_t(*)[256]>(to)) : "i"(T), "r"(to), "r"(64L));
}
// C += A x B: 16 rows x 64 inputs times 64 inputs x 16 outputs, exact.
template <int C, int A, int B>
inline void add_product() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else

inline thread_local TileShapes shapes_in_use{{}, {}};
alignas(64) inline thread_local int8_t tile_bytes[8][16][64];

inline void TileShapes::configure() const {
    shapes_in_use = *this;
    std::memset(tile_bytes, 0, sizeof tile_bytes);
}
inline void release_tiles() { shapes_in_use = TileShapes({}, {}); }

template <int T>
inline void zero_tile() {
    std::memset(tile_bytes[T], 0, sizeof tile_bytes[T]);
}
template <int T>
inline void load_tile(const void* p) {
    zero_tile<T>();
    for (int r = 0; r < shapes_in_use.rows[T]; ++r)
        std::memcpy(tile_bytes[T][r], static_cast<const int8_t*>(p) + 64 * r, shapes_in_use.row_bytes[T]);
}
template <int T>
inline void stream_tile(const int8_t* p) {
    load_tile<T>(p);
}
template <int T>
inline void store_tile(int32_t* to) {
    for (int r = 0; r < shapes_in_use.rows[T]; ++r) std::memcpy(to + 16 * r, tile_bytes[T][r], shapes_in_use.row_bytes[T]);
}
template <int C, int A, int B>
inline void add_product() {
    const TileShapes& s = shapes_in_use;
    const bool fits = s.rows[C] && s.rows[C] == s.rows[A] && s.row_bytes[A] == 4 * s.rows[B] && s.row_bytes[B] == s.row_bytes[C];
    if (!fits) std::abort();  // as a processor ends the process
    for (int m = 0; m < shapes_in_use.rows[C]; ++m)
        for (int k = 0; k < shapes_in_use.row_bytes[A]; ++k)
            for (int n = 0; n < 16; ++n) {
                int32_t sum;
                int8_t* at = tile_bytes[C][m] + 4 * n;
                std::memcpy(&sum, at, 4);
                sum += tile_bytes[A][m][k] * tile_bytes[B][k / 4][4 * n + k % 4];
                std::memcpy(at, &sum, 4);
            }
}

#endif

}  // namespace cierzo::CIERZO_TARGET
