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

constexpr int kSixteens = kKeyTile / int(kMostTogether);

// A head's keys and values of a tile's tokens, sixteen by sixteen: keys [head_dim][16], values [16][stride], as the cache has
// them, or as a copy in float32. `scales` are those of 8 bits. What begins at null is not there.
template <class T>
struct Tile {
    const T *keys[kSixteens] = {}, *values[kSixteens] = {};
    size_t stride;
    const float *key_scales[kSixteens], *value_scales[kSixteens];

    F32x16 key_scale(int n) const {
        if constexpr (sizeof(T) == 1) return load(key_scales[n]);
        return broadcast(1);
    }
    F32x16 value_scale(int n, int lane) const {
        if constexpr (sizeof(T) == 1) return broadcast(value_scales[n][lane]);
        return broadcast(1);
    }
};

template <class T>
inline F32x16 numbers(const T* p, F32x16 scale) {
    const F32x16 x = load_cached(p);
    return sizeof(T) == 1 ? mul(x, scale) : x;
}

template <class T, int N>  // of N numbers
inline void fetch(const T* p) {
    for (size_t at = 0; at < N; at += 64 / sizeof(T)) prefetch(p + at);
}

inline size_t slot_of(const Attention& job, int64_t position) {
    return size_t(job.blocks[position / job.block_size - job.first_block] * job.block_size + position % job.block_size);
}

// The cache's own sixteens of keys [from, to) of the tile at position `at`, whose blocks hold whole ones.
template <class T>
Tile<T> tile_in_cache(const Attention& job, int head, int64_t at, int from, int to) {
    const size_t dim = job.head_dim, of_head = head_width(job.type, dim);
    Tile<T> tile;
    tile.stride = dim;
    for (int n = from / int(kMostTogether); n * int(kMostTogether) < to; ++n) {
        const size_t there = cached_at(slot_of(job, at + n * int(kMostTogether)), kMostTogether, job.n_kv_heads, head, of_head);
        tile.keys[n] = static_cast<const T*>(job.k) + there;
        tile.values[n] = static_cast<const T*>(job.v) + there;
        if constexpr (sizeof(T) == 1) {
            tile.key_scales[n] = reinterpret_cast<const float*>(tile.keys[n] + kMostTogether * dim);
            tile.value_scales[n] = reinterpret_cast<const float*>(tile.values[n] + kMostTogether * dim);
        }
    }
    return tile;
}

