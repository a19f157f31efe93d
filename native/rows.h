// Work on single rows: norm, activations to int8, SwiGLU, conversions.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"

namespace cierzo::CIERZO_TARGET {

// Lanes [0, n) of memory, the rest 0.
inline F32x16 load_some(const float* p, size_t n) {
    if (n >= 16) return load(p);
    float lanes[16] = {};
    for (size_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}

inline void store_some(float* p, F32x16 x, size_t n) {
    if (n >= 16) return store(p, x);
    float lanes[16];
    store(lanes, x);
    for (size_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// e^x to about 2 units in the last place (Cephes' expf); x below -87 gives about 1e-38, NaN stays NaN.
inline F32x16 exponential(F32x16 x) {
    x = max(broadcast(-87.0f), min(broadcast(88.0f), x));
    const I32x16 n = round_to_int(mul(x, broadcast(1.44269504088896341f)));
    const F32x16 whole = to_float(n);
    F32x16 r = fma(whole, broadcast(-0.693359375f), x);
    r = fma(whole, broadcast(2.12194440e-4f), r);
    F32x16 y = broadcast(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = fma(y, r, broadcast(c));
    y = add(fma(mul(r, r), y, r), broadcast(1.0f));
    return mul(y, power_of_two(n));
}

inline void norm(const float* x, const float* weight, float eps, size_t n, float* out) {
    F32x16 squares = broadcast(0);
    for (size_t i = 0; i < n; i += 16) {
        const F32x16 v = load_some(x + i, n - i);
        squares = fma(v, v, squares);
    }
    const F32x16 by = broadcast(1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps));
    for (size_t i = 0; i < n; i += 16)
        store_some(out + i, mul(mul(load_some(x + i, n - i), load_some(weight + i, n - i)), by), n - i);
}

// x becomes its LayerNorm (arXiv:1607.06450), times weight [n] plus bias [n], which lie one behind the other.
inline void layer_norm(float* x, const float* weight_and_bias, float eps, size_t n) {
    const float *weight = weight_and_bias, *bias = weight_and_bias + n;
    F32x16 total = broadcast(0), squares = broadcast(0);
    for (size_t i = 0; i < n; i += 16) total = add(total, load_some(x + i, n - i));
    const F32x16 minus_mean = broadcast(-sum(total) / static_cast<float>(n));
    for (size_t i = 0; i < n; i += 16) {
        const F32x16 v = add(load_some(x + i, n - i), minus_mean);
        store_some(x + i, v, n - i);
        const F32x16 kept = load_some(x + i, n - i);  // beyond the end 0
        squares = fma(kept, kept, squares);
    }
    const F32x16 by = broadcast(1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps));
    for (size_t i = 0; i < n; i += 16)
        store_some(x + i, fma(mul(load_some(x + i, n - i), by), load_some(weight + i, n - i), load_some(bias + i, n - i)),
                   n - i);
}

constexpr float kSmallest = 1e-30f;  // below, a span is 0: 127 / peak would not be finite

// A span with NaN or infinite numbers gets the scale NaN, so that whoever looks at the results sees it.
//
// Sixteen spans at a time: their divisions are vectors', and that all numbers are finite is asked once.
inline void quantize(const float* x, size_t n, size_t padded, size_t span, int8_t* values, size_t stride, float* scales,
                     int32_t* sums, int32_t* totals) {
    const F32x16 minus = broadcast(-1.0f);
    const auto part = [&](size_t i) { return load_some(x + i, i < n ? n - i : 0); };
    const auto oddness = [&](size_t i) { return fma(part(i), minus, part(i)); };  // x - x: 0, but NaN where x is not finite
    const size_t spans = (padded + span - 1) / span;
    for (size_t first = 0; first < spans; first += 16) {
        const size_t count = std::min<size_t>(16, spans - first);
        const auto start_of = [&](size_t s) { return std::min((first + s) * span, padded); };
        float peaks[16] = {}, inverses[16];
        bool finite[16];
        std::fill(finite, finite + 16, true);
        F32x16 odd = broadcast(0);
        for (size_t s = 0; s < count; ++s) {
            F32x16 top = broadcast(0);
            for (size_t i = start_of(s); i < start_of(s + 1); i += 16) {
                top = max(top, absolute(part(i)));
                odd = add(odd, oddness(i));
            }
            peaks[s] = largest(top);
        }
        if (sum(odd) != 0)
            for (size_t s = 0; s < count; ++s) {
                F32x16 own = broadcast(0);
                for (size_t i = start_of(s); i < start_of(s + 1); i += 16) own = add(own, oddness(i));
                finite[s] = sum(own) == 0;
                if (!finite[s]) peaks[s] = 0;
            }
        for (int s = 0; s < 16; ++s) {
            peaks[s] = peaks[s] > kSmallest ? peaks[s] : 0;
            const float inverse = 127.0f / (peaks[s] > 0 ? peaks[s] : 1);
            inverses[s] = peaks[s] > 0 ? inverse : 0;
            peaks[s] /= 127.0f;
        }
        for (size_t s = 0; s < count; ++s) {
            const F32x16 inverse = broadcast(inverses[s]);
            const auto rounded = [&](size_t i) { return round_to_int(mul(finite[s] ? part(i) : minus, inverse)); };
            int32_t total = 0;
            for (size_t i = start_of(s); i < start_of(s + 1); i += kGroup) {
                const I32x16 a = rounded(i), b = rounded(i + 16);
                int8_t* to = values + i / kTile * stride + i % kTile;
                store_int8(to, a);
                store_int8(to + 16, b);
                total += sums[i / kGroup] = sum(add(a, b));
            }
            scales[first + s] = finite[s] ? peaks[s] : std::numeric_limits<float>::quiet_NaN();
            totals[first + s] = total;
        }
    }
}

inline void put_panel(const float* results, size_t n, size_t columns, const float* residual, size_t width, float* out) {
    for (size_t r = 0; r < n; ++r, results += kPanel, out += width) {
        const F32x16 before = residual ? load_some(residual + r * width, columns) : broadcast(0);
        store_some(out, add(load(results), before), columns);
    }
}

inline void swiglu(const float* gate, const float* up, float* out, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        const F32x16 g = load(gate + i);
        const F32x16 decay = add(exponential(mul(g, broadcast(-1.0f))), broadcast(1.0f));
        store(out + i, mul(div(g, decay), load(up + i)));
    }
}

// x becomes gelu(x) = x / 2 + |x| erf(|x| / sqrt 2) / 2 (arXiv:1606.08415), erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
inline void gelu(float* x, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        const F32x16 v = load_some(x + i, n - i), size = absolute(v), z = mul(size, broadcast(0.70710678118f));
        const F32x16 t = div(broadcast(1.0f), fma(z, broadcast(0.3275911f), broadcast(1.0f)));
        F32x16 y = broadcast(1.061405429f);
        for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) y = fma(y, t, broadcast(c));
        const F32x16 rest = mul(mul(y, t), exponential(mul(mul(z, z), broadcast(-1.0f))));
        const F32x16 erf = add(broadcast(1.0f), mul(rest, broadcast(-1.0f)));
        store_some(x + i, mul(fma(size, erf, v), broadcast(0.5f)), n - i);
    }
}

inline void exponentials(const float* x, size_t n, float peak, float temperature, float* out) {
    for (size_t i = 0; i < n; i += 16) {
        const F32x16 below = add(load_some(x + i, n - i), broadcast(-peak));
        store_some(out + i, exponential(div(below, broadcast(temperature))), n - i);
    }
}

inline void to_bf16(const float* x, uint16_t* out, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) store_bf16(out + i, load(x + i));
    if (i < n) {
        uint16_t lanes[16];
        store_bf16(lanes, load_some(x + i, n - i));
        for (size_t j = 0; i + j < n; ++j) out[i + j] = lanes[j];
    }
}

}  // namespace cierzo::CIERZO_TARGET
