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

// R rows at a time, with P panels side by side as in linear.h; of a single row the two groups of a line at a time, of several
// one after the other, for want of registers.
template <int R, int P>
inline void coded_rows(const Product& p, const uint8_t* const* data, size_t row, float* out, size_t stride) {
    constexpr int kHalves = R == 1 ? 2 : 1;
    const Activations& a = p.rows;
    const size_t tiles = a.inputs / kTile, step = a.height(row) * kTile;
    const CodedPanel panels[2] = {{data[0], tiles}, {data[P - 1], tiles}};
    const uint8_t* lines[P];
    for (int i = 0; i < P; ++i) lines[i] = panels[i].lines + p.first_tile * 512;
    const int8_t* x = a.at(row, p.first_tile);
    const float* scales = a.scales + row * a.spans;
    const int32_t* sums = a.sums + row * a.groups;
    F32x16 y[P][R];
    for (int i = 0; i < P; ++i)
        for (int r = 0; r < R; ++r) y[i][r] = p.first_tile ? load(out + i * stride + r * kPanel) : broadcast(0);
    // The lines before have fetched the header; what they would have fetched in its place is fetched here.
    const size_t ahead = row == p.first_row ? kAhead<R, P> : 0;
    for (int i = 0; i < P; ++i)
        for (size_t at = CodedPanel::header(tiles); ahead && at > 0; at -= 64) prefetch(lines[i] + ahead - at);
    for (size_t tile = p.first_tile; tile < p.last_tile;) {
        const size_t span = tile / kSpanTiles, end = std::min(p.last_tile, (span + 1) * kSpanTiles);
        StepSum acc[P][R][R < 8 ? 2 : 1];  // of kHalves alone, gcc 12 would keep two rows' in memory
        for (; tile < end; ++tile, x += step) {
            for (size_t at = 0; P == 1 && ahead && at < 512; at += 64) prefetch(lines[0] + ahead + at);
            for (int first = 0; first < 2; first += kHalves) {
                Steps steps[P][kHalves];
                for (int i = 0; i < P; ++i)
                    for (int h = 0; h < kHalves; ++h) {
                        steps[i][h] = load_steps(panels[i].steps + tile * kPanel, first + h);
                        for (int r = 0; r < R; ++r)
                            acc[i][r][h].begin(steps[i][h], sums[r * a.groups + 2 * tile + first + h]);
                    }
#pragma GCC unroll 8
                for (int l = 0; l < 8; ++l)
#pragma GCC unroll 2
                    for (int i = 0; i < P; ++i) {
                        const uint8_t* at = lines[i] + l * 64;
                        if (P == 2 && !first) prefetch(at + ahead);
                        const Bytes64 line = load_line(at);
#pragma GCC unroll 2
                        for (int h = 0; h < kHalves; ++h) {
                            const Bytes64 codes = codes_of(first + h ? high_nibbles(line) : low_nibbles(line));
                            const int8_t* four = x + (first + h) * kGroup + 4 * l;
#pragma GCC unroll 8
                            for (int r = 0; r < R; ++r) acc[i][r][h].add(l, codes, four + r * kTile, steps[i][h]);
                        }
                    }
            }
            for (int i = 0; i < P; ++i) lines[i] += 512;
        }
        for (int i = 0; i < P; ++i) {
            const F32x16 scale = load_f16(panels[i].scales + span * kPanel);
            for (int r = 0; r < R; ++r) {
                const StepSum* of = acc[i][r];
                const I32x16 sum = R == 1 ? add(of[0].total(), of[kHalves - 1].total()) : of[0].total();
                y[i][r] = fma(mul(to_float(sum), broadcast(scales[r * a.spans + span])), scale, y[i][r]);
            }
        }
    }
    for (int i = 0; i < P; ++i)
        for (int r = 0; r < R; ++r) store(out + i * stride + r * kPanel, y[i][r]);
}

inline void multiply_coded(const Product& p, float* out) {
    each_row_group(p, out, [&](auto count, auto n_panels, const uint8_t* const* panels, size_t row, float* to) {
        coded_rows<decltype(count)::value, decltype(n_panels)::value>(p, panels, row, to, p.n_rows * kPanel);
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
