// Q4T, the format of codes times steps, times int8 activations.
//
// A weight is an integer that its nibble and its group's step give, and a span has one scale on either side, so all
// products of a span are summed exactly in integers; spans are then added in ascending order, f = fma(float(sum) x
// activation scale, weight scale, f). So a row's result is the same bits alone, among many, and on every instruction set.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "linear.h"

namespace cierzo::CIERZO_TARGET {

template <int R>
inline void coded_rows(const Product& p, const uint8_t* data, size_t row, float* out) {
    const Activations& a = p.rows;
    const size_t tiles = a.inputs / kTile, step = a.height(row) * kTile;
    const CodedPanel panel(data, tiles);
    const int8_t* x = a.at(row, p.first_tile);
    const float* scales = a.scales + row * a.spans;
    const int32_t* sums = a.sums + row * a.groups;
    const uint8_t* lines = panel.lines + p.first_tile * 512;
    F32x16 y[R];
    for (int r = 0; r < R; ++r) y[r] = p.first_tile ? load(out + r * kPanel) : broadcast(0);
    // The lines before have fetched the header; what they would have fetched in its place is fetched here.
    for (size_t at = 0; R == 1 && at < CodedPanel::header(tiles); at += 64)
        prefetch(lines + kPrefetch - CodedPanel::header(tiles) + at);
    for (size_t tile = p.first_tile; tile < p.last_tile;) {
        const size_t span = tile / kSpanTiles, end = std::min(p.last_tile, (span + 1) * kSpanTiles);
        StepSum acc[R];
        for (; tile < end; ++tile, x += step, lines += 512)
            for (int half = 0; half < 2; ++half) {
                const Steps steps = load_steps(panel.steps + tile * kPanel, half);
                for (int r = 0; r < R; ++r) acc[r].begin(steps, sums[r * a.groups + 2 * tile + half]);
#pragma GCC unroll 8
                for (int l = 0; l < 8; ++l) {
                    if (R == 1 && half == 0) prefetch(lines + l * 64 + kPrefetch);
                    const Bytes64 line = load_line(lines + l * 64);
                    const Bytes64 codes = codes_of(half ? high_nibbles(line) : low_nibbles(line));
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) acc[r].add(l, codes, x + r * kTile + half * kGroup + 4 * l, steps);
                }
            }
        const F32x16 scale = load_f16(panel.scales + span * kPanel);
        for (int r = 0; r < R; ++r)
            y[r] = fma(mul(to_float(acc[r].total()), broadcast(scales[r * a.spans + span])), scale, y[r]);
    }
    for (int r = 0; r < R; ++r) store(out + r * kPanel, y[r]);
}

inline void multiply_coded(const Product& p, float* out) {
    each_row_group(p, out, [&](auto count, const uint8_t* panel, size_t row, float* to) {
        coded_rows<decltype(count)::value>(p, panel, row, to);
    });
}

inline void unpack_coded(const uint8_t* data, int output, size_t tiles, float* out) {
    const CodedPanel panel(data, tiles);
    for (size_t i = 0; i < tiles * kTile; ++i) {
        const size_t tile = i / kTile, half = i % kTile / kGroup, line = i % kGroup / 4;
        const uint8_t byte = panel.lines[tile * 512 + line * 64 + 4 * output + i % 4];
        const uint8_t pair = panel.steps[tile * kPanel + output];
        const int code = Q4T::codes[half ? byte >> 4 : byte & 15], step = Q4T::steps[half ? pair >> 4 : pair & 15];
        float scales[16];
        store(scales, load_f16(panel.scales + tile / kSpanTiles * kPanel));
        out[i] = static_cast<float>(code * step) * scales[output];
    }
}

}  // namespace cierzo::CIERZO_TARGET