inline float number(float x) { return x; }
inline float number(int8_t x) { return x; }
inline float number(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

// A copy in float32, in memory of 2 x [64][width], where blocks, or heads, are not whole sixteens. kRun tokens from a multiple
// of it on lie side by side. Of the next tile, `ahead` keys are fetched.
template <int kRun, class T>
Tile<float> gathered(const Attention& job, int head, int64_t at, int from, int to, int ahead, size_t width, float* memory) {
    constexpr int sixteen = int(kMostTogether);
    const size_t dim = job.head_dim, of_head = head_width(job.type, dim), together = tokens_together(job.block_size);
    const auto first_of = [&](const void* side, size_t slot) {
        return static_cast<const T*>(side) + cached_at(slot, together, job.n_kv_heads, head, of_head);
    };
    Tile<float> copy;
    copy.stride = width;
    for (int i = from / sixteen * sixteen; i < to; i += kRun) {  // token i and kRun - 1 more
        const int n = i / sixteen;
        float *keys = memory + size_t(n) * 2 * sixteen * width, *values = keys + sixteen * width + i % sixteen * width;
        copy.keys[n] = keys;
        copy.values[n] = keys + sixteen * width;
        keys += i % sixteen;
        if (i < ahead) {
            const size_t slot = slot_of(job, at + kKeyTile + i), lane = slot % together;
            for (size_t c = 0; c < kRun * dim; c += 64 / sizeof(T)) {
                prefetch(first_of(job.k, slot) + c);
                prefetch(first_of(job.v, slot) + lane * dim + c);
            }
        }
        if (i + kRun <= from) continue;  // may be anything: nobody sees it
        const size_t slot = slot_of(job, at + i), lane = slot % together;
        const T *own_keys = first_of(job.k, slot) + lane, *own_values = first_of(job.v, slot) + lane * dim;
        for (size_t c = 0; c < dim; ++c)
            for (int r = 0; r < kRun; ++r) keys[c * sixteen + r] = number(own_keys[c * together + r]);
        for (int r = 0; r < kRun; ++r, own_values += dim, values += width) {
            size_t c = 0;
            for (; c + 16 <= dim; c += 16) store(values + c, load_cached(own_values + c));
            for (; c < dim; ++c) values[c] = number(own_values[c]);
        }
        if constexpr (sizeof(T) == 1) {
            const auto scales = [&](const void* side) {
                return reinterpret_cast<const float*>(first_of(side, slot) + together * dim) + lane;
            };
            values -= kRun * width;
            for (int r = 0; r < kRun; ++r)
                for (size_t c = 0; c < dim; ++c) {
                    keys[c * sixteen + r] *= scales(job.k)[r];
                    values[r * width + c] *= scales(job.v)[r];
                }
        }
    }
    return copy;
}

// Scores of N queries [N][width] against the sixteens [first, last) of a tile, into N rows of 64.
template <int N, bool kAhead, class T>
inline void score(const float* q, size_t width, const Tile<T>& tile, size_t dim, int first, int last, const Tile<T>& next,
                  float* scores) {
    int at = first;
    const auto some = [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::value;
        F32x16 s[N][kLanes], scale[kLanes];
        const T* keys[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            keys[i] = tile.keys[at + i];
            scale[i] = tile.key_scale(at + i);
            for (int n = 0; n < N; ++n) s[n][i] = broadcast(0);
        }
        size_t c = 0;
        for (int part = 0; part < kLanes; ++part) {  // meanwhile the next tile's are fetched, one sixteen after the other
            const T* ahead = next.keys[at + part];
            for (const size_t end = part + 1 < kLanes ? dim / kLanes * (part + 1) : dim; c < end; ++c) {
                if constexpr (kAhead) {
                    fetch<T, kLanes * 16>(ahead);
                    ahead += kLanes * 16;
                }
                F32x16 x[N];
                for (int n = 0; n < N; ++n) x[n] = broadcast(q[n * width + c]);
#pragma GCC unroll 4
                for (int i = 0; i < kLanes; ++i) {
                    const F32x16 k = numbers(keys[i] + c * kMostTogether, scale[i]);
#pragma GCC unroll 4
                    for (int n = 0; n < N; ++n) s[n][i] = fma(x[n], k, s[n][i]);
                }
            }
        }
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < kLanes; ++i) store(scores + n * kKeyTile + 16 * (at + i), s[n][i]);
        at += kLanes;
    };
    while (at + kWide <= last) some(std::integral_constant<int, kWide>{});
    while (at < last) some(std::integral_constant<int, 1>{});
}

// o = o x keep + sum of p[j] v[j] over j in [from, to), of N queries, L x 16 columns from c on.
template <int N, int L, bool kAhead, class T>
inline void mix(const float* p, const Tile<T>& tile, size_t c, size_t width, int from, int to, const Tile<T>& next,
                const float* keep, float* o) {
    F32x16 sum[N][L];
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < L; ++i) sum[n][i] = mul(load(o + n * width + c + 16 * i), broadcast(keep[n]));
    for (int j = from; j < to;) {
        const int sixteen = j / int(kMostTogether), first = sixteen * int(kMostTogether);
        const size_t there = size_t(j - first) * tile.stride + c;
        const T *values = tile.values[sixteen] + there, *ahead = next.values[sixteen] + there;
        for (const int end = std::min(first + int(kMostTogether), to); j < end; ++j, values += tile.stride) {
            if constexpr (kAhead) {
                fetch<T, L * 16>(ahead);
                ahead += tile.stride;
            }
            const F32x16 scale = tile.value_scale(sixteen, j - first);
            F32x16 x[N];
            for (int n = 0; n < N; ++n) x[n] = broadcast(p[n * kKeyTile + j]);
#pragma GCC unroll 4
            for (int i = 0; i < L; ++i) {
                const F32x16 v = numbers(values + 16 * i, scale);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) sum[n][i] = fma(x[n], v, sum[n][i]);
            }
        }
    }
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < L; ++i) store(o + n * width + c + 16 * i, sum[n][i]);
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

// What `attend` has of a block of rows: queries [queries][width], scaled, and who sees what.
struct Queries {
    const Attention& job;
    int64_t first;
    const float* q;
    AttentionPart part;

    int64_t position(size_t i) const { return job.position + first - job.start + int64_t(i / (job.n_heads / job.n_kv_heads)); }
    int64_t oldest(size_t i) const { return job.window ? std::max<int64_t>(0, position(i) - job.window + 1) : 0; }
    // Keys [low, high) of the tile at a position that a query sees.
    int low(size_t i, int64_t at) const { return int(std::max<int64_t>(0, oldest(i) - at)); }
    int high(size_t i, int64_t at) const { return int(std::min<int64_t>(kKeyTile, position(i) + 1 - at)); }
};

