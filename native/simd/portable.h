// Sixteen lanes in plain C++: what a machine without any of the named instruction sets runs, and what they must equal.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>

#include "../format.h"
#include "../half.h"

namespace cierzo::CIERZO_TARGET {

struct F32x16 {
    float lane[16];
};
constexpr int kWide = 2, kQueries = 2;  // kWide of them for each of kQueries fit the registers, beside what they are multiplied with
struct I32x16 {
    int32_t lane[16];
};
// A line of weights: 16 outputs x 4 consecutive inputs.
struct Bytes64 {
    uint8_t byte[64];
};

template <class F>
inline F32x16 each(F f) {
    F32x16 out;
    for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
    return out;
}

inline F32x16 broadcast(float x) {
    return each([&](int) { return x; });
}
inline F32x16 load(const float* p) {
    return each([&](int i) { return p[i]; });
}
inline void store(float* p, F32x16 x) { std::memcpy(p, x.lane, sizeof x.lane); }
inline F32x16 add(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline F32x16 div(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
inline F32x16 max(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F32x16 min(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F32x16 absolute(F32x16 a) {
    return each([&](int i) { return std::fabs(a.lane[i]); });
}

inline I32x16 round_to_int(F32x16 a) {
    I32x16 out;
    for (int i = 0; i < 16; ++i) {
        const float x = std::nearbyintf(a.lane[i]);
        out.lane[i] = x >= -0x1p31f && x < 0x1p31f ? static_cast<int32_t>(x) : INT32_MIN;  // as the hardware does
    }
    return out;
}
inline F32x16 to_float(I32x16 a) {
    return each([&](int i) { return static_cast<float>(a.lane[i]); });
}
inline I32x16 add(I32x16 a, int32_t b) {
    for (int32_t& x : a.lane) x += b;
    return a;
}
inline I32x16 add(I32x16 a, I32x16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
}
// 2^n for -126 <= n <= 127.
inline F32x16 power_of_two(I32x16 n) {
    return each([&](int i) {
        const uint32_t bits = static_cast<uint32_t>(n.lane[i] + 127) << 23;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    });
}

// Reductions pair lanes i and i + 8, then + 4, + 2, + 1.
inline float sum(F32x16 a) {
    for (int step = 8; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) a.lane[i] += a.lane[i + step];
    return a.lane[0];
}
inline float largest(F32x16 a) {
    for (int step = 8; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) a.lane[i] = a.lane[i] > a.lane[i + step] ? a.lane[i] : a.lane[i + step];
    return a.lane[0];
}

inline int32_t sum(I32x16 a) { return std::accumulate(a.lane, a.lane + 16, 0); }

inline F32x16 load_bf16(const uint16_t* p) {
    return each([&](int i) {
        const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    });
}
inline F32x16 load_int8(const int8_t* p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
}
inline F32x16 load_f16(const uint16_t* p) {
    return each([&](int i) { return half_to_float(p[i]); });
}
// Round to nearest even, as PyTorch does; the low halves of 32-bit lanes.
inline void store_bf16(uint16_t* p, F32x16 x) {
    for (int i = 0; i < 16; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &x.lane[i], 4);
        p[i] = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }
}
// Lanes within -127 .. 127 to bytes.
inline void store_int8(int8_t* p, I32x16 x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.lane[i]);
}

inline Bytes64 load_line(const uint8_t* p) {
    Bytes64 out;
    std::memcpy(out.byte, p, 64);
    return out;
}
inline Bytes64 low_nibbles(Bytes64 a) {
    for (uint8_t& b : a.byte) b &= 15;
    return a;
}
inline Bytes64 high_nibbles(Bytes64 a) {
    for (uint8_t& b : a.byte) b >>= 4;
    return a;
}

// Exact sums over up to 8 lines of nibbles times int8 activations.
struct NibbleSum {
    I32x16 total_{};
    void add(Bytes64 weights, const int8_t* four) {
        for (int o = 0; o < 16; ++o)
            for (int j = 0; j < 4; ++j) total_.lane[o] += weights.byte[4 * o + j] * four[j];
    }
    I32x16 total(int32_t) const { return total_; }
};
// Exact sums of int8 weights times int8 activations.
struct ByteSum {
    I32x16 total_{};
    void add(Bytes64 weights, const int8_t* four) {
        for (int o = 0; o < 16; ++o)
            for (int j = 0; j < 4; ++j) total_.lane[o] += static_cast<int8_t>(weights.byte[4 * o + j]) * four[j];
    }
    I32x16 total(int32_t) const { return total_; }
};

// Codes of Q4T, made unsigned, for nibbles.
inline Bytes64 codes_of(Bytes64 nibbles) {
    for (uint8_t& b : nibbles.byte) b = static_cast<uint8_t>(Q4T::codes[b] + Q4T::code_offset);
    return nibbles;
}
// A group's steps.
using Steps = I32x16;
inline Steps load_steps(const uint8_t* numbers, int half) {
    Steps steps;
    for (int o = 0; o < 16; ++o) steps.lane[o] = Q4T::steps[half ? numbers[o] >> 4 : numbers[o] & 15];
    return steps;
}
// Exact sums of step x code x activation.
struct StepSum {
    I32x16 total_{};
    void begin(const Steps& steps, int32_t sum) {
        for (int o = 0; o < 16; ++o) total_.lane[o] -= steps.lane[o] * Q4T::code_offset * sum;
    }
    void add(int, Bytes64 codes, const int8_t* four, const Steps& steps) {
        for (int o = 0; o < 16; ++o)
            for (int j = 0; j < 4; ++j) total_.lane[o] += steps.lane[o] * (codes.byte[4 * o + j] * four[j]);
    }
    I32x16 total() const { return total_; }
};

inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace cierzo::CIERZO_TARGET
