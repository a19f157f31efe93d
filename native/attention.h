// Grouped-query attention of a few rows over a paged cache, within the window.
//
// Keys are taken in tiles that start at multiples of 64 positions, and a tile, once loaded, serves every query head of
// its group and up to 16 rows. What a query computes depends on its position alone: scores are sums over head_dim in
// ascending order, each tile rescales the running sum once (online softmax, arXiv:1805.02867), values are added in ascending
// position, and chunks of 1024 positions one after the other, whoever has summed them up; so decoding and prefill give the
// same bits, on any number of threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"
#include "rows.h"

namespace cierzo::CIERZO_TARGET {

inline F32x16 load_cached(const float* p) { return load(p); }
inline F32x16 load_cached(const uint16_t* p) { return load_bf16(p); }
inline F32x16 load_cached(const int8_t* p) { return load_int8(p); }

// Where the tokens from a position on lie in the cache, one after the other.
class Slots {
public:
    Slots(const Attention& job, int64_t position)
        : job_(job), block_(position / job.block_size - job.first_block), at_(position % job.block_size) {}
    size_t next() {
        const size_t slot = size_t(job_.blocks[block_] * job_.block_size + at_);
        if (++at_ == job_.block_size) {
            at_ = 0;
            ++block_;
        }
        return slot;
    }

private:
    const Attention& job_;
    int64_t block_, at_;
};

// Keys [from, to) of the tile at position `tile`: transposed into kt [head_dim][64], values into vt [64][width]. Of the
// next tile's keys `ahead` are fetched meanwhile: they lie too far apart for the processor to foresee them.
template <class T>
void load_tile(const Attention& job, int head, int64_t tile, int from, int to, int ahead, float* kt, float* vt) {
    const size_t dim = job.head_dim, width = padded_to(dim, 16);
    const size_t of_head = head_width(job.type, dim), row = size_t(job.n_kv_heads) * of_head;
    const T *all_keys = static_cast<const T*>(job.k) + head * of_head, *all_values = static_cast<const T*>(job.v) + head * of_head;
    const auto numbers = [&](const T* p, size_t c) {
        if (c + 16 <= dim) return load_cached(p + c);
        T staged[16] = {};
        std::memcpy(staged, p + c, (dim - c) * sizeof(T));
        return load_cached(staged);
    };
    const auto part = [&](const T* p, size_t c) {  // 16 numbers, zeros beyond head_dim
        if constexpr (sizeof(T) > 1) {
            return numbers(p, c);
        } else {
            float scale;
            std::memcpy(&scale, p + dim, sizeof scale);
            return mul(numbers(p, c), broadcast(scale));
        }
    };
    const T* keys[kKeyTile];
    Slots slots(job, tile + from), next(job, tile + kKeyTile);
    for (int j = from; j < to; ++j, --ahead) {
        const size_t at = slots.next() * row;
        keys[j] = all_keys + at;
        for (size_t c = 0; c < width; c += 16) store(vt + j * width + c, part(all_values + at, c));
        if (ahead > 0)
            for (size_t c = 0, there = next.next() * row; c < of_head; c += 64 / sizeof(T)) {
                prefetch(all_keys + there + c);
                prefetch(all_values + there + c);
            }
    }
    for (int first = from / 16 * 16; first < to; first += 16)
        for (size_t c = 0; c < width; c += 16) {
            F32x16 square[16];
            for (int j = 0; j < 16; ++j) {
                const bool seen = first + j >= from && first + j < to;
                square[j] = seen ? part(keys[first + j], c) : broadcast(0);  // masked, but must be numbers
            }
            transpose(square);
            for (int i = 0; i < 16; ++i) store(kt + (c + i) * kKeyTile + first, square[i]);
        }
}

// Scores of N queries [N][width] against keys [first, last) of a tile, whole sixteens, into N rows of 64.
template <int N>
inline void score(const float* q, size_t width, const float* kt, size_t dim, int first, int last, float* scores) {
    int at = first;
    const auto next = [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::value;
        F32x16 s[N][kLanes];
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < kLanes; ++i) s[n][i] = broadcast(0);
        for (size_t c = 0; c < dim; ++c) {
            const float* keys = kt + c * kKeyTile + at;
            F32x16 x[N];
            for (int n = 0; n < N; ++n) x[n] = broadcast(q[n * width + c]);
#pragma GCC unroll 4
            for (int i = 0; i < kLanes; ++i) {
                const F32x16 k = load(keys + 16 * i);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) s[n][i] = fma(x[n], k, s[n][i]);
            }
        }
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < kLanes; ++i) store(scores + n * kKeyTile + at + 16 * i, s[n][i]);
        at += 16 * kLanes;
    };
    while (at + 16 * kWide <= last) next(std::integral_constant<int, kWide>{});
    while (at < last) next(std::integral_constant<int, 1>{});
}

