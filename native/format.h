// How packed matrices lie in memory: one layout for every instruction set and for one row as for many.
//
// A panel holds 16 outputs; it is a run of tiles of 64 inputs, two groups of 32. A tile starts with the groups' float16
// scales, [2][16] outputs, and where the format has them minima, [2][16]; then lines of 64 bytes, 16 outputs x 4 inputs:
//   4 bits: 8 lines; byte 4 o + j of line r holds input 4 r + j in its low nibble and input 32 + 4 r + j in its high one;
//   8 bits: 16 lines; byte 4 o + j of line r is input 4 r + j.
// All of it is 64-byte aligned. Outputs and inputs that fill a last panel or tile have the scale 0.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cierzo {

constexpr int kPanel = 16, kTile = 64, kGroup = 32;

enum class Format : int { q4 = 0, q4m = 1, q8 = 2 };
constexpr int kFormats = 3;

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

constexpr size_t tile_bytes(Format format) {
    return format == Format::q4 ? Q4::tile_bytes : format == Format::q4m ? Q4M::tile_bytes : Q8::tile_bytes;
}

constexpr size_t tile_header(Format format) {
    return format == Format::q4 ? Q4::header : format == Format::q4m ? Q4M::header : Q8::header;
}

// Rows of activations as the kernels take them: int8 with one float scale a group of 32, and each group's integer sum.
struct Activations {
    const int8_t* values;   // [rows][inputs]
    const float* scales;    // [rows][groups]
    const int32_t* sums;    // [rows][groups]
    size_t inputs, groups;  // padded to whole tiles
};

}  // namespace cierzo
