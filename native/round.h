// Weights to the nearest that Q4T has: which scale, which steps.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "half.h"
#include "kernels.h"

namespace cierzo::CIERZO_TARGET {

// The nearest codes: between -4 and 5 they are all whole numbers, beyond each threshold the next is further away.
inline F32x16 nearest_codes(F32x16 z) {
    const auto within = [](F32x16 x, float low, float high) { return max(broadcast(low), min(broadcast(high), x)); };
    const F32x16 near = within(to_float(round_to_int(within(z, -13.0f, 13.0f))), -4.0f, 5.0f);
    const auto beyond = [&](float threshold, float size) {  // 0, or size where z is further from zero
        const F32x16 over = mul(add(z, broadcast(-threshold)), broadcast(threshold > 0 ? 1e30f : -1e30f));
        return mul(within(over, 0.0f, 1.0f), broadcast(size));
    };
    const F32x16 up = add(add(beyond(6.0f, 2.0f), beyond(8.0f, 2.0f)), beyond(10.5f, 3.0f));
    const F32x16 down = add(add(beyond(-5.0f, -2.0f), beyond(-7.0f, -2.0f)), beyond(-9.5f, -3.0f));
    return add(near, add(up, down));
}

// Squared error of a group's weights when a code stands for code x unit, by importance where each has one.
template <bool kImportance>
inline float group_error(const float* w, const float* importance, float unit) {
    const F32x16 inverse = broadcast(1.0f / unit), minus = broadcast(-unit);
    F32x16 total = broadcast(0);
    for (int i = 0; i < kGroup; i += 16) {
        const F32x16 weights = load(w + i), error = fma(nearest_codes(mul(weights, inverse)), minus, weights);
        total = fma(kImportance ? mul(error, load(importance + i)) : error, error, total);
    }
    return sum(total);
}

// The largest weight of a group, and minus its smallest.
struct Reach {
    float up = 0, down = 0;
    explicit Reach(const float* w) {
        for (int i = 0; i < kGroup; ++i) up = std::max(up, w[i]), down = std::max(down, -w[i]);
    }
};

// The best step of a group for a scale, and the squared error with it.
template <bool kImportance>
inline float choose_step(const float* w, const float* importance, float scale, Reach reach, uint8_t* chosen) {
    float best = -1;
    for (int number = 0; number < 16; ++number) {
        const int step = Q4T::steps[number];
        // Steps that would cut off more than a third, or leave more than one step unused, are hardly ever best.
        const float up = step > 0 ? reach.up : reach.down, down = step > 0 ? reach.down : reach.up;
        const float needed = std::max(up / 12, down / 11) / scale, size = static_cast<float>(std::abs(step));
        if (best >= 0 && (size < needed * 0.66f || size > needed + 1.5f)) continue;
        const float error = group_error<kImportance>(w, importance, scale * static_cast<float>(step));
        if (best < 0 || error < best) {
            best = error;
            *chosen = static_cast<uint8_t>(number);
        }
    }
    return best;
}

inline void best_steps(const float* w, const float* importance, const float* scales, size_t groups, uint8_t* steps) {
    for (size_t g = 0; g < groups; ++g) {
        const float* own = w + g * kGroup;
        steps[g] = 0;
        if (scales[g] > 0) choose_step<true>(own, importance + g * kGroup, scales[g], Reach(own), steps + g);
    }
}

// The scale that is best for chosen codes, by least squares.
inline float refitted(const float* w, size_t groups, float scale, const uint8_t* steps) {
    F32x16 along = broadcast(0), square = broadcast(0);
    for (size_t i = 0; i < groups * kGroup; i += 16) {
        const float step = static_cast<float>(Q4T::steps[steps[i / kGroup]]);
        const F32x16 weights = load(w + i);
        const F32x16 value = mul(nearest_codes(mul(weights, broadcast(1.0f / (scale * step)))), broadcast(step));
        along = fma(value, weights, along);
        square = fma(value, value, square);
    }
    const float size = sum(square);
    return size > 0 ? sum(along) / size : scale;
}

// Scales from three quarters of the one that holds the largest weight are tried, and the best is fitted to its codes.
inline uint16_t round_span(const float* weights, size_t n, uint8_t* steps, uint8_t* nibbles) {
    const size_t groups = (n + kGroup - 1) / kGroup;
    float w[kSpan] = {}, peak = 0;
    std::copy_n(weights, n, w);
    for (size_t g = 0; g < groups; ++g) peak = std::max({peak, Reach(w + g * kGroup).up, Reach(w + g * kGroup).down});
    uint16_t best = 0;
    float least = -1;
    uint8_t tried[kSpan / kGroup];
    const auto consider = [&](float scale) {
        const uint16_t half = float_to_half(scale);
        if (!finite(half) || half_to_float(half) == 0) return;
        float error = 0;
        for (size_t g = 0; g < groups; ++g) {
            const float* own = w + g * kGroup;
            error += choose_step<false>(own, nullptr, half_to_float(half), Reach(own), tried + g);
        }
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
    for (size_t i = 0; i < groups * kGroup; i += 16) {
        const float unit = half_to_float(best) * static_cast<float>(Q4T::steps[steps[i / kGroup]]);
        float codes[16];
        store(codes, nearest_codes(mul(load(w + i), broadcast(1.0f / unit))));
        for (int j = 0; j < 16; ++j) {
            nibbles[i + j] = 0;
            while (Q4T::codes[nibbles[i + j]] < static_cast<int>(codes[j])) ++nibbles[i + j];
        }
    }
    return best;
}

}  // namespace cierzo::CIERZO_TARGET