// o = o x keep + sum of p[j] v[j] over j in [from, to), of N queries, L x 16 columns at a time.
template <int N, int L>
inline void mix(const float* p, const float* vt, size_t width, int from, int to, const float* keep, float* o) {
    F32x16 sum[N][L];
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < L; ++i) sum[n][i] = mul(load(o + n * width + 16 * i), broadcast(keep[n]));
    for (int j = from; j < to; ++j) {
        F32x16 x[N];
        for (int n = 0; n < N; ++n) x[n] = broadcast(p[n * kKeyTile + j]);
#pragma GCC unroll 4
        for (int i = 0; i < L; ++i) {
            const F32x16 v = load(vt + j * width + 16 * i);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sum[n][i] = fma(x[n], v, sum[n][i]);
        }
    }
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < L; ++i) store(o + n * width + 16 * i, sum[n][i]);
}

// Scores of one query, keys [low, high) of which it sees, into probabilities relative to the largest score so far; `keep`
// is what the sums before are worth against it.
inline void weigh(float* p, int low, int high, float& peak, float& total, float& keep) {
    constexpr float never = -std::numeric_limits<float>::infinity();
    for (int j = 0; j < low; ++j) p[j] = never;
    for (int j = high; j < kKeyTile; ++j) p[j] = never;
    const F32x16 s[4] = {load(p), load(p + 16), load(p + 32), load(p + 48)};
    const float before = peak;
    peak = std::max(before, largest(max(max(s[0], s[1]), max(s[2], s[3]))));
    for (int v = 0; v < 4; ++v) store(p + 16 * v, exponential(add(s[v], broadcast(-peak))));
    for (int j = 0; j < low; ++j) p[j] = 0;
    for (int j = high; j < kKeyTile; ++j) p[j] = 0;
    float lanes[16];  // the C library's exp may differ between machines
    store(lanes, exponential(broadcast(before == peak ? 0.0f : before - peak)));
    keep = lanes[0];
    total = total * keep + sum(add(add(load(p), load(p + 16)), add(load(p + 32), load(p + 48))));
}

// Row of query i of a block of rows from `first` on, among those of the step: [T x n_heads].
inline size_t query_row(const Attention& job, int head, int64_t first, size_t i) {
    const size_t group = size_t(job.n_heads / job.n_kv_heads);
    return (size_t(first) + i / group) * job.n_heads + size_t(head) * group + i % group;
}

