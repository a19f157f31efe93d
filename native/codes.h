// The codes and steps of Q4T as bytes that shuffles look up, repeated to fill N.
#pragma once
#include <array>

#include "format.h"

namespace cierzo {

template <int N>
constexpr std::array<int8_t, N> code_bytes() {
    std::array<int8_t, N> bytes{};
    for (int i = 0; i < N; ++i) bytes[i] = static_cast<int8_t>(Q4T::codes[i % 16] + Q4T::code_offset);
    return bytes;
}

template <int N>
constexpr std::array<int8_t, N> signed_code_bytes() {
    std::array<int8_t, N> bytes{};
    for (int i = 0; i < N; ++i) bytes[i] = static_cast<int8_t>(Q4T::codes[i % 16]);
    return bytes;
}

template <int N>
constexpr std::array<int8_t, N> step_bytes() {
    std::array<int8_t, N> bytes{};
    for (int i = 0; i < N; ++i) bytes[i] = static_cast<int8_t>(Q4T::steps[i % 16]);
    return bytes;
}

// What a step's product with an unsigned code lacks to a weight + `offset`, modulo 256.
template <int N>
constexpr std::array<int8_t, N> shift_bytes(int offset) {
    std::array<int8_t, N> bytes{};
    for (int i = 0; i < N; ++i) bytes[i] = static_cast<int8_t>(offset - Q4T::code_offset * Q4T::steps[i % 16]);
    return bytes;
}

}  // namespace cierzo
