// float16 in plain C++, for what is not worth an instruction set.
#pragma once
#include <cstdint>
#include <cstring>

namespace cierzo {

inline float half_to_float(uint16_t h) {
    const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    float x;
    if (exponent == 0) {
        x = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -x : x;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | fraction << 13;
    std::memcpy(&x, &bits, 4);
    return x;
}

// To nearest, ties to even; what does not fit becomes an infinity.
inline uint16_t float_to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
    if (rest >= 0x7F800000u) return static_cast<uint16_t>(sign | 0x7C00u | (rest > 0x7F800000u ? 0x200u : 0));
    if (rest >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
    if (rest < 0x38800000u) {  // below the smallest normal number: adding 0.5 leaves the rounded fraction
        float small;
        std::memcpy(&small, &rest, 4);
        small += 0.5f;
        std::memcpy(&bits, &small, 4);
        return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
    }
    return static_cast<uint16_t>(sign | ((rest + 0xFFFu + (rest >> 13 & 1)) - 0x38000000u) >> 13);
}

inline bool finite(uint16_t half) { return (half & 0x7C00u) != 0x7C00u; }

}  // namespace cierzo
