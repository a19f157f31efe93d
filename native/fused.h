// The operations of the seam, fused and spread over the pool's threads. Lengths have been checked by the caller.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "tables.h"

namespace cierzo {

struct Cache {
    void *k, *v;  // of n_blocks x block_size tokens, see tokens_together
    CacheType type;
};

// cos and sin [positions, head_dim / 2] of position x frequency: float32 products as in the published code, and one row
// never depends on the others, as vectorised library functions with scalar remainders would.
void rotation(const int64_t* positions, size_t n, const float* frequencies, size_t half, float* cos, float* sin);

// x [T, D], norm [D] -> q [T, H x C], rotated; k, rotated, and v go into the cache.
void project_qkv(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& wq, const Matrix& wk,
                 const Matrix& wv, const float* cos, const float* sin, size_t head_dim, const Tables& tables, Cache cache,
                 float* q);

void attend(const float* q, float* out, int n_heads, int n_kv_heads, int head_dim, int64_t window, const Tables& tables,
            Cache cache);

// x [T, inputs] (normed first where norm is given) times the matrix, plus residual where given -> out [T, outputs].
void linear(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& w, const float* residual,
            float* out);

// silu(w1 h) x (w3 h), h being x [T, D], normed where norm is given -> out [T, F].
void gate_up(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& w1, const Matrix& w3, float* out);

// Norm, a sparse mixture of experts and the residual (arXiv:2401.04088, section 2.1): every row of x [T, D] goes to its
// n_chosen best experts by gate [n_experts, D], weighted by a softmax over those alone -> out [T, D]. The experts are of
// one shape, and take the same activations.
struct Expert {
    const Matrix *w1, *w2, *w3;
};
void mixture(const float* x, size_t n_rows, const float* norm, float eps, const float* gate,
             const std::vector<Expert>& experts, size_t n_chosen, float* out);

// A transformer's layers one after the other, as the operations above compute them; x [T, D] becomes the result. One call
// a step: what Python and its tensors cost a call is as much as a small model's products.
struct Layer {
    const float *attention_norm, *ffn_norm;
    const Matrix *wq, *wk, *wv, *wo, *w1, *w2, *w3;
    Cache cache;
    int64_t window;
    size_t group;  // of its block tables
};
struct Shape {
    int n_heads, n_kv_heads, head_dim;
    float eps;
};
void run_layers(float* x, size_t n_rows, const std::vector<Layer>& layers, const Shape& shape,
                const std::vector<const Tables*>& groups, const float* cos, const float* sin);

// Rows of the matrix as float32 [n, inputs]. Throws std::invalid_argument for a row that it does not have.
void unpack(const Matrix& w, const int64_t* rows, size_t n, float* out);

}  // namespace cierzo
