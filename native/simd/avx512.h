// Sixteen lanes as one AVX-512 register, with VNNI's products of bytes.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../codes.h"

namespace cierzo::CIERZO_TARGET {

struct F32x16 {
    __m512 v;
};
constexpr int kWide = 4, kQueries = 4;  // kWide of them for each of kQueries fit the registers, beside what they are multiplied with
struct I32x16 {
    __m512i v;
};
// A line of weights: 16 outputs x 4 consecutive inputs.
struct Bytes64 {
    __m512i v;
};

inline F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 absolute(F32x16 a) { return {_mm512_abs_ps(a.v)}; }

inline I32x16 round_to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32x16 add(I32x16 a, int32_t b) { return {_mm512_add_epi32(a.v, _mm512_set1_epi32(b))}; }
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
// 2^n for -126 <= n <= 127.
inline F32x16 power_of_two(I32x16 n) { return {_mm512_castsi512_ps(_mm512_slli_epi32(add(n, 127).v, 23))}; }

// Reductions pair lanes i and i + 8, then + 4, + 2, + 1.
inline float sum(F32x16 a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(F32x16 a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline int32_t sum(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }

inline F32x16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F32x16 load_int8(const int8_t* p) {
    return to_float(I32x16{_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))});
}
inline F32x16 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Round to nearest even, as PyTorch does; the processor's own conversion would make small numbers zero.
inline void store_bf16(uint16_t* p, F32x16 x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
// Lanes within -127 .. 127 to bytes.
inline void store_int8(int8_t* p, I32x16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x.v));
}

inline Bytes64 load_line(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes64 low_nibbles(Bytes64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Bytes64 high_nibbles(Bytes64 a) { return low_nibbles({_mm512_srli_epi16(a.v, 4)}); }

inline __m512i broadcast_four(const int8_t* four) {
    int32_t word;
    std::memcpy(&word, four, 4);
    return _mm512_set1_epi32(word);
}

// Exact sums of nibbles times int8 activations.
struct NibbleSum {
    __m512i v = _mm512_setzero_si512();
    void add(Bytes64 weights, const int8_t* four) { v = _mm512_dpbusd_epi32(v, weights.v, broadcast_four(four)); }
    I32x16 total(int32_t) const { return {v}; }
};
// Exact sums of int8 weights times int8 activations; weights are made unsigned by adding 128, which `total` takes off.
struct ByteSum {
    __m512i v = _mm512_setzero_si512();
    void add(Bytes64 weights, const int8_t* four) {
        const __m512i shifted = _mm512_xor_si512(weights.v, _mm512_set1_epi8(static_cast<char>(0x80)));
        v = _mm512_dpbusd_epi32(v, shifted, broadcast_four(four));
    }
    I32x16 total(int32_t activations) const { return {_mm512_sub_epi32(v, _mm512_set1_epi32(128 * activations))}; }
};

// Codes of Q4T, made unsigned, for nibbles.
inline Bytes64 codes_of(Bytes64 nibbles) {
    alignas(64) static constexpr auto table = code_bytes<64>();
    return {_mm512_shuffle_epi8(_mm512_load_si512(table.data()), nibbles.v)};
}
// A group's steps.
struct Steps {
    __m512i v;
};
inline Steps load_steps(const uint8_t* numbers, int half) {
    alignas(16) static constexpr auto table = step_bytes<16>();
    __m128i n = _mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers));
    n = _mm_and_si128(half ? _mm_srli_epi16(n, 4) : n, _mm_set1_epi8(15));
    return {_mm512_cvtepi8_epi32(_mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(table.data())), n))};
}
// Exact sums of step x code x activation; a group's sum of unsigned codes begins with what takes their offset off.
struct StepSum {
    __m512i total_ = _mm512_setzero_si512(), group;
    void begin(const Steps&, int32_t sum) { group = _mm512_set1_epi32(-Q4T::code_offset * sum); }
    void add(int line, Bytes64 codes, const int8_t* four, const Steps& steps) {
        group = _mm512_dpbusd_epi32(group, codes.v, broadcast_four(four));
        if (line == 7) total_ = _mm512_add_epi32(total_, _mm512_mullo_epi32(group, steps.v));
    }
    I32x16 total() const { return {total_}; }
};

inline void prefetch(const void* p) { asm volatile("prefetcht0 (%0)" ::"r"(p)); }

}  // namespace cierzo::CIERZO_TARGET
