// Group-scaled packed matrices (Q4, Q4M, Q8) times int8 activations.
//
// Of every group of 32 inputs the products are summed exactly in integers, and the groups then added in ascending order
// with one rounding each, f = fma(float(sum) x activation scale, weight scale, f); so a row's result is the same bits
// alone, among many, and on every instruction set.
#pragma once
#include <type_traits>

#include "kernels.h"

namespace cierzo::CIERZO_TARGET {

constexpr size_t kPrefetch = 4608;  // bytes ahead; exactly 4096 would meet in the same cache sets

inline const uint16_t* scales_of(const uint8_t* tile, int group) {
    return reinterpret_cast<const uint16_t*>(tile) + group * kPanel;
}

// One group's integer sum into the float sum of a row.
template <class F>
inline F32x16 accumulate(F32x16 y, I32x16 sum, F32x16 scale, F32x16 minimum, float activation_scale, int32_t total) {
    if constexpr (F::nibbles && !F::has_minimum) sum = add(sum, -8 * total);
    y = fma(mul(to_float(sum), broadcast(activation_scale)), scale, y);
    if constexpr (F::has_minimum) y = fma(broadcast(activation_scale * static_cast<float>(total)), minimum, y);
    return y;
}

// R rows of a product's, from `row` on, with one panel; a line of weights is unpacked once for all of them.
template <class F, int R>
inline void group_rows(const Product& p, const uint8_t* panel, size_t row, float* out) {
    const Activations& a = p.rows;
    const size_t step = a.height(row) * kTile;
    const int8_t* x = a.at(row, p.first_tile);
    const float* scales = a.scales + row * a.spans;
    const int32_t* sums = a.sums + row * a.groups;
    const uint8_t* tile = panel + p.first_tile * F::tile_bytes;
    const bool fetch = row == p.first_row;
    F32x16 y[R];
    for (int r = 0; r < R; ++r) y[r] = p.first_tile ? load(out + r * kPanel) : broadcast(0);
    for (size_t t = p.first_tile; t < p.last_tile; ++t, tile += F::tile_bytes, x += step) {
        const uint8_t* lines = tile + F::header;
        for (size_t at = 0; fetch && at < F::tile_bytes; at += 64) prefetch(tile + kPrefetch + at);
        for (int half = 0; half < 2; ++half) {
            const size_t group = 2 * t + half;
            using Sum = std::conditional_t<F::nibbles, NibbleSum, ByteSum>;
            Sum acc[R];
#pragma GCC unroll 8
            for (int l = 0; l < 8; ++l) {
                const uint8_t* line = lines + (F::nibbles ? l : 8 * half + l) * 64;
                Bytes64 w = load_line(line);
                if constexpr (F::nibbles) w = half ? high_nibbles(w) : low_nibbles(w);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) acc[r].add(w, x + r * kTile + half * kGroup + 4 * l);
            }
            const F32x16 scale = load_f16(scales_of(tile, half));
            const F32x16 minimum = F::has_minimum ? load_f16(scales_of(tile, 2 + half)) : broadcast(0);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const I32x16 sum = acc[r].total(sums[r * a.groups + group]);
                y[r] = accumulate<F>(y[r], sum, scale, minimum, scales[r * a.spans + group], sums[r * a.groups + group]);
            }
        }
    }
    for (int r = 0; r < R; ++r) store(out + r * kPanel, y[r]);
}

// rows<R>(panel, row, out) for all rows of a product; groups of eight and four do not leave their row tile.
template <class Rows>
inline void each_row_group(const Product& p, float* out, Rows rows) {
    for (int i = 0; i < p.n_panels; ++i) {
        size_t n = 0;
        const auto next = [&](auto count) {
            rows(count, p.panels[i], p.first_row + n, out + (i * p.n_rows + n) * kPanel);
            n += count;
        };
        if constexpr (kWide > 2)
            while (n + 8 <= p.n_rows) next(std::integral_constant<int, 8>{});
        while (n + 4 <= p.n_rows) next(std::integral_constant<int, 4>{});
        while (n + 2 <= p.n_rows) next(std::integral_constant<int, 2>{});
        if (n < p.n_rows) next(std::integral_constant<int, 1>{});
    }
}

template <class F>
void multiply(const Product& p, float* out) {
    each_row_group(p, out, [&](auto count, const uint8_t* panel, size_t row, float* to) {
        group_rows<F, decltype(count)::value>(p, panel, row, to);
    });
}

template <class F>
void unpack(const uint8_t* tile, int output, size_t tiles, float* out) {
    for (size_t t = 0; t < tiles; ++t, tile += F::tile_bytes)
        for (int half = 0; half < 2; ++half) {
            float scales[16], minima[16] = {};
            store(scales, load_f16(scales_of(tile, half)));
            if (F::has_minimum) store(minima, load_f16(scales_of(tile, 2 + half)));
            for (int i = 0; i < kGroup; ++i) {
                const int line = F::nibbles ? i / 4 : 8 * half + i / 4;
                const uint8_t byte = tile[F::header + line * 64 + 4 * output + i % 4];
                const int value = !F::nibbles ? static_cast<int8_t>(byte)
                                              : (half ? byte >> 4 : byte & 15) - (F::has_minimum ? 0 : 8);
                const float product = static_cast<float>(value) * scales[output];
                out[t * kTile + half * kGroup + i] = F::has_minimum ? product + minima[output] : product;
            }
        }
}

}  // namespace cierzo::CIERZO_TARGET
