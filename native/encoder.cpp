#include "encoder.h"

#include <algorithm>

#include "fused.h"
#include "products.h"
#include "spread.h"

namespace cierzo {

namespace {

// x [T, inputs] times the matrix plus bias, and plus residual where given -> out [T, outputs].
void biased(const float* x, size_t n_rows, const Matrix& m, const float* bias, const float* residual, float* out) {
    for (size_t row = 0; row < n_rows; ++row)
        for (size_t c = 0; c < m.outputs; ++c) {
            const size_t at = row * m.outputs + c;
            out[at] = bias[c] + (residual ? residual[at] : 0);
        }
    linear(x, n_rows, nullptr, 0, m, out, out);
}

// Every token of qkv [T, 3 D] attends to all -> out [T, D]. A head's tokens are so many queries of one group at the text's
// last position, which see all keys: the same kernel as that of causal layers.
void attend_all(const float* qkv, size_t n_rows, size_t n_heads, size_t head_dim, float* out) {
    const size_t dim = n_heads * head_dim, padded = padded_to(n_rows, kMostTogether), width = padded_to(head_dim, 16);
    const size_t floats = attention_scratch(int(n_rows), 1, int(head_dim)), of_part = AttentionPart::floats(n_rows, width);
    const size_t of_queries = n_rows * head_dim, of_keys = padded * head_dim;
    static thread_local Buffer<float> memory;
    float *q = room(memory, 2 * (of_queries + of_keys + of_part) + floats), *mixed = q + of_queries;
    float *keys = mixed + of_queries, *values = keys + of_keys, *scratch = values + of_keys;
    const AttentionPart all(scratch + floats, n_rows, width), next(scratch + floats + of_part, n_rows, width);
    const int32_t block = 0;
    const Attention job{q, mixed, keys, values, CacheType::float32, int(n_rows), 1, int(head_dim),
                        0, int64_t(padded), 0, &block, 0, 1, int64_t(n_rows) - 1};
    for (size_t head = 0; head < n_heads; ++head) {
        for (size_t t = 0; t < padded; ++t) {
            const size_t at = cached_at(t, kMostTogether, 1, 0, head_dim), lane = t % kMostTogether;
            const float* token = t < n_rows ? qkv + t * 3 * dim + head * head_dim : nullptr;
            if (token) std::copy_n(token, head_dim, q + t * head_dim);
            for (size_t c = 0; c < head_dim; ++c) {
                keys[at + c * kMostTogether + lane] = token ? token[dim + c] : 0;
                values[at + lane * head_dim + c] = token ? token[2 * dim + c] : 0;
            }
        }
        for (int64_t chunk = 0; chunk < job.last_chunk(1); ++chunk) {
            kernels().attend(job, 0, 0, 1, chunk, scratch, chunk ? next : all);
            if (chunk) kernels().add_part(all, next);
        }
        kernels().finish_attention(job, 0, 0, all);
        for (size_t t = 0; t < n_rows; ++t) std::copy_n(mixed + t * head_dim, head_dim, out + t * dim + head * head_dim);
    }
}

void norm_rows(float* x, size_t n_rows, size_t dim, const float* weight_and_bias, float eps) {
    for (size_t row = 0; row < n_rows; ++row) kernels().layer_norm(x + row * dim, weight_and_bias, eps, dim);
}

}  // namespace

void encode(float* x, size_t n_rows, const std::vector<EncoderLayer>& layers, size_t n_heads, float eps, float* means) {
    const Alone only_this_thread;
    const size_t dim = layers[0].qkv->inputs, hidden = layers[0].up->outputs;
    Buffer<float> memory(n_rows * (4 * dim + std::max(hidden, dim)));
    float *qkv = memory.data(), *mixed = qkv + 3 * n_rows * dim, *wide = mixed + n_rows * dim;
    for (const EncoderLayer& l : layers) {
        biased(x, n_rows, *l.qkv, l.qkv_bias, nullptr, qkv);
        attend_all(qkv, n_rows, n_heads, dim / n_heads, mixed);
        biased(mixed, n_rows, *l.out, l.out_bias, x, x);
        norm_rows(x, n_rows, dim, l.attention_norm, eps);
        biased(x, n_rows, *l.up, l.up_bias, nullptr, wide);
        for (size_t row = 0; row < n_rows; ++row) kernels().gelu(wide + row * hidden, hidden);
        biased(wide, n_rows, *l.down, l.down_bias, x, x);
        norm_rows(x, n_rows, dim, l.ffn_norm, eps);
        std::fill_n(means, dim, 0.0f);
        for (size_t row = 0; row < n_rows; ++row)
            for (size_t c = 0; c < dim; ++c) means[c] += x[row * dim + c];
        for (size_t c = 0; c < dim; ++c) means[c] /= static_cast<float>(n_rows);
        means += dim;
    }
}

}  // namespace cierzo
