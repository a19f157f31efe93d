// Grouped-query attention of a few rows over a paged cache, within the window.
//
// Keys are taken in tiles that start at multiples of 64 positions, and a tile, once loaded, serves every query head of
// its group and up to 16 rows. What a query computes depends on its position alone: scores are sums over head_dim in
// ascending order, each tile rescales the running sum once (online softmax, arXiv:1805.02867), and values are added in
// ascending position; so decoding and prefill give the same bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "rows.h"

namespace cierzo::CIERZO_TARGET {

inline F32x16 load_cached(const float* p) { return load(p); }
inline F32x16 load_cached(const uint16_t* p) { return load_bf16(p); }

// Keys [from, to) of the tile at position `tile`: transposed into kt [head_dim][64], values into vt [64][width].
template <class T>
void load_tile(const Attention& job, int head, int64_t tile, int from, int to, float* kt, float* vt) {
    const size_t dim = job.head_dim, width = padded_to(dim, 16), row = size_t(job.n_kv_heads) * dim;
    for (int j = 0; j < kKeyTile; ++j) {
        if (j < from || j >= to) {  // masked, but must be numbers
            for (size_t c = 0; c < width; ++c) kt[c * kKeyTile + j] = 0;
            continue;
        }
        const int64_t position = tile + j;
        const int64_t block = job.blocks[position / job.block_size - job.first_block];
        const size_t at = size_t(block * job.block_size + position % job.block_size) * row + head * dim;
        const T* k = static_cast<const T*>(job.k) + at;
        const T* v = static_cast<const T*>(job.v) + at;
        float lanes[16];
        for (size_t c = 0; c < width; c += 16) {
            T staged_k[16] = {}, staged_v[16] = {};
            const bool whole = c + 16 <= dim;
            if (!whole) {
                std::memcpy(staged_k, k + c, (dim - c) * sizeof(T));
                std::memcpy(staged_v, v + c, (dim - c) * sizeof(T));
            }
            store(lanes, load_cached(whole ? k + c : staged_k));
            for (size_t i = 0; i < 16; ++i) kt[(c + i) * kKeyTile + j] = lanes[i];
            store(vt + j * width + c, load_cached(whole ? v + c : staged_v));
        }
    }
}

// Scores of one query against a tile.
inline void score(const float* q, const float* kt, size_t dim, float* scores) {
    F32x16 s[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    for (size_t c = 0; c < dim; ++c) {
        const F32x16 x = broadcast(q[c]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) s[i] = fma(x, load(kt + c * kKeyTile + 16 * i), s[i]);
    }
    for (int i = 0; i < 4; ++i) store(scores + 16 * i, s[i]);
}

// o = o x keep + sum of p[j] v[j] over j in [from, to), N x 16 columns at a time.
template <int N>
inline void mix(const float* p, const float* vt, size_t width, int from, int to, float keep, float* o) {
    F32x16 sum[N];
    for (int i = 0; i < N; ++i) sum[i] = mul(load(o + 16 * i), broadcast(keep));
    for (int j = from; j < to; ++j) {
        const F32x16 x = broadcast(p[j]);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) sum[i] = fma(x, load(vt + j * width + 16 * i), sum[i]);
    }
    for (int i = 0; i < N; ++i) store(o + 16 * i, sum[i]);
}

inline void attend(const Attention& job, int head, int64_t first, int64_t last, float* scratch) {
    const size_t dim = job.head_dim, width = padded_to(dim, 16);
    const int group = job.n_heads / job.n_kv_heads;
    const size_t queries = size_t(last - first) * group;
    float* kt = scratch;                      // [width][64]
    float* vt = kt + width * kKeyTile;        // [64][width]
    float* q = vt + width * kKeyTile;         // [queries][width], scaled
    float* o = q + queries * width;           // [queries][width]
    float* peaks = o + queries * width;       // [queries]
    float* totals = peaks + queries;          // [queries]
    float* p = totals + queries;              // [64]
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const auto row_of = [&](size_t i) { return (size_t(first) + i / group) * job.n_heads + size_t(head) * group + i % group; };
    const auto position_of = [&](size_t i) { return job.position + first - job.start + int64_t(i / group); };
    const auto oldest_of = [&](int64_t at) { return job.window ? std::max<int64_t>(0, at - job.window + 1) : 0; };
    for (size_t i = 0; i < queries; ++i) {
        const float* source = job.q + row_of(i) * dim;
        for (size_t c = 0; c < width; ++c) q[i * width + c] = c < dim ? source[c] * scale : 0;
        for (size_t c = 0; c < width; ++c) o[i * width + c] = 0;
        peaks[i] = -std::numeric_limits<float>::infinity();
        totals[i] = 0;
    }
    const int64_t oldest = oldest_of(position_of(0)), newest = position_of(queries - 1);
    for (int64_t tile = oldest / kKeyTile * kKeyTile; tile <= newest; tile += kKeyTile) {
        const int from = int(std::max<int64_t>(0, oldest - tile)), to = int(std::min<int64_t>(kKeyTile, newest + 1 - tile));
        if (job.type == CacheType::float32)
            load_tile<float>(job, head, tile, from, to, kt, vt);
        else
            load_tile<uint16_t>(job, head, tile, from, to, kt, vt);
        for (size_t i = 0; i < queries; ++i) {
            const int64_t at = position_of(i);
            const int low = int(std::max<int64_t>(0, oldest_of(at) - tile)), high = int(std::min<int64_t>(kKeyTile, at + 1 - tile));
            if (low >= high) continue;
            score(q + i * width, kt, dim, p);
            for (int j = 0; j < low; ++j) p[j] = -std::numeric_limits<float>::infinity();
            for (int j = high; j < kKeyTile; ++j) p[j] = -std::numeric_limits<float>::infinity();
            const F32x16 s[4] = {load(p), load(p + 16), load(p + 32), load(p + 48)};
            const float peak = std::max(peaks[i], largest(max(max(s[0], s[1]), max(s[2], s[3]))));
            for (int v = 0; v < 4; ++v) store(p + 16 * v, exponential(add(s[v], broadcast(-peak))));
            for (int j = 0; j < low; ++j) p[j] = 0;
            for (int j = high; j < kKeyTile; ++j) p[j] = 0;
            float keep[16];  // the C library's exp may differ between machines
            store(keep, exponential(broadcast(peaks[i] == peak ? 0.0f : peaks[i] - peak)));
            totals[i] = totals[i] * keep[0] + sum(add(add(load(p), load(p + 16)), add(load(p + 32), load(p + 48))));
            peaks[i] = peak;
            size_t c = 0;
            for (; c + 64 <= width; c += 64) mix<4>(p, vt + c, width, low, high, keep[0], o + i * width + c);
            for (; c < width; c += 16) mix<1>(p, vt + c, width, low, high, keep[0], o + i * width + c);
        }
    }
    for (size_t i = 0; i < queries; ++i) {
        float* target = job.out + row_of(i) * dim;
        for (size_t c = 0; c < dim; ++c) target[c] = o[i * width + c] / totals[i];
    }
}

}  // namespace cierzo::CIERZO_TARGET
