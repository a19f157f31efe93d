// Sixteen lanes as four NEON registers, with the dot products of bytes that ARMv8.2 may have.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "../codes.h"

namespace cierzo::CIERZO_TARGET {

struct F32x16 {
    float32x4_t v[4];
};
constexpr int kWide = 2, kQueries = 2;  // kWide of them for each of kQueries fit the registers, beside what they are multiplied with
struct I32x16 {
    int32x4_t v[4];
};
// A line of weights: 16 outputs x 4 consecutive inputs, so that each register has those of 4 outputs.
struct Bytes64 {
    int8x16_t v[4];
};

template <class F>
inline F32x16 each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
}
template <class F>
inline I32x16 each_int(F f) {
    return {{f(0), f(1), f(2), f(3)}};
}
template <class F>
inline Bytes64 each_bytes(F f) {
    return {{f(0), f(1), f(2), f(3)}};
}

inline F32x16 broadcast(float x) {
    return each([&](int) { return vdupq_n_f32(x); });
}
inline F32x16 load(const float* p) {
    return each([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, F32x16 x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
inline F32x16 add(F32x16 a, F32x16 b) {
    return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
    return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline F32x16 div(F32x16 a, F32x16 b) {
    return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// Of NaN and a number b, as x86 has it; NEON's own instructions differ there.
inline float32x4_t greater(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32x16 max(F32x16 a, F32x16 b) {
    return each([&](int i) { return greater(a.v[i], b.v[i]); });
}
inline F32x16 min(F32x16 a, F32x16 b) {
    return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline F32x16 absolute(F32x16 a) {
    return each([&](int i) { return vabsq_f32(a.v[i]); });
}

inline I32x16 round_to_int(F32x16 a) {
    return each_int([&](int i) { return vcvtnq_s32_f32(a.v[i]); });
}
inline F32x16 to_float(I32x16 a) {
    return each([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
inline I32x16 add(I32x16 a, int32_t b) {
    return each_int([&](int i) { return vaddq_s32(a.v[i], vdupq_n_s32(b)); });
}
inline I32x16 add(I32x16 a, I32x16 b) {
    return each_int([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
// 2^n for -126 <= n <= 127.
inline F32x16 power_of_two(I32x16 n) {
    return each([&](int i) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23)); });
}

// Reductions pair lanes i and i + 8, then + 4, + 2, + 1.
template <class Two>
inline float reduce(F32x16 a, Two two) {
    const float32x4_t four = two(two(a.v[0], a.v[2]), two(a.v[1], a.v[3]));
    const float32x4_t pair = two(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(two(pair, vextq_f32(pair, pair, 1)), 0);
}
inline float sum(F32x16 a) { return reduce(a, [](float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); }); }
inline float largest(F32x16 a) { return reduce(a, greater); }

inline int32_t sum(I32x16 a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }

inline F32x16 load_bf16(const uint16_t* p) {
    return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline I32x16 widened(int8x16_t bytes) {
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
}
inline F32x16 load_int8(const int8_t* p) { return to_float(widened(vld1q_s8(p))); }
inline F32x16 load_f16(const uint16_t* p) {
    return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
// Round to nearest even, as PyTorch does.
inline void store_bf16(uint16_t* p, F32x16 x) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t bits = vreinterpretq_u32_f32(x.v[i]);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        vst1_u16(p + 4 * i, vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd), 16));
    }
}
// Lanes within -127 .. 127 to bytes.
inline void store_int8(int8_t* p, I32x16 x) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

inline Bytes64 load_line(const uint8_t* p) {
    return each_bytes([&](int i) { return vreinterpretq_s8_u8(vld1q_u8(p + 16 * i)); });
}
inline Bytes64 low_nibbles(Bytes64 a) {
    return each_bytes([&](int i) { return vandq_s8(a.v[i], vdupq_n_s8(15)); });
}
inline Bytes64 high_nibbles(Bytes64 a) {
    return each_bytes([&](int i) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a.v[i]), 4)); });
}

// Exact sums of weights, int8 or nibbles, times int8 activations.
struct ByteSum {
    I32x16 sum = each_int([](int) { return vdupq_n_s32(0); });
    void add(Bytes64 weights, const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, 4);
        const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(word));
        sum = each_int([&](int i) { return vdotq_s32(sum.v[i], weights.v[i], a); });
    }
    I32x16 total(int32_t) const { return sum; }
};
using NibbleSum = ByteSum;

// Codes of Q4T for nibbles; dot products take signed ones as they are.
inline Bytes64 codes_of(Bytes64 nibbles) {
    alignas(16) static constexpr auto table = signed_code_bytes<16>();
    const int8x16_t codes = vld1q_s8(table.data());
    return each_bytes([&](int i) { return vqtbl1q_s8(codes, vreinterpretq_u8_s8(nibbles.v[i])); });
}
// A group's steps.
using Steps = I32x16;
inline Steps load_steps(const uint8_t* numbers, int half) {
    alignas(16) static constexpr auto table = step_bytes<16>();
    const uint8x16_t both = vld1q_u8(numbers);
    return widened(vqtbl1q_s8(vld1q_s8(table.data()), half ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15))));
}
// Exact sums of step x code x activation.
struct StepSum {
    I32x16 sum = each_int([](int) { return vdupq_n_s32(0); });
    ByteSum group;
    void begin(const Steps&, int32_t) { group = {}; }
    void add(int line, Bytes64 codes, const int8_t* four, const Steps& steps) {
        group.add(codes, four);
        if (line == 7) sum = each_int([&](int i) { return vmlaq_s32(sum.v[i], group.sum.v[i], steps.v[i]); });
    }
    I32x16 total() const { return sum; }
};

inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace cierzo::CIERZO_TARGET
