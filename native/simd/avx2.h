// Sixteen lanes as two AVX2 registers.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../codes.h"

namespace cierzo::CIERZO_TARGET {

struct F32x16 {
    __m256 lo, hi;
};
constexpr int kWide = 2, kQueries = 2;  // kWide of them for each of kQueries fit the registers, beside what they are multiplied with
struct I32x16 {
    __m256i lo, hi;
};
// A line of weights: 16 outputs x 4 consecutive inputs.
struct Bytes64 {
    __m256i lo, hi;
};

inline F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32x16 absolute(F32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}

inline I32x16 round_to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I32x16 add(I32x16 a, int32_t b) {
    const __m256i wide = _mm256_set1_epi32(b);
    return {_mm256_add_epi32(a.lo, wide), _mm256_add_epi32(a.hi, wide)};
}
inline I32x16 add(I32x16 a, I32x16 b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
// 2^n for -126 <= n <= 127.
inline F32x16 power_of_two(I32x16 n) {
    const I32x16 biased = add(n, 127);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased.lo, 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(biased.hi, 23))};
}

// Reductions pair lanes i and i + 8, then + 4, + 2, + 1.
inline float sum(F32x16 a) {
    const __m256 eight = _mm256_add_ps(a.lo, a.hi);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(F32x16 a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline int32_t sum(I32x16 a) {
    const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    x = _mm_add_epi32(x, _mm_unpackhi_epi64(x, x));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 1)));
}

inline __m256 bf16_to_float(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline F32x16 load_bf16(const uint16_t* p) {
    return {bf16_to_float(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            bf16_to_float(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline F32x16 load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return to_float(I32x16{_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))});
}
inline F32x16 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline __m256i rounded_to_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
}
// Round to nearest even, as PyTorch does.
inline void store_bf16(uint16_t* p, F32x16 x) {
    const __m256i packed = _mm256_packus_epi32(rounded_to_bf16(x.lo), rounded_to_bf16(x.hi));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
// Lanes within -127 .. 127 to bytes.
inline void store_int8(int8_t* p, I32x16 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

inline Bytes64 load_line(const uint8_t* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline Bytes64 low_nibbles(Bytes64 a) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
inline Bytes64 high_nibbles(Bytes64 a) {
    return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)});
}

inline __m256i broadcast_four(const int8_t* four) {
    int32_t word;
    std::memcpy(&word, four, 4);
    return _mm256_set1_epi32(word);
}

// Exact sums over up to 8 lines of nibbles times int8 activations: a 16-bit sum of 16 products of at most 15 x 127.
struct NibbleSum {
    __m256i lo = _mm256_setzero_si256(), hi = _mm256_setzero_si256();
    void add(Bytes64 weights, const int8_t* four) {
        const __m256i a = broadcast_four(four);
        lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(weights.lo, a));
        hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(weights.hi, a));
    }
    I32x16 total(int32_t) const {
        const __m256i one = _mm256_set1_epi16(1);
        return {_mm256_madd_epi16(lo, one), _mm256_madd_epi16(hi, one)};
    }
};
// Exact sums of int8 weights times int8 activations within +-127: |w| is unsigned (128 included), its sign goes to the
// activation, and a pair of products (2 x 128 x 127) fits 16 bits.
struct ByteSum {
    __m256i lo = _mm256_setzero_si256(), hi = _mm256_setzero_si256();
    void add(Bytes64 weights, const int8_t* four) {
        const __m256i a = broadcast_four(four), one = _mm256_set1_epi16(1);
        const auto pairs = [&](__m256i w) {
            return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)), one);
        };
        lo = _mm256_add_epi32(lo, pairs(weights.lo));
        hi = _mm256_add_epi32(hi, pairs(weights.hi));
    }
    I32x16 total(int32_t) const { return {lo, hi}; }
};

// Codes of Q4T, made unsigned, for nibbles.
inline Bytes64 codes_of(Bytes64 nibbles) {
    alignas(32) static constexpr auto table = code_bytes<32>();
    const __m256i codes = _mm256_load_si256(reinterpret_cast<const __m256i*>(table.data()));
    return {_mm256_shuffle_epi8(codes, nibbles.lo), _mm256_shuffle_epi8(codes, nibbles.hi)};
}
// A group's steps, each twice in 16 bits, as vpmaddwd multiplies.
struct Steps {
    __m256i lo, hi;
};
inline Steps load_steps(const uint8_t* numbers, int half) {
    alignas(16) static constexpr auto table = step_bytes<16>();
    __m128i n = _mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers));
    n = _mm_and_si128(half ? _mm_srli_epi16(n, 4) : n, _mm_set1_epi8(15));
    const __m128i steps = _mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(table.data())), n);
    const auto twice = [](__m128i eight) {
        const __m256i wide = _mm256_cvtepi8_epi32(eight);
        return _mm256_blend_epi16(wide, _mm256_slli_epi32(wide, 16), 0xAA);
    };
    return {twice(steps), twice(_mm_srli_si128(steps, 8))};
}
// Exact sums of step x code x activation. Four lines of products of unsigned codes (at most 24) fit 16 bits (4 x 2 x 24 x
// 127); what the codes' offset added is taken off by the group's sum, half of it in each of the two steps of a lane.
struct StepSum {
    __m256i lo = _mm256_setzero_si256(), hi = _mm256_setzero_si256(), part_lo, part_hi;
    void begin(const Steps& steps, int32_t sum) {
        const __m256i less = _mm256_set1_epi16(static_cast<int16_t>(sum * (-Q4T::code_offset / 2)));
        lo = _mm256_add_epi32(lo, _mm256_madd_epi16(less, steps.lo));
        hi = _mm256_add_epi32(hi, _mm256_madd_epi16(less, steps.hi));
    }
    void add(int line, Bytes64 codes, const int8_t* four, const Steps& steps) {
        const __m256i a = broadcast_four(four);
        const __m256i x = _mm256_maddubs_epi16(codes.lo, a), y = _mm256_maddubs_epi16(codes.hi, a);
        part_lo = line % 4 ? _mm256_add_epi16(part_lo, x) : x;
        part_hi = line % 4 ? _mm256_add_epi16(part_hi, y) : y;
        if (line % 4 == 3) {
            lo = _mm256_add_epi32(lo, _mm256_madd_epi16(part_lo, steps.lo));
            hi = _mm256_add_epi32(hi, _mm256_madd_epi16(part_hi, steps.hi));
        }
    }
    I32x16 total() const { return {lo, hi}; }
};

// As assembly: gcc 12 moves _mm_prefetch out of loops, which costs a third of the bandwidth.
inline void prefetch(const void* p) { asm volatile("prefetcht0 (%0)" ::"r"(p)); }

}  // namespace cierzo::CIERZO_TARGET
