#include "repack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "half.h"
#include "kernels.h"
#include "spread.h"

namespace cierzo {

namespace {

// One output's group of 32: values (nibbles or int8) with a scale and a minimum, float16.
struct Group {
    uint8_t values[kGroup];
    uint16_t scale, minimum;
};

uint16_t half_at(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return h;
}

// Q4_0 and Q4_1: byte i has input i in its low nibble and input 16 + i in its high one.
void read_nibbles(const uint8_t* p, Group& group) {
    for (int i = 0; i < 16; ++i) {
        group.values[i] = p[i] & 15;
        group.values[16 + i] = p[i] >> 4;
    }
}

// Q4_K: 256 inputs, as eight groups with a scale and a minimum of 6 bits each, times two float16; then chunks of 32 bytes
// whose low nibbles are one group and whose high nibbles are the next (ggml's ggml-quants.c, get_scale_min_k4).
void read_q4_k(const uint8_t* block, size_t number, Group& group) {
    const uint8_t* packed = block + 4;
    const size_t n = number % 8;
    const uint8_t scale = n < 4 ? packed[n] & 63 : (packed[n + 4] & 15) | (packed[n - 4] >> 6) << 4;
    const uint8_t minimum = n < 4 ? packed[n + 4] & 63 : packed[n + 4] >> 4 | (packed[n] >> 6) << 4;
    group.scale = float_to_half(half_to_float(half_at(block)) * scale);
    group.minimum = float_to_half(-half_to_float(half_at(block + 2)) * minimum);
    const uint8_t* nibbles = block + 16 + n / 2 * 32;
    for (int i = 0; i < kGroup; ++i) group.values[i] = n % 2 ? nibbles[i] >> 4 : nibbles[i] & 15;
}

constexpr size_t block_bytes(Blocks kind) {
    return kind == Blocks::q4_0 ? 18 : kind == Blocks::q4_1 ? 20 : kind == Blocks::q8_0 ? 34 : 144;
}
constexpr Format format_of(Blocks kind) {
    return kind == Blocks::q4_0 ? Format::q4 : kind == Blocks::q8_0 ? Format::q8 : Format::q4m;
}
constexpr size_t block_groups(Blocks kind) { return kind == Blocks::q4_k ? 8 : 1; }

template <Blocks kind>
void read_group(const uint8_t* row, size_t number, Group& group) {
    const uint8_t* block = row + number / block_groups(kind) * block_bytes(kind);
    if constexpr (kind == Blocks::q4_k) return read_q4_k(block, number, group);
    group.scale = half_at(block);
    if constexpr (kind == Blocks::q8_0) std::memcpy(group.values, block + 2, kGroup);
    if constexpr (kind == Blocks::q4_0) read_nibbles(block + 2, group);
    if constexpr (kind == Blocks::q4_1) {
        group.minimum = half_at(block + 2);
        read_nibbles(block + 4, group);
    }
}

// One tile of a panel from the rows of its outputs. Returns whether all scales are finite.
template <Blocks kind>
bool write_tile(const uint8_t* rows, size_t stride, size_t n_rows, size_t number, size_t n_groups, uint8_t* tile) {
    constexpr Format format = format_of(kind);
    constexpr size_t header = kind == Blocks::q8_0 ? Q8::header : kind == Blocks::q4_0 ? Q4::header : Q4M::header;
    bool all_finite = true;
    for (size_t o = 0; o < kPanel; ++o) {
        Group pair[2] = {};  // scale 0 for what fills up the panel and the tile
        for (size_t half = 0; half < 2; ++half) {
            if (o < n_rows && 2 * number + half < n_groups)
                read_group<kind>(rows + o * stride, 2 * number + half, pair[half]);
            all_finite &= finite(pair[half].scale) && finite(pair[half].minimum);
            std::memcpy(tile + 2 * (half * kPanel + o), &pair[half].scale, 2);
            if (format == Format::q4m) std::memcpy(tile + 2 * ((2 + half) * kPanel + o), &pair[half].minimum, 2);
        }
        uint8_t bytes[2 * kGroup];
        for (int i = 0; i < kGroup; ++i)
            if constexpr (format == Format::q8) {
                bytes[i] = pair[0].values[i];
                bytes[kGroup + i] = pair[1].values[i];
            } else {
                bytes[i] = static_cast<uint8_t>(pair[0].values[i] | pair[1].values[i] << 4);
            }
        for (size_t line = 0; line < (format == Format::q8 ? 16 : 8); ++line)
            std::memcpy(tile + header + line * 64 + 4 * o, bytes + 4 * line, 4);
    }
    return all_finite;
}

template <Blocks kind>
bool repack_all(const uint8_t* raw, size_t bytes, const Matrix& shape, uint8_t* out) {
    constexpr size_t per_block = block_groups(kind) * kGroup, width = panel_bytes(format_of(kind), 1);
    const size_t stride = shape.inputs / per_block * block_bytes(kind);
    if (format_of(kind) != shape.format || shape.inputs % per_block || bytes != shape.outputs * stride)
        throw std::invalid_argument("the blocks do not fit the matrix");
    std::atomic<bool> all_finite{true};
    spread(shape.panels, [&](size_t panel) {
        const size_t first = panel * kPanel, n_rows = std::min<size_t>(kPanel, shape.outputs - first);
        for (size_t t = 0; t < shape.tiles; ++t)
            if (!write_tile<kind>(raw + first * stride, stride, n_rows, t, shape.inputs / kGroup,
                                  out + (panel * shape.tiles + t) * width))
                all_finite = false;
    });
    return all_finite;
}

}  // namespace

bool repack(int blocks, const uint8_t* raw, size_t bytes, const Matrix& shape, uint8_t* out) {
    switch (static_cast<Blocks>(blocks)) {
        case Blocks::q4_0: return repack_all<Blocks::q4_0>(raw, bytes, shape, out);
        case Blocks::q4_1: return repack_all<Blocks::q4_1>(raw, bytes, shape, out);
        case Blocks::q8_0: return repack_all<Blocks::q8_0>(raw, bytes, shape, out);
        case Blocks::q4_k: return repack_all<Blocks::q4_k>(raw, bytes, shape, out);
    }
    throw std::invalid_argument("blocks of type " + std::to_string(blocks) + " are no packed format's grid");
}

}  // namespace cierzo
