// Weights to the nearest that Q4T has: which scale, which steps.
#pragma once
#include <cstdint>

#include "half.h"
#include "kernels.h"

namespace cierzo::CIERZO_TARGET {

// The nearest code, as plain arithmetic that compilers make vectors of: between -4 and 5 codes are all integers.
inline float nearest_code(float z) {
    z = z < -13.0f ? -13.0f : z > 13.0f ? 13.0f : z;
    constexpr float round = 12582912.0f;  // 1.5 x 2^23: adding it leaves no place for a fraction
    float code = (z + round) - round;
    code = code < -4.0f ? -4.0f : code > 5.0f ? 5.0f : code;
    code += (z > 6.0f ? 2.0f : 0.0f) + (z > 8.0f ? 2.0f : 0.0f) + (z > 10.5f ? 3.0f : 0.0f);
    return code - (z < -5.0f ? 2.0f : 0.0f) - (z < -7.0f ? 2.0f : 0.0f) - (z < -9.5f ? 3.0f : 0.0f);
}

// Squared error of a group's weights when a code stands for code x unit.
inline float group_error(const float* w, float unit) {
    const float inverse = 1.0f / unit;
    float errors[16] = {};
    for (int at = 0; at < kGroup; at += 16)
        for (int i = 0; i < 16; ++i) {
            const float error = w[at + i] - nearest_code(w[at + i] * inverse) * unit;
            errors[i] += error * error;
        }
    float total = 0;
    for (const float error : errors) total += error;
    return total;
}

// The best step of each group for a scale, and the squared error with them.
inline float choose_steps(const float* w, size_t groups, float scale, const float* highest, const float* lowest, uint8_t* steps) {
    float total = 0;
    for (size_t g = 0; g < groups; ++g) {
        float best = -1;
        for (int number = 0; number < 16; ++number) {
            const int step = Q4T::steps[number];
            // Steps that would cut off more than a third, or leave more than one step unused, are never best.
            const float up = step > 0 ? highest[g] : lowest[g], down = step > 0 ? lowest[g] : highest[g];
            const float needed = (up / 12 > down / 11 ? up / 12 : down / 11) / scale, size = static_cast<float>(step < 0 ? -step : step);
            if (best >= 0 && (size < needed * 0.66f || size > needed + 1.5f)) continue;
            const float error = group_error(w + g * kGroup, scale * static_cast<float>(step));
            if (best < 0 || error < best) {
                best = error;
                steps[g] = static_cast<uint8_t>(number);
            }
        }
        total += best;
    }
    return total;
}

// The scale that is best for chosen codes, by least squares.
inline float refitted(const float* w, size_t groups, float scale, const uint8_t* steps) {
    float along = 0, square = 0;
    for (size_t i = 0; i < groups * kGroup; ++i) {
        const float step = static_cast<float>(Q4T::steps[steps[i / kGroup]]);
        const float value = nearest_code(w[i] / (scale * step)) * step;
        along += value * w[i];
        square += value * value;
    }
    return square > 0 ? along / square : scale;
}

// Scales from three quarters of the one that holds the largest weight are tried, and the best is fitted to its codes.
inline uint16_t round_span(const float* weights, size_t n, uint8_t* steps, uint8_t* nibbles) {
    const size_t groups = (n + kGroup - 1) / kGroup;
    float w[kSpan] = {}, highest[kSpan / kGroup] = {}, lowest[kSpan / kGroup] = {}, peak = 0;
    for (size_t i = 0; i < n; ++i) {
        w[i] = weights[i];
        if (w[i] > highest[i / kGroup]) highest[i / kGroup] = w[i];
        if (-w[i] > lowest[i / kGroup]) lowest[i / kGroup] = -w[i];
        const float size = w[i] < 0 ? -w[i] : w[i];
        if (size > peak) peak = size;
    }
    uint16_t best = 0;
    float least = -1;
    uint8_t tried[kSpan / kGroup];
    const auto consider = [&](float scale) {
        const uint16_t half = float_to_half(scale);
        if (!finite(half) || half_to_float(half) == 0) return;
        const float error = choose_steps(w, groups, half_to_float(half), highest, lowest, tried);
        if (least >= 0 && error >= least) return;
        least = error;
        best = half;
        for (size_t g = 0; g < groups; ++g) steps[g] = tried[g];
    };
    for (const float part : {1.08f, 1.0f, 0.94f, 0.88f, 0.82f, 0.75f}) consider(peak * part / Q4T::largest);
    if (least < 0) {  // nothing but zeros, or too large for float16, which the caller is told by the scale
        for (size_t g = 0; g < groups; ++g) steps[g] = 0;
        for (size_t i = 0; i < groups * kGroup; ++i) nibbles[i] = 7;
        return float_to_half(peak / Q4T::largest);
    }
    consider(refitted(w, groups, half_to_float(best), steps));
    for (size_t i = 0; i < groups * kGroup; ++i) {
        const float unit = half_to_float(best) * static_cast<float>(Q4T::steps[steps[i / kGroup]]);
        const int code = static_cast<int>(nearest_code(w[i] / unit));
        nibbles[i] = 0;
        while (Q4T::codes[nibbles[i]] < code) ++nibbles[i];
    }
    return best;
}

}  // namespace cierzo::CIERZO_TARGET
