#include "fused.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "products.h"

namespace cierzo {

namespace {

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

// One head's numbers of a token among those of the tokens that it lies with.
template <class T>
void put_head(const T* x, T* group, bool keys, size_t lane, size_t together, size_t head_dim) {
    if (keys)
        for (size_t c = 0; c < head_dim; ++c) group[c * together + lane] = x[c];
    else
        std::memcpy(group + lane * head_dim, x, head_dim * sizeof(T));
}

// A row's heads x [T, n_heads x head_dim] into a side of the cache.
void put_cached(const float* x, size_t row, void* side, bool keys, CacheType type, const Tables& tables, size_t n_heads,
                size_t head_dim) {
    static thread_local Buffer<uint16_t> halves;
    static thread_local Buffer<int8_t> bytes;
    static thread_local Buffer<int32_t> sums;
    const size_t width = head_width(type, head_dim), together = tokens_together(tables.block_size);
    const size_t slot = size_t(tables.slots[row]), lane = slot % together;
    x += row * n_heads * head_dim;
    for (size_t head = 0; head < n_heads; ++head, x += head_dim) {
        const size_t at = cached_at(slot, together, n_heads, head, width);
        if (type == CacheType::float32) {
            put_head(x, static_cast<float*>(side) + at, keys, lane, together, head_dim);
        } else if (type == CacheType::bfloat16) {
            kernels().to_bf16(x, room(halves, head_dim), head_dim);
            put_head(halves.data(), static_cast<uint16_t*>(side) + at, keys, lane, together, head_dim);
        } else {
            const size_t padded = padded_to(head_dim, kTile);
            int8_t* out = static_cast<int8_t*>(side) + at;
            float scale;
            int32_t total;
            kernels().quantize(x, head_dim, padded, padded, room(bytes, padded), kTile, &scale,
                               room(sums, padded / kGroup), &total);
            put_head(bytes.data(), out, keys, lane, together, head_dim);
            std::memcpy(out + together * head_dim + lane * sizeof scale, &scale, sizeof scale);
        }
    }
}

}  // namespace

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
    const Activations a = activations(w, x, n_rows, wq, norm, eps);
    const size_t width = wk.outputs;
    float* k = room(w.projected, 2 * n_rows * width);
    float* v = k + n_rows * width;
    struct Side {
        const Matrix* m;
        float* out;
    };
    const auto side_of = [&, sides = std::array<Side, 3>{{{&wq, q}, {&wk, k}, {&wv, v}}}](size_t& item) {
        size_t n = 0;
        for (; item >= pairs_of(*sides[n].m); ++n) item -= pairs_of(*sides[n].m);
        return sides[n];
    };
    const auto pair = [&](size_t item) {
        const Side side = side_of(item);
        return pair_of(*side.m, item, n_rows);
    };
    const auto keep = [&](size_t item, const Pair& pair, const float* results, size_t row, size_t n) {
        const Side side = side_of(item);
        for (int i = 0; i < pair.n; ++i)
            put(results + i * n * kPanel, row, n, pair.panel[i], side.m->outputs, nullptr, side.out);
    };
    products(pairs_of(wq) + pairs_of(wk) + pairs_of(wv), a, pair, keep);
    const auto finish = [&](size_t row) {
        const float *c = cos + row * head_dim / 2, *s = sin + row * head_dim / 2;
        rotate(q + row * wq.outputs, wq.outputs, c, s, head_dim);
        rotate(k + row * width, width, c, s, head_dim);
        put_cached(k, row, cache.k, true, cache.type, tables, width / head_dim, head_dim);
        put_cached(v, row, cache.v, false, cache.type, tables, width / head_dim, head_dim);
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
    const size_t floats = attention_scratch(n_heads, n_kv_heads, head_dim), width = padded_to(head_dim, 16);
    const size_t of_part = AttentionPart::floats(size_t(kQueryBlock) * (n_heads / n_kv_heads), width);
    const auto job_of = [&](const Item& item) {
        const Tables::Sequence& s = tables.sequences[item.sequence];
        return Attention{q, out, cache.k, cache.v, cache.type, n_heads, n_kv_heads, head_dim, window,
                         tables.block_size, s.first_block, s.blocks, s.start, s.stop, s.position};
    };
    const auto part_of = [&](const Item& item, float* memory) {
        return AttentionPart(memory, size_t(item.last - item.first) * (n_heads / n_kv_heads), width);
    };
    static thread_local Buffer<float> own;
    if (items.size() >= size_t(4 * Pool::get()->size())) {  // enough for every thread: each takes all chunks of an item
        spread(items.size(), [&](size_t i) {
            const Item& item = items[i];
            const Attention job = job_of(item);
            float* memory = room(own, floats + 2 * of_part);
            const AttentionPart all = part_of(item, memory + floats), next = part_of(item, memory + floats + of_part);
            const int64_t first = job.first_chunk(item.first), last = job.last_chunk(item.last);
            for (int64_t chunk = first; chunk < last; ++chunk) {
                kernels().attend(job, item.head, item.first, item.last, chunk, memory, chunk > first ? next : all);
                if (chunk > first) kernels().add_part(all, next);
            }
            kernels().finish_attention(job, item.head, item.first, all);
        });
        return;
    }
    struct Chunk {
        size_t item;
        int64_t number;
    };
    std::vector<Chunk> chunks;
    for (size_t i = 0; i < items.size(); ++i)
        for (int64_t c = job_of(items[i]).first_chunk(items[i].first); c < job_of(items[i]).last_chunk(items[i].last); ++c)
            chunks.push_back({i, c});
    Buffer<float> parts(chunks.size() * of_part);
    spread(chunks.size(), [&](size_t c) {
        const Item& item = items[chunks[c].item];
        kernels().attend(job_of(item), item.head, item.first, item.last, chunks[c].number, room(own, floats),
                         part_of(item, parts.data() + c * of_part));
    });
    for (size_t c = 0, all = 0; c < chunks.size(); ++c) {
        const Item& item = items[chunks[c].item];
        if (c == 0 || chunks[c - 1].item != chunks[c].item)
            all = c;
        else
            kernels().add_part(part_of(item, parts.data() + all * of_part), part_of(item, parts.data() + c * of_part));
        if (c + 1 == chunks.size() || chunks[c + 1].item != chunks[c].item)
            kernels().finish_attention(job_of(item), item.head, item.first, part_of(item, parts.data() + all * of_part));
    }
}

void linear(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& m, const float* residual,
            float* out) {
    Workspace& w = workspace();
    std::lock_guard<std::mutex> guard(w.lock);
    const Activations a = activations(w, x, n_rows, m, norm, eps);
    const auto keep = [&](size_t, const Pair& pair, const float* results, size_t row, size_t n) {
        for (int i = 0; i < pair.n; ++i)
            put(results + i * n * kPanel, row, n, pair.panel[i], m.outputs, residual, out);
    };
    products(pairs_of(m), a, [&](size_t item) { return pair_of(m, item, n_rows); }, keep);
}

void gate_up(const float* x, size_t n_rows, const float* norm, float eps, const Matrix& w1, const Matrix& w3, float* out) {
    Workspace& w = workspace();
    std::lock_guard<std::mutex> guard(w.lock);
    const Activations a = activations(w, x, n_rows, w1, norm, eps);
    const auto keep = [&](size_t, const Pair& pair, float* gate, size_t row, size_t n) {
        kernels().swiglu(gate, gate + n * kPanel, gate, n * kPanel);
        put(gate, row, n, pair.panel[0], w1.outputs, nullptr, out);
    };
    products(w1.panels, a, [&](size_t item) { return Pair{{&w1, &w3}, {item, item}, 2}; }, keep);
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
        static thread_local Buffer<float> row;
        float* whole = room(row, w.tiles * kTile);
        kernels().unpack[int(w.format)](w.panel(rows[i] / kPanel), int(rows[i] % kPanel), w.tiles, whole);
        std::memcpy(out + i * w.inputs, whole, w.inputs * sizeof(float));
    });
}

}  // namespace cierzo
