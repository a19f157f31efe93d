// Layers that see the whole text, with norms behind each sum, as BERT has them (arXiv:1810.04805).
#pragma once
#include <cstddef>
#include <vector>

#include "matrix.h"

namespace cierzo {

struct EncoderLayer {
    const Matrix *qkv, *out, *up, *down;
    const float *qkv_bias, *out_bias, *up_bias, *down_bias;
    const float *attention_norm, *ffn_norm;  // [2, D], weight and bias
};

// x [T, D] becomes the last layer's result; the mean over the text of each layer's goes to means [layers, D]. On the calling
// thread alone.
void encode(float* x, size_t n_rows, const std::vector<EncoderLayer>& layers, size_t n_heads, float eps, float* means);

}  // namespace cierzo
