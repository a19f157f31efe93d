#include "repack.h"

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
constexpr size_t block_groups(Blocks kind) { return kind == Blocks::q4_k ? 8 : 1; }

void read_group(Blocks kind, const uint8_t* row, size_t number, Group& group) {
    const uint8_t* block = row + number / block_groups(kind) * block_bytes(kind);
    group.scale = half_at(block);
    group.minimum = kind == Blocks::q4_1 ? half_at(block + 2) : 0;
    switch (kind) {
        case Blocks::q4_0: return read_nibbles(block + 2, group);
        case Blocks::q4_1: return read_nibbles(block + 4, group);
        case Blocks::q8_0: std::memcpy(group.values, block + 2, kGroup); return;
        case Blocks::q4_k: return read_q4_k(block, number, group);
    }
}

Format format_of(int blocks) {
    switch (static_cast<Blocks>(blocks)) {
        case Blocks::q4_0: return Format::q4;
        case Blocks::q4_1:
        case Blocks::q4_k: return Format::q4m;
        case Blocks::q8_0: return Format::q8;
    }
    throw std::invalid_argument("blocks of type " + std::to_string(blocks) + " are no packed format's grid");
}

}  // namespace

bool repack(int blocks, const uint8_t* raw, size_t bytes, const Matrix& shape, uint8_t* out) {
    const Format format = format_of(blocks);
    const Blocks kind = static_cast<Blocks>(blocks);
    const size_t per_block = block_groups(kind) * kGroup, stride = shape.inputs / per_block * block_bytes(kind);
    if (format != shape.format || shape.inputs % per_block || bytes != shape.outputs * stride)
        throw std::invalid_argument("blocks of type " + std::to_string(blocks) + " do not fit the matrix");
    const size_t groups = shape.inputs / kGroup, width = tile_bytes(format);
    const bool wide = format == Format::q8;
    const size_t header = tile_header(format);
    std::atomic<bool> all_finite{true};
    spread(shape.panels, [&](size_t panel) {
        uint8_t* tile = out + panel * shape.tiles * width;
        std::memset(tile, 0, shape.tiles * width);
        for (size_t t = 0; t < shape.tiles; ++t, tile += width)
            for (size_t o = 0; o < kPanel && panel * kPanel + o < shape.outputs; ++o)
                for (size_t half = 0; half < 2 && 2 * t + half < groups; ++half) {
                    Group group;
                    read_group(kind, raw + (panel * kPanel + o) * stride, 2 * t + half, group);
                    if (!finite(group.scale) || !finite(group.minimum)) all_finite = false;
                    std::memcpy(tile + 2 * (half * kPanel + o), &group.scale, 2);
                    if (format == Format::q4m) std::memcpy(tile + 2 * ((2 + half) * kPanel + o), &group.minimum, 2);
                    for (size_t line = 0; line < 8; ++line) {
                        uint8_t* at = tile + header + (wide ? 8 * half + line : line) * 64 + 4 * o;
                        uint32_t there, four;
                        std::memcpy(&there, at, 4);
                        std::memcpy(&four, group.values + 4 * line, 4);
                        there |= !wide && half ? four << 4 : four;
                        std::memcpy(at, &there, 4);
                    }
                }
    });
    return all_finite;
}

}  // namespace cierzo
