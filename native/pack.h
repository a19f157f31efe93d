// Float weights into Q4T, rounded to the nearest.
#pragma once
#include <cstddef>
#include <cstdint>

#include "matrix.h"

namespace cierzo {

// Outputs [first, first + n_rows) of a matrix like `shape`, float32 [n_rows, inputs], into its memory `out`; whole panels, but
// for the last. Returns false when a scale does not fit float16. Throws std::invalid_argument when the rows do not fit.
bool pack(const float* weights, size_t n_rows, size_t first, const Matrix& shape, uint8_t* out);

// Numbers of the best steps for groups of weights, float32 [n, 32], with scales [n]; errors count by importance [n, 32].
void best_steps(const float* weights, const float* importance, const float* scales, size_t n, uint8_t* steps);

}  // namespace cierzo
