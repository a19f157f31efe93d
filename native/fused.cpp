#include "fused.h"

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "isa.h"
#include "spread.h"

namespace cierzo {

namespace {

constexpr size_t kRowBlock = 64;  // rows that a panel is multiplied with while its results stay in the first cache

// Memory that operations of one process reuse: `lock` is held for the length of an operation, `layers_lock` for that of
// `run_layers`.
struct Workspace {
    std::mutex lock, layers_lock;
    std::vector<float> normed, scales, projected, layers;
    std::vector<int8_t> values;
    std::vector<int32_t> sums;
};

Workspace* shared = new Workspace;  // never destroyed: threads may outlive main

Workspace& workspace() {
    // Whoever held a lock when the process forked is not in the child, which starts with a workspace of its own.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { shared = new Workspace; });
    (void)registered;
    return *shared;
}

template <class T>
T* room(std::vector<T>& buffer, size_t n) {
    if (buffer.size() < n) buffer.resize(n);
    return buffer.data();
}

// Rows of x, normed where norm is given, as int8.
Activations activations(Workspace& w, const float* x, size_t n_rows, size_t inputs, const float* norm,
                        float eps) {
    const Kernels& kernel = kernels();
    const size_t padded = padded_to(inputs, kTile), groups = padded / kGroup;
    int8_t* values = room(w.values, n_rows * padded);
    float* scales = room(w.scales, n_rows * groups);
    int32_t* sums = room(w.sums, n_rows * groups);
    float* normed = norm ? room(w.normed, n_rows * inputs) : nullptr;
    const auto one_row = [&](size_t row) {
        const float* from = x + row * inputs;
        if (norm) {
            kernel.norm(from, norm, eps, inputs, normed + row * inputs);
            from = normed + row * inputs;
        }
        kernel.quantize(from, inputs, padded, values + row * padded, scales + row * groups, sums + row * groups);
    };
    spread(n_rows, one_row);
    return {values, scales, sums, padded, groups};
}

// Results of one panel with rows [row, row + n) -> scratch [n][16].
void multiply(const Matrix& w, size_t panel, const Activations& a, size_t row, size_t n, float* scratch) {
    const Activations part{a.values + row * a.inputs, a.scales + row * a.groups, a.sums + row * a.groups, a.inputs,
                           a.groups};
    kernels().panel[int(w.format)](w.panel(panel), part, n, scratch, kPanel);
}

template <class F>
void each_row_block(size_t n_rows, F body) {
    for (size_t row = 0; row < n_rows; row += kRowBlock) body(row, std::min(kRowBlock, n_rows - row));
}

// Scratch [n][16] into out [T, width] at column `column`, plus residual where given.
void put(const float* scratch, size_t row, size_t n, size_t column, size_t width, const float* residual, float* out) {
    const size_t columns = std::min<size_t>(kPanel, width - column);
    for (size_t r = 0; r < n; ++r) {
        const size_t at = (row + r) * width + column;
        for (size_t c = 0; c < columns; ++c) out[at + c] = scratch[r * kPanel + c] + (residual ? residual[at + c] : 0);
    }
}

// Rotates the (even, odd) pairs of every head (arXiv:2104.09864, section 3.2).
void rotate(float* x, size_t width, const float* cos, const float* sin, size_t head_dim) {
    for (size_t head = 0; head < width; head += head_dim)
        for (size_t i = 0; i < head_dim / 2; ++i) {
            float* pair = x + head + 2 * i;
            const float even = pair[0], odd = pair[1];
            pair[0] = even * cos[i] - odd * sin[i];
            pair[1] = even * sin[i] + odd * cos[i];
        }
}

void put_cached(const float* x, void* side, CacheType type, size_t slot, size_t width) {
    if (type == CacheType::float32)
        std::memcpy(static_cast<float*>(side) + slot * width, x, width * sizeof(float));
    else
        kernels().to_bf16(x, static_cast<uint16_t*>(side) + slot * width, width);
}

}  // namespace

Tables::Tables(int64_t block, int64_t n, std::vector<int64_t> rows, std::vector<int64_t> firsts,
               std::vector<int64_t> ends, std::vector<int32_t> blocks)
    : block_size(block), n_blocks(n), blocks_(std::move(blocks)) {
    if (block_size < 1 || rows.size() != 3 * firsts.size() || ends.size() != firsts.size())
        throw std::invalid_argument("block tables: three numbers, a first block and an end for every sequence");
    if (std::any_of(blocks_.begin(), blocks_.end(), [&](int32_t b) { return b < 0 || b >= n_blocks; }))
        throw std::invalid_argument("block tables: a block outside the cache of " + std::to_string(n_blocks));
    constexpr int64_t limit = int64_t(1) << 31;  // of blocks and positions, so that products stay far from overflow
    const auto absurd = [&](int64_t x) { return x < 0 || x > limit; };
    if (block_size > limit || std::any_of(rows.begin(), rows.end(), absurd) ||
        std::any_of(firsts.begin(), firsts.end(), absurd))
        throw std::invalid_argument("block tables: positions and blocks must be between 0 and 2^31");
    int64_t begin = 0;
    for (size_t s = 0; s < firsts.size(); ++s) {
        const int64_t start = rows[3 * s], stop = rows[3 * s + 1], position = rows[3 * s + 2], end = ends[s];
        const int64_t last = position + (stop - start);  // one past
        if (start != n_rows || stop < start || position < 0 || firsts[s] < 0 || end < begin ||
            end > int64_t(blocks_.size()) || firsts[s] * block_size > position ||
            (firsts[s] + end - begin) * block_size < last)
            throw std::invalid_argument("block tables: sequence " + std::to_string(s) + " is not covered by its blocks");
        const int32_t* mine = blocks_.data() + begin;
        sequences.push_back({start, stop, position, firsts[s], mine});
        for (int64_t at = position; at < last; ++at)
            slots.push_back(mine[at / block_size - firsts[s]] * block_size + at % block_size);
        n_rows = stop;
        begin = end;
    }
}

void rotation(const int64_t* positions, size_t n, const float* frequencies, size_t half, float* cos, float* sin) {
    spread(n, [&](size_t row) {
        for (size_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(positions[row]) * frequencies[i];
            cos[row * half + i] = std::cos(angle);
            sin[row * half + i] = std::sin(angle);
        }
    });
}

void project_qkv(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& wq, const Matrix& wk,
                 const Matrix& wv, const float* cos, const float* sin, size_t head_dim, const Tables& tables, Cache cache,
                 float* q) {
    Workspace& w = workspace();
    std::lock_guard<std::mutex> guard(w.lock);
    const Activations a = activations(w, x, n_rows, wq.inputs, norm, eps);
    const size_t width = wk.outputs;
    float* k = room(w.projected, 2 * n_rows * width);
    float* v = k + n_rows * width;
    spread(wq.panels + wk.panels + wv.panels, [&](size_t item) {
        const bool is_q = item < wq.panels, is_k = !is_q && item < wq.panels + wk.panels;
        const Matrix& m = is_q ? wq : is_k ? wk : wv;
        float* out = is_q ? q : is_k ? k : v;
        const size_t panel = item - (is_q ? 0 : is_k ? wq.panels : wq.panels + wk.panels);
        each_row_block(n_rows, [&](size_t row, size_t n) {
            float scratch[kRowBlock * kPanel];
            multiply(m, panel, a, row, n, scratch);
            put(scratch, row, n, panel * kPanel, m.outputs, nullptr, out);
        });
    });
    const auto finish = [&](size_t row) {
        const float *c = cos + row * head_dim / 2, *s = sin + row * head_dim / 2;
        rotate(q + row * wq.outputs, wq.outputs, c, s, head_dim);
        rotate(k + row * width, width, c, s, head_dim);
        put_cached(k + row * width, cache.k, cache.type, tables.slots[row], width);
        put_cached(v + row * width, cache.v, cache.type, tables.slots[row], width);
    };
    spread(n_rows, finish);
}

void attend(const float* q, float* out, int n_heads, int n_kv_heads, int head_dim, int64_t window, const Tables& tables,
            Cache cache) {
    struct Item {
        size_t sequence;
        int64_t first, last;
        int head;
    };
    std::vector<Item> items;
    for (size_t s = 0; s < tables.sequences.size(); ++s)
        for (int64_t row = tables.sequences[s].start; row < tables.sequences[s].stop; row += kQueryBlock)
            for (int head = 0; head < n_kv_heads; ++head)
                items.push_back({s, row, std::min<int64_t>(row + kQueryBlock, tables.sequences[s].stop), head});
    const size_t floats = attention_scratch(n_heads, n_kv_heads, head_dim);
    spread(items.size(), [&](size_t i) {
        static thread_local std::vector<float> scratch;
        const Item& item = items[i];
        const Tables::Sequence& s = tables.sequences[item.sequence];
        const Attention job{q, out, cache.k, cache.v, cache.type, n_heads, n_kv_heads, head_dim, window,
                            tables.block_size, s.first_block, s.blocks, s.start, s.stop, s.position};
        kernels().attend(job, item.head, item.first, item.last, room(scratch, floats));
    });
}

void linear(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& m, const float* residual,
            float* out) {
    Workspace& w = workspace();
    std::lock_guard<std::mutex> guard(w.lock);
    const Activations a = activations(w, x, n_rows, m.inputs, norm, eps);
    spread(m.panels, [&](size_t panel) {
        each_row_block(n_rows, [&](size_t row, size_t n) {
            float scratch[kRowBlock * kPanel];
            multiply(m, panel, a, row, n, scratch);
            put(scratch, row, n, panel * kPanel, m.outputs, residual, out);
        });
    });
}

void gate_up(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& w1, const Matrix& w3, float* out) {
    Workspace& w = workspace();
    std::lock_guard<std::mutex> guard(w.lock);
    const Activations a = activations(w, x, n_rows, w1.inputs, norm, eps);
    spread(w1.panels, [&](size_t panel) {
        each_row_block(n_rows, [&](size_t row, size_t n) {
            float gate[kRowBlock * kPanel], up[kRowBlock * kPanel];
            multiply(w1, panel, a, row, n, gate);
            multiply(w3, panel, a, row, n, up);
            kernels().swiglu(gate, up, gate, n * kPanel);
            put(gate, row, n, panel * kPanel, w1.outputs, nullptr, out);
        });
    });
}

void run_layers(float* x, size_t n_rows, const std::vector<Layer>& layers, const Shape& shape,
                const std::vector<const Tables*>& groups, const float* cos, const float* sin) {
    Workspace& w = workspace();
    std::lock_guard<std::mutex> guard(w.layers_lock);
    for (const Layer& l : layers) {
        const size_t heads = n_rows * l.wq->outputs, hidden = n_rows * l.w1->outputs;
        float* q = room(w.layers, 2 * heads + hidden);
        float *mixed = q + heads, *gated = mixed + heads;
        const Tables& tables = *groups[l.group];
        project_qkv(x, n_rows, l.attention_norm, shape.eps, *l.wq, *l.wk, *l.wv, cos, sin, shape.head_dim, tables,
                    l.cache, q);
        attend(q, mixed, shape.n_heads, shape.n_kv_heads, shape.head_dim, l.window, tables, l.cache);
        linear(mixed, n_rows, nullptr, 0, *l.wo, x, x);
        gate_up(x, n_rows, l.ffn_norm, shape.eps, *l.w1, *l.w3, gated);
        linear(gated, n_rows, nullptr, 0, *l.w2, x, x);
    }
}

void unpack(const Matrix& w, const int64_t* rows, size_t n, float* out) {
    for (size_t i = 0; i < n; ++i)
        if (rows[i] < 0 || rows[i] >= int64_t(w.outputs))
            throw std::invalid_argument("row " + std::to_string(rows[i]) + " of a matrix of " + std::to_string(w.outputs));
    spread(n, [&](size_t i) {
        static thread_local std::vector<float> row;
        float* whole = room(row, w.tiles * kTile);
        kernels().unpack[int(w.format)](w.panel(rows[i] / kPanel), int(rows[i] % kPanel), w.tiles, whole);
        std::memcpy(out + i * w.inputs, whole, w.inputs * sizeof(float));
    });
}

}  // namespace cierzo
