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

// R rows at a time; of a single row the two groups of a line at a time, of several one after the other, for want of
// registers.
template <int R>
inline void coded_rows(const Product& p, const uint8_t* data, size_t row, float* out) {
    constexpr int kHalves = R == 1 ? 2 : 1;
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
    const bool fetch = row == p.first_row;
    for (size_t at = 0; fetch && at < CodedPanel::header(tiles); at += 64)
        prefetch(lines + kPrefetch - CodedPanel::header(tiles) + at);
    for (size_t tile = p.first_tile; tile < p.last_tile;) {
        const size_t span = tile / kSpanTiles, end = std::min(p.last_tile, (span + 1) * kSpanTiles);
        StepSum acc[R][kHalves];
        for (; tile < end; ++tile, x += step, lines += 512) {
            for (size_t at = 0; fetch && at < 512; at += 64) prefetch(lines + kPrefetch + at);
            for (int first = 0; first < 2; first += kHalves) {
                Steps steps[kHalves];
                for (int h = 0; h < kHalves; ++h) {
                    steps[h] = load_steps(panel.steps + tile * kPanel, first + h);
                    for (int r = 0; r < R; ++r) acc[r][h].begin(steps[h], sums[r * a.groups + 2 * tile + first + h]);
                }
#pragma GCC unroll 8
                for (int l = 0; l < 8; ++l) {
                    const Bytes64 line = load_line(lines + l * 64);
#pragma GCC unroll 2
                    for (int h = 0; h < kHalves; ++h) {
                        const Bytes64 codes = codes_of(first + h ? high_nibbles(line) : low_nibbles(line));
                        const int8_t* four = x + (first + h) * kGroup + 4 * l;
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r) acc[r][h].add(l, codes, four + r * kTile, steps[h]);
                    }
                }
            }
        }
        const F32x16 scale = load_f16(panel.scales + span * kPanel);
        for (int r = 0; r < R; ++r) {
            const I32x16 sum = R == 1 ? add(acc[r][0].total(), acc[r][kHalves - 1].total()) : acc[r][0].total();
            y[r] = fma(mul(to_float(sum), broadcast(scales[r * a.spans + span])), scale, y[r]);
        }
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