inline void attend(const Attention& job, int head, int64_t first, int64_t last, int64_t chunk, float* scratch,
                   AttentionPart part) {
    const size_t dim = job.head_dim, width = part.width, queries = part.queries;
    const int group = job.n_heads / job.n_kv_heads;
    float* kt = scratch;                 // [width][64]
    float* vt = kt + width * kKeyTile;   // [64][width]
    float* q = vt + width * kKeyTile;    // [queries][width], scaled
    float* p = q + queries * width;      // [kQueries][64]
    float *o = part.sums, *peaks = part.peaks, *totals = part.totals;
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const auto position_of = [&](size_t i) { return job.position + first - job.start + int64_t(i / group); };
    const auto oldest_of = [&](int64_t at) { return job.window ? std::max<int64_t>(0, at - job.window + 1) : 0; };
    for (size_t i = 0; i < queries; ++i) {
        const float* source = job.q + query_row(job, head, first, i) * dim;
        for (size_t c = 0; c < width; ++c) q[i * width + c] = c < dim ? source[c] * scale : 0;
        for (size_t c = 0; c < width; ++c) o[i * width + c] = 0;
        peaks[i] = -std::numeric_limits<float>::infinity();
        totals[i] = 0;
    }
    const int64_t oldest = std::max(oldest_of(position_of(0)), chunk * kKeyChunk);
    const int64_t newest = std::min(job.position + last - 1 - job.start, (chunk + 1) * kKeyChunk - 1);
    for (int64_t tile = oldest / kKeyTile * kKeyTile; tile <= newest; tile += kKeyTile) {
        const int from = int(std::max<int64_t>(0, oldest - tile)), to = int(std::min<int64_t>(kKeyTile, newest + 1 - tile));
        const int ahead = int(std::min<int64_t>(kKeyTile, newest + 1 - tile - kKeyTile));
        if (job.type == CacheType::float32)
            load_tile<float>(job, head, tile, from, to, ahead, kt, vt);
        else if (job.type == CacheType::bfloat16)
            load_tile<uint16_t>(job, head, tile, from, to, ahead, kt, vt);
        else
            load_tile<int8_t>(job, head, tile, from, to, ahead, kt, vt);
        // Keys of the tile that a query sees.
        const auto low_of = [&](size_t i) { return int(std::max<int64_t>(0, oldest_of(position_of(i)) - tile)); };
        const auto high_of = [&](size_t i) { return int(std::min<int64_t>(kKeyTile, position_of(i) + 1 - tile)); };
        for (size_t i = 0; i < queries;) {
            // Queries that see the same keys share what is loaded.
            const int low = low_of(i), high = high_of(i);
            const auto together = [&](auto count) {
                constexpr int kCount = decltype(count)::value;
                if (low < high) {
                    float keep[kCount];
                    score<kCount>(q + i * width, width, kt, dim, low / 16 * 16, (high + 15) / 16 * 16, p);
                    for (int n = 0; n < kCount; ++n)
                        weigh(p + n * kKeyTile, low, high, peaks[i + n], totals[i + n], keep[n]);
                    size_t c = 0;
                    for (; c + 16 * kWide <= width; c += 16 * kWide)
                        mix<kCount, kWide>(p, vt + c, width, low, high, keep, o + i * width + c);
                    for (; c < width; c += 16) mix<kCount, 1>(p, vt + c, width, low, high, keep, o + i * width + c);
                }
                i += kCount;
            };
            int alike = 1;
            while (alike < kQueries && i + alike < queries && low_of(i + alike) == low && high_of(i + alike) == high) ++alike;
            static_assert(kQueries == 2 || kQueries == kMostQueries);
            if (kQueries > 2 && alike == 4)
                together(std::integral_constant<int, kQueries>{});
            else if (kQueries > 2 && alike == 3)
                together(std::integral_constant<int, kQueries - 1>{});
            else if (alike == 2)
                together(std::integral_constant<int, 2>{});
            else
                together(std::integral_constant<int, 1>{});
        }
    }
}

inline void add_part(AttentionPart part, AttentionPart next) {
    for (size_t i = 0; i < part.queries; ++i) {
        if (next.totals[i] == 0) continue;  // saw nothing of the chunk
        const float peak = std::max(part.peaks[i], next.peaks[i]);
        float lanes[16];
        const auto weight = [&](float before) {
            store(lanes, exponential(broadcast(before == peak ? 0.0f : before - peak)));
            return lanes[0];
        };
        const float a = weight(part.peaks[i]), b = weight(next.peaks[i]);
        float* sums = part.sums + i * part.width;
        for (size_t c = 0; c < part.width; c += 16)
            store(sums + c, fma(load(next.sums + i * part.width + c), broadcast(b), mul(load(sums + c), broadcast(a))));
        part.totals[i] = part.totals[i] * a + next.totals[i] * b;
        part.peaks[i] = peak;
    }
}

inline void finish_attention(const Attention& job, int head, int64_t first, AttentionPart part) {
    for (size_t i = 0; i < part.queries; ++i) {
        float* target = job.out + query_row(job, head, first, i) * job.head_dim;
        for (int c = 0; c < job.head_dim; ++c) target[c] = part.sums[i * part.width + c] / part.totals[i];
    }
}

}  // namespace cierzo::CIERZO_TARGET
