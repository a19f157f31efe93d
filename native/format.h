// How packed matrices lie in memory: one layout for every instruction set and for one row as for many.
//
// A panel holds 16 outputs; it is a run of tiles of 64 inputs, two groups of 32. A tile starts with the groups' float16
// scales, [2][16] outputs, and where the format has them minima, [2][16]; then lines of 64 bytes, 16 outputs x 4 inputs:
//   4 bits: 8 lines; byte 4 o + j of line r holds input 4 r + j in its low nibble and input 32 + 4 r + j in its high one;
//   8 bits: 16 lines; byte 4 o + j of line r is input 4 r + j.
// Q4T keeps a panel's scales together: a header, then only lines of nibbles (`CodedPanel`).
// All of it is 64-byte aligned. Outputs and inputs that fill a last panel or tile have the scale 0.
#pragma once
#include <cstddef>
#include <cstdint>

// Inputs of one scale of Q4T, and of the activations that it is multiplied with; benchmarks/spans.py builds others.
#ifndef CIERZO_SPAN
#define CIERZO_SPAN 192
#endif

namespace cierzo {

constexpr int kPanel = 16, kTile = 64, kGroup = 32, kSpan = CIERZO_SPAN, kSpanTiles = kSpan / kTile;
static_assert(kSpan % kTile == 0 && kSpan <= 512, "a span is whole tiles, and its sums stay exact in float32");

enum class Format : int { q4 = 0, q4m = 1, q8 = 2, q4t = 3 };
constexpr int kFormats = 4;

// w = scale x (nibble - 8)
struct Q4 {
    static constexpr bool has_minimum = false, nibbles = true;
    static constexpr size_t header = 64, tile_bytes = 64 + 512;
};
// w = scale x nibble + minimum
struct Q4M {
    static constexpr bool has_minimum = true, nibbles = true;
    static constexpr size_t header = 128, tile_bytes = 128 + 512;
};
// w = scale x int8
struct Q8 {
    static constexpr bool has_minimum = false, nibbles = false;
    static constexpr size_t header = 64, tile_bytes = 64 + 1024;
};

// w = scale x (code of the nibble x step of the group): an integer within +-120 times one scale a span, so that a span's
// products are summed exactly. The codes lie closer near zero, where weights are; a step's sign turns the uneven ends.
struct Q4T {
    static constexpr int codes[16] = {-11, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 9, 12};
    static constexpr int steps[16] = {3, 4, 5, 6, 7, 8, 9, 10, -3, -4, -5, -6, -7, -8, -9, -10};
    static constexpr int code_offset = 12;  // makes codes unsigned, for instructions that want one such side
    static constexpr int largest = 120;
};

constexpr size_t spans_of(size_t tiles) { return (tiles + kSpanTiles - 1) / kSpanTiles; }

// One panel of Q4T: float16 scales [spans][16]; steps [tiles][16], the first group's number in the low four bits and the
// second's in the high ones; filled up to a multiple of 64; lines as above, 8 a tile.
struct CodedPanel {
    const uint16_t* scales;
    const uint8_t *steps, *lines;

    static constexpr size_t header(size_t tiles) { return (spans_of(tiles) * 32 + tiles * 16 + 63) / 64 * 64; }
    CodedPanel(const uint8_t* panel, size_t tiles)
        : scales(reinterpret_cast<const uint16_t*>(panel)), steps(panel + spans_of(tiles) * 32),
          lines(panel + header(tiles)) {}
};

constexpr size_t panel_bytes(Format format, size_t tiles) {
    switch (format) {
        case Format::q4: return tiles * Q4::tile_bytes;
        case Format::q4m: return tiles * Q4M::tile_bytes;
        case Format::q8: return tiles * Q8::tile_bytes;
        default: return CodedPanel::header(tiles) + tiles * 512;
    }
}

// Inputs that share a scale of the activations.
constexpr size_t span_of(Format format) { return format == Format::q4t ? kSpan : kGroup; }

constexpr int kRowTile = 16;  // rows of activations that lie together

// Rows of activations as the kernels take them: int8, a float scale for every `span` inputs, and the integer sums of groups
// and of spans.
// The values of 16 rows lie together, tile after tile, as matrix units load them: [rows / 16][tiles][16][64]; the last
// rows, if fewer, as [tiles][rows][64], with room for 16 rows behind the last tile.
struct Activations {
    const int8_t* values;
    const float* scales;    // [rows][spans]
    const int32_t* sums;    // [rows][groups]
    const int32_t* totals;  // [rows][spans]
    // Where scales are of groups, [rows][groups]: scale x sum, what a minimum counts.
    float* offsets;
    // Where they are of spans: the scales again, those of `kTogether` rows together, [rows / kTogether][spans][kTogether], the
    // last rows, if fewer, [spans][rows].
    float* span_scales;
    size_t rows, inputs, groups, spans;  // inputs padded to whole tiles

    static constexpr size_t kTogether = 32;

    size_t height(size_t row) const {
        const size_t left = rows - row / kRowTile * kRowTile;
        return left < kRowTile ? left : kRowTile;
    }
    size_t offset(size_t row, size_t tile) const {
        return row / kRowTile * kRowTile * inputs + (tile * height(row) + row % kRowTile) * kTile;
    }
    const int8_t* at(size_t row, size_t tile) const { return values + offset(row, tile); }
    size_t span_offset(size_t row, size_t span) const {
        const size_t first = row / kTogether * kTogether, left = rows - first;
        return first * spans + span * (left < kTogether ? left : kTogether) + row - first;
    }
    // What follows from a row's scales and sums.
    void derive(size_t row) const {
        const float* own = scales + row * spans;
        if (spans == groups)
            for (size_t i = row * groups; i < (row + 1) * groups; ++i) offsets[i] = scales[i] * static_cast<float>(sums[i]);
        else
            for (size_t span = 0; span < spans; ++span) span_scales[span_offset(row, span)] = own[span];
    }
};

}  // namespace cierzo
