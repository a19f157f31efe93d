// Q4, Q4M and Q8 times many rows on AMX, the same integers and then the same float operations as linear.h.
//
// A scale stands for 32 inputs only, so a tile product is half as deep as it could be, and its sums leave the tiles at once;
// what bounds is their scaling by the vector units. 16 rows x 16 outputs are kept in registers over a chunk of inputs whose
// int8 weights lie in the first cache; two groups are multiplied while the two before are scaled.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "linear.h"
#include "tiles.h"

namespace cierzo::CIERZO_TARGET {

constexpr size_t kGroupChunk = 16;    // tiles of inputs, 16 KB of weights
constexpr size_t kFewGroupRows = 24;  // below, vectors are faster

// Lines of a tile as the B tiles of its two groups: 8 rows of 4 inputs x 16 outputs each.
template <class F>
inline void unpack_groups(const uint8_t* lines, int8_t* to) {
    for (int l = 0; l < (F::nibbles ? 8 : 16); ++l) {
        const Bytes64 line = load_line(lines + 64 * l);
        if constexpr (!F::nibbles) {
            _mm512_store_si512(to + 64 * l, line.v);
        } else {
            const __m512i middle = _mm512_set1_epi8(F::has_minimum ? 0 : 8);
            _mm512_store_si512(to + 64 * l, _mm512_sub_epi8(low_nibbles(line).v, middle));
            _mm512_store_si512(to + 512 + 64 * l, _mm512_sub_epi8(high_nibbles(line).v, middle));
        }
    }
}

// Rows [row, row + 16) of the step with a chunk [first, last) of one panel, `count` of them into out [16][16].
template <class F>
inline void tile_rows(const Product& p, const uint8_t* panel, const int8_t* weights, size_t first, size_t last, size_t row,
                      size_t count, float* out) {
    const Activations& a = p.rows;
    const float *scales[kRowTile], *offsets[kRowTile];
    alignas(64) int32_t sums[2][2][256];
    F32x16 y[kRowTile];
#pragma GCC unroll 16
    for (size_t r = 0; r < kRowTile; ++r) {
        const size_t own = row + std::min(r, count - 1);  // rows beyond the last repeat it, and are dropped
        scales[r] = a.scales + own * a.spans + 2 * first;
        offsets[r] = a.offsets + own * a.groups + 2 * first;
        y[r] = first ? load(out + std::min(r, count - 1) * kPanel) : broadcast(0);
    }
    const auto scale = [&](size_t tile) {
        const uint8_t* header = panel + tile * F::tile_bytes;
        for (int half = 0; half < 2; ++half) {
            const F32x16 weight_scale = load_f16(scales_of(header, half));
            const F32x16 minimum = F::has_minimum ? load_f16(scales_of(header, 2 + half)) : broadcast(0);
            const size_t group = 2 * (tile - first) + half;
            const int32_t* of_group = sums[tile % 2][half];
#pragma GCC unroll 16
            for (size_t r = 0; r < kRowTile; ++r) {
                const F32x16 sum = to_float({_mm512_load_si512(of_group + 16 * r)});
                y[r] = fma(mul(sum, broadcast(scales[r][group])), weight_scale, y[r]);
                if constexpr (F::has_minimum) y[r] = fma(broadcast(offsets[r][group]), minimum, y[r]);
            }
        }
    };
    const int8_t* x = a.at(row, first);
    const bool fetch = row == p.first_row;  // the next chunk's weights, while the first rows pass this one
    for (size_t tile = first; tile < last; ++tile, x += a.height(row) * kTile, weights += 1024) {
        for (size_t at = 0; fetch && at < F::tile_bytes; at += 64)
            asm volatile("prefetcht1 (%0)" ::"r"(panel + (tile + kGroupChunk) * F::tile_bytes + at));
        zero_tile<0>();
        load_tile<4>(x);
        load_tile<6>(weights);
        add_product<0, 4, 6>();
        zero_tile<1>();
        load_tile<5>(x + kGroup);
        load_tile<7>(weights + 512);
        add_product<1, 5, 7>();
        if (tile > first) scale(tile - 1);
        store_tile<0>(sums[tile % 2][0]);
        store_tile<1>(sums[tile % 2][1]);
    }
    scale(last - 1);
#pragma GCC unroll 16
    for (size_t r = 0; r < kRowTile; ++r)
        if (r < count) store(out + r * kPanel, y[r]);
}

template <class F>
void multiply_group_tiles(const Product& p, float* out) {
    if (p.n_rows < kFewGroupRows) return multiply<F>(p, out);
    static constexpr TileShapes shapes({16, 16, 16, 16, 16, 16, 8, 8}, {64, 64, 64, 64, 32, 32, 64, 64});
    shapes.configure();
    alignas(64) int8_t weights[kGroupChunk * 1024];
    for (int i = 0; i < p.n_panels; ++i)
        for (size_t first = p.first_tile; first < p.last_tile; first += kGroupChunk) {
            const size_t last = std::min(first + kGroupChunk, p.last_tile);
            for (size_t tile = first; tile < last; ++tile)
                unpack_groups<F>(p.panels[i] + tile * F::tile_bytes + F::header, weights + (tile - first) * 1024);
            for (size_t n = 0; n < p.n_rows; n += kRowTile)
                tile_rows<F>(p, p.panels[i], weights, first, last, p.first_row + n,
                             std::min<size_t>(kRowTile, p.n_rows - n), out + (i * p.n_rows + n) * kPanel);
        }
    release_tiles();
}

}  // namespace cierzo::CIERZO_TARGET