// A tile for all queries, four at a time where those see the same keys; with kAhead, the next tile is fetched while the first
// of them pass.
template <bool kAhead, class T>
void attend_tile(const Queries& queries, int64_t at, const Tile<T>& tile, const Tile<T>& next, float* p) {
    const AttentionPart& part = queries.part;
    const size_t width = part.width;
    for (size_t i = 0; i < part.queries;) {
        const int low = queries.low(i, at), high = queries.high(i, at);
        const auto pass = [&](auto count, auto fetching) {
            constexpr int kCount = decltype(count)::value;
            constexpr bool kFetch = decltype(fetching)::value;
            if (low < high) {
                float keep[kCount], *o = part.sums + i * width;
                score<kCount, kFetch>(queries.q + i * width, width, tile, queries.job.head_dim, low / 16, (high + 15) / 16,
                                      next, p);
                for (int n = 0; n < kCount; ++n)
                    weigh(p + n * kKeyTile, low, high, part.peaks[i + n], part.totals[i + n], keep[n]);
                size_t c = 0;
                for (; c + 16 * kWide <= width; c += 16 * kWide)
                    mix<kCount, kWide, kFetch>(p, tile, c, width, low, high, next, keep, o);
                for (; c < width; c += 16) mix<kCount, 1, kFetch>(p, tile, c, width, low, high, next, keep, o);
            }
            i += kCount;
        };
        const auto together = [&](auto count) {
            if (kAhead && i == 0)
                pass(count, std::true_type{});
            else
                pass(count, std::false_type{});
        };
        int alike = 1;
        while (alike < kQueries && i + alike < part.queries && queries.low(i + alike, at) == low &&
               queries.high(i + alike, at) == high)
            ++alike;
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

template <class T>
void attend_as(const Attention& job, int head, int64_t last, int64_t chunk, const Queries& queries, float* memory, float* p) {
    const size_t dim = job.head_dim, width = queries.part.width;
    const int64_t oldest = std::max(queries.oldest(0), chunk * kKeyChunk);
    const int64_t newest = std::min(job.position + last - 1 - job.start, (chunk + 1) * kKeyChunk - 1);
    // Of the tile at `at`, what is seen.
    const auto from = [&](int64_t at) { return int(std::max<int64_t>(0, oldest - at)); };
    const auto to = [&](int64_t at) { return int(std::min<int64_t>(kKeyTile, newest + 1 - at)); };
    const auto in_cache = [&](int64_t at) { return tile_in_cache<T>(job, head, at, from(at), to(at)); };
    const size_t together = tokens_together(job.block_size);
    const bool whole = together == kMostTogether && dim % 16 == 0;
    Tile<T> next = whole ? in_cache(oldest / kKeyTile * kKeyTile) : Tile<T>{};
    for (int64_t at = oldest / kKeyTile * kKeyTile; at <= newest; at += kKeyTile) {
        if (!whole) {
            const auto gather = together % 4 == 0 ? gathered<4, T> : gathered<1, T>;
            const Tile<float> tile = gather(job, head, at, from(at), to(at), to(at + kKeyTile), width, memory);
            attend_tile<false>(queries, at, tile, tile, p);
            continue;
        }
        const Tile<T> tile = next;
        Tile<T> ahead = next = in_cache(at + kKeyTile);
        for (int n = 0; n < kSixteens; ++n)
            if (!ahead.keys[n]) ahead.keys[n] = tile.keys[n], ahead.values[n] = tile.values[n];  // nothing to fetch
        attend_tile<true>(queries, at, tile, ahead, p);
    }
}

inline void attend(const Attention& job, int head, int64_t first, int64_t last, int64_t chunk, float* scratch,
                   AttentionPart part) {
    const size_t dim = job.head_dim, width = part.width;
    float* memory = scratch;                     // 2 x [64][width]
    float* q = memory + 2 * kKeyTile * width;    // [queries][width], scaled
    float* p = q + part.queries * width;         // [kQueries][64]
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (size_t i = 0; i < part.queries; ++i) {
        const float* source = job.q + query_row(job, head, first, i) * dim;
        for (size_t c = 0; c < width; ++c) q[i * width + c] = c < dim ? source[c] * scale : 0;
        for (size_t c = 0; c < width; ++c) part.sums[i * width + c] = 0;
        part.peaks[i] = -std::numeric_limits<float>::infinity();
        part.totals[i] = 0;
    }
    const Queries queries{job, first, q, part};
    if (job.type == CacheType::float32)
        attend_as<float>(job, head, last, chunk, queries, memory, p);
    else if (job.type == CacheType::bfloat16)
        attend_as<uint16_t>(job, head, last, chunk, queries, memory, p);
    else
        attend_as<int8_t>(job, head, last, chunk, queries, memory, p);
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
