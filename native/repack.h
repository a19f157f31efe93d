// GGUF's quantised blocks into packed matrices, value by value.
#pragma once
#include <cstddef>
#include <cstdint>

#include "matrix.h"

namespace cierzo {

// ggml's numbers of the block types that can be taken over: Q4_0, Q4_1, Q8_0 to the bit; Q4_K's scales and minima, each a
// product of two numbers, are rounded to float16.
enum class Blocks : int { q4_0 = 2, q4_1 = 3, q8_0 = 8, q4_k = 12 };

// Rows of blocks, [outputs, bytes], as they lie in a file, into `out`, the memory of a matrix like `shape`. Returns false
// when a scale or minimum is not finite in float16. Throws std::invalid_argument when the bytes do not fit.
bool repack(int blocks, const uint8_t* raw, size_t bytes, const Matrix& shape, uint8_t* out);

}  // namespace cierzo
