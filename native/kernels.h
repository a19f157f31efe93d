// The inner loops of one instruction set. Everything above (threads, fusing, checks) is written once.
#pragma once
#include <cstdint>
#include <numeric>

#include "format.h"

namespace cierzo {

constexpr int kKeyTile = 64;     // keys are attended in tiles that start at multiples of 64 positions
constexpr int kQueryBlock = 16;  // rows of one sequence that share a loaded tile
constexpr int kMostQueries = 4;  // are computed side by side
// Keys are summed up chunk by chunk, chunks beginning at multiples of this position, so that threads can share one query's.
constexpr int64_t kKeyChunk = 1024;

enum class CacheType : int { float32 = 0, bfloat16 = 1, int8 = 2 };

// Tokens of the cache that lie together: a head's keys of them are [head_dim][16], its values [16][head_dim], and behind 8-bit
// ones are their 16 scales, float32. In smaller blocks as many as there are.
constexpr size_t kMostTogether = 16;
constexpr size_t tokens_together(int64_t block_size) { return std::gcd(size_t(block_size), kMostTogether); }

// Elements that a head's keys or values of one token take.
constexpr size_t head_width(CacheType type, size_t head_dim) {
    return head_dim + (type == CacheType::int8 ? sizeof(float) : 0);
}

// Where a head's begin of the tokens that lie with a slot.
constexpr size_t cached_at(size_t slot, size_t together, size_t n_kv_heads, size_t head, size_t width) {
    return (slot / together * n_kv_heads + head) * together * width;
}

// One sequence's attention: its rows [start, stop) of the step stand at positions from `position` on.
struct Attention {
    const float* q;  // [T, n_heads, head_dim]
    float* out;      // as q
    const void *k, *v;  // the layer's cache, see tokens_together
    CacheType type;
    int n_heads, n_kv_heads, head_dim;
    int64_t window;  // keys that a query sees; 0 for all
    int64_t block_size, first_block;  // blocks[0] holds positions from first_block x block_size on
    const int32_t* blocks;
    int64_t start, stop, position;

    // Chunks [first, last) of keys that rows [from, to) see some of.
    int64_t first_chunk(int64_t from) const {
        const int64_t at = position + from - start;
        return (window && at >= window ? at - window + 1 : 0) / kKeyChunk;
    }
    int64_t last_chunk(int64_t to) const { return (position + to - 1 - start) / kKeyChunk + 1; }
};

// What some queries have of some keys: sums of values [queries][width], weighted relative to the largest score; that score;
// the sum of the weights.
struct AttentionPart {
    float *sums, *peaks, *totals;
    size_t queries, width;

    static size_t floats(size_t queries, size_t width) { return queries * (width + 2); }
    AttentionPart(float* memory, size_t n, size_t padded_dim)
        : sums(memory), peaks(memory + n * padded_dim), totals(peaks + n), queries(n), width(padded_dim) {}
};

// One or two panels of one format times some rows, over some of the inputs: out [panels][n_rows][16]. Where first_tile is
// not 0, to what `out` has of the inputs before.
struct Product {
    const uint8_t* panels[2];
    int n_panels;
    const Activations& rows;
    size_t first_row, n_rows;       // first_row a multiple of 32
    size_t first_tile, last_tile;   // whole spans, but for the last
};

struct Kernels {
    const char* name;
    size_t side_by_side;  // fewer rows pass both panels of a product at once, not one after the other

    // int8 of a row x [n], in spans up to `padded`; tile t goes to values + t x stride.
    void (*quantize)(const float* x, size_t n, size_t padded, size_t span, int8_t* values, size_t stride, float* scales,
                     int32_t* sums, int32_t* totals);
    // RMSNorm of a row, times weight.
    void (*norm)(const float* x, const float* weight, float eps, size_t n, float* out);
    // LayerNorm of a row in place, times weight [n] plus bias [n], one behind the other.
    void (*layer_norm)(float* x, const float* weight_and_bias, float eps, size_t n);
    void (*multiply[kFormats])(const Product& product, float* out);
    // Row `output` of a panel, as float32 [inputs padded to tiles].
    void (*unpack[kFormats])(const uint8_t* panel, int output, size_t tiles, float* out);
    // Results of a panel [n][16], `columns` of them, to rows of `out` that lie `width` apart, as those of `residual` (if not
    // null) do, which are added.
    void (*put_panel)(const float* results, size_t n, size_t columns, const float* residual, size_t width, float* out);
    // out = silu(gate) x up, n a multiple of 16.
    void (*swiglu)(const float* gate, const float* up, float* out, size_t n);
    void (*gelu)(float* x, size_t n);
    // Queries of the sequence's rows [first, last) that read key/value head `head`, over the keys of one chunk. `scratch`:
    // attention_scratch floats.
    void (*attend)(const Attention& job, int head, int64_t first, int64_t last, int64_t chunk, float* scratch,
                   AttentionPart part);
    // Adds what comes from the next chunk to `part`.
    void (*add_part)(AttentionPart part, AttentionPart next);
    // Writes the result.
    void (*finish_attention)(const Attention& job, int head, int64_t first, AttentionPart part);
    // n floats to bfloat16.
    void (*to_bf16)(const float* x, uint16_t* out, size_t n);
    // One output's weights of a span [n], n at most kSpan, to the nearest of Q4T's: a scale, steps and nibbles.
    uint16_t (*round_span)(const float* weights, size_t n, uint8_t* steps, uint8_t* nibbles);
    // The best of Q4T's steps for groups of weights [n][32] with a scale each, where errors count by importance [n][32].
    void (*best_steps)(const float* weights, const float* importance, const float* scales, size_t n, uint8_t* steps);
    // out = e^((x - peak) / temperature).
    void (*exponentials)(const float* x, size_t n, float peak, float temperature, float* out);
};

constexpr size_t padded_to(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

inline size_t attention_scratch(int n_heads, int n_kv_heads, int head_dim) {
    const size_t width = padded_to(head_dim, 16), queries = size_t(kQueryBlock) * (n_heads / n_kv_heads);
    return 2 * kKeyTile * width + queries * width + kMostQueries * kKeyTile;
}

extern const Kernels kPortable;
#ifdef CIERZO_X86
extern const Kernels kAvx2, kAvx512;
#ifdef CIERZO_AMX
extern const Kernels kAmx;
#endif
#endif
#ifdef CIERZO_NEON
extern const Kernels kNeon;
#endif

}  // namespace cierzo
