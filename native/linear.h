// Group-scaled packed matrices (Q4, Q4M, Q8) times int8 activations.
//
// Of every group of 32 inputs the products are summed exactly in integers, and the groups then added in ascending order
// with one rounding each, f = fma(float(sum) x activation scale, weight scale, f); so a row's result is the same bits
// alone, among many, and on every instruction set.
#pragma once
#include <type_traits>

#include "kernels.h"

namespace cierzo::CIERZO_TARGET {

// Few rows are as fast as memory: of fewer than so many, where registers allow, a product's two panels pass side by side, two
// streams of memory.
constexpr int kSideBySide = kWide > 2 ? 8 : 0;
// Bytes that R rows with P panels fetch ahead: lines one by one of two panels, a tile at once of one. 4096 would meet in the same
// cache sets.
template <int R, int P>
constexpr size_t kAhead = P == 2 ? 3456 : R < 8 ? 6912 : 4608;

inline const uint16_t* scales_of(const uint8_t* tile, int group) {
    return reinterpret_cast<const uint16_t*>(tile) + group * kPanel;
}

// One group's integer sum into the float sum of a row.
template <class F>
inline F32x16 accumulate(F32x16 y, I32x16 sum, F32x16 scale, F32x16 minimum, float activation_scale, const float* offset) {
    y = fma(mul(to_float(sum), broadcast(activation_scale)), scale, y);
    if constexpr (F::has_minimum) y = fma(broadcast(*offset), minimum, y);
    return y;
}

// R rows of a product's, from `row` on, with P panels side by side, the results of the next `stride` behind those of the
// one before; a line of weights is unpacked once for all rows.
template <class F, int R, int P>
inline void group_rows(const Product& p, const uint8_t* const* panels, size_t row, float* out, size_t stride) {
    const Activations& a = p.rows;
    const size_t step = a.height(row) * kTile;
    const int8_t* x = a.at(row, p.first_tile);
    const float* scales = a.scales + row * a.spans;
    const int32_t* sums = a.sums + row * a.groups;
    const float* offsets = a.offsets + row * a.groups;
    const size_t ahead = row == p.first_row ? kAhead<R, P> : 0;  // other rows find what is there
    F32x16 y[P][R];
    for (int i = 0; i < P; ++i)
        for (int r = 0; r < R; ++r) y[i][r] = p.first_tile ? load(out + i * stride + r * kPanel) : broadcast(0);
    const uint8_t* tile[P];
    for (int i = 0; i < P; ++i) tile[i] = panels[i] + p.first_tile * F::tile_bytes;
    for (size_t t = p.first_tile; t < p.last_tile; ++t, x += step) {
        for (size_t at = 0; P == 1 && ahead && at < F::tile_bytes; at += 64) prefetch(tile[0] + ahead + at);
        for (int half = 0; half < 2; ++half) {
            const size_t group = 2 * t + half;
            using Sum = std::conditional_t<F::nibbles, NibbleSum, ByteSum>;
            Sum acc[2][R];  // two also for one panel: gcc 12 keeps [1][R] in memory
#pragma GCC unroll 8
            for (int l = 0; l < 8; ++l)
#pragma GCC unroll 2
                for (int i = 0; i < P; ++i) {
                    const uint8_t* line = tile[i] + F::header + (F::nibbles ? l : 8 * half + l) * 64;
                    if (P == 2 && (!F::nibbles || !half)) prefetch(line + ahead);
                    Bytes64 w = load_line(line);
                    if constexpr (F::nibbles) w = half ? high_nibbles(w) : low_nibbles(w);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) acc[i][r].add(w, x + r * kTile + half * kGroup + 4 * l);
                }
            for (int i = 0; i < P; ++i) {
                for (size_t at = 0; P == 2 && half && at < F::header; at += 64) prefetch(tile[i] + ahead + at);
                const F32x16 scale = load_f16(scales_of(tile[i], half));
                const F32x16 minimum = F::has_minimum ? load_f16(scales_of(tile[i], 2 + half)) : broadcast(0);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const size_t at = r * a.groups + group;
                    I32x16 sum = acc[i][r].total(sums[at]);
                    if constexpr (F::nibbles && !F::has_minimum) sum = add(sum, -8 * sums[at]);
                    y[i][r] = accumulate<F>(y[i][r], sum, scale, minimum, scales[at], offsets + at);
                }
            }
        }
        for (int i = 0; i < P; ++i) tile[i] += F::tile_bytes;
    }
    for (int i = 0; i < P; ++i)
        for (int r = 0; r < R; ++r) store(out + i * stride + r * kPanel, y[i][r]);
}

// rows<R, P>(panels, row, out) for all rows of a product; groups of eight and four do not leave their row tile.
template <class Rows>
inline void each_row_group(const Product& p, float* out, Rows rows) {
    const auto all = [&](auto n_panels, int first) {
        size_t n = 0;
        const auto next = [&](auto count) {
            rows(count, n_panels, p.panels + first, p.first_row + n, out + (first * p.n_rows + n) * kPanel);
            n += count;
        };
        if constexpr (kWide > 2 && decltype(n_panels)::value == 1)
            while (n + 8 <= p.n_rows) next(std::integral_constant<int, 8>{});
        while (n + 4 <= p.n_rows) next(std::integral_constant<int, 4>{});
        while (n + 2 <= p.n_rows) next(std::integral_constant<int, 2>{});
        if (n < p.n_rows) next(std::integral_constant<int, 1>{});
    };
    if constexpr (kSideBySide > 0)
        if (p.n_panels == 2 && p.n_rows < kSideBySide) return all(std::integral_constant<int, 2>{}, 0);
    for (int i = 0; i < p.n_panels; ++i) all(std::integral_constant<int, 1>{}, i);
}

template <class F>
void multiply(const Product& p, float* out) {
    each_row_group(p, out, [&](auto count, auto n_panels, const uint8_t* const* panels, size_t row, float* to) {
        group_rows<F, decltype(count)::value, decltype(n_panels)::value>(p, panels, row, to, p.n_rows * kPanel);
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
