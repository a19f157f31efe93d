#include "pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "half.h"
#include "isa.h"
#include "spread.h"

namespace cierzo {

namespace {

// One output's part of a span into its panel; weights [n].
bool write_span(const float* weights, size_t n, size_t span, size_t output, size_t tiles, uint8_t* panel) {
    uint8_t steps[kSpan / kGroup] = {}, nibbles[kSpan] = {};
    const uint16_t scale = kernels().round_span(weights, n, steps, nibbles);
    uint8_t* const step_bytes = panel + spans_of(tiles) * 32;
    uint8_t* const lines = panel + CodedPanel::header(tiles);
    std::memcpy(panel + 2 * (span * kPanel + output), &scale, 2);
    for (size_t t = 0; t < kSpanTiles && span * kSpanTiles + t < tiles; ++t) {
        const size_t tile = span * kSpanTiles + t;
        step_bytes[tile * kPanel + output] = static_cast<uint8_t>(steps[2 * t] | steps[2 * t + 1] << 4);
        for (size_t i = 0; i < kGroup; ++i)
            lines[tile * 512 + i / 4 * 64 + 4 * output + i % 4] =
                static_cast<uint8_t>(nibbles[t * kTile + i] | nibbles[t * kTile + kGroup + i] << 4);
    }
    return finite(scale);
}

}  // namespace

bool pack(const float* weights, size_t n_rows, size_t first, const Matrix& shape, uint8_t* out) {
    if (shape.format != Format::q4t || first % kPanel || first + n_rows > shape.outputs ||
        (n_rows % kPanel && first + n_rows != shape.outputs))
        throw std::invalid_argument("the rows do not fit the matrix");
    const size_t size = panel_bytes(Format::q4t, shape.tiles);
    std::atomic<bool> all_finite{true};
    spread((n_rows + kPanel - 1) / kPanel, [&](size_t number) {
        uint8_t* panel = out + (first / kPanel + number) * size;
        std::memset(panel, 0, CodedPanel::header(shape.tiles));
        for (size_t output = 0; output < kPanel; ++output) {
            const size_t row = number * kPanel + output;
            for (size_t span = 0; span < spans_of(shape.tiles); ++span) {
                const size_t at = span * kSpan, n = row < n_rows ? std::min<size_t>(kSpan, shape.inputs - at) : 0;
                if (!write_span(weights + row * shape.inputs + at, n, span, output, shape.tiles, panel)) all_finite = false;
            }
        }
    });
    return all_finite;
}

void best_steps(const float* weights, const float* importance, const float* scales, size_t n, uint8_t* steps) {
    spread_runs(n, [&](size_t first, size_t last) {
        kernels().best_steps(weights + first * kGroup, importance + first * kGroup, scales + first, last - first, steps + first);
    });
}

}  // namespace cierzo
