#include "fused.h"

#include <pthread.h>

#include <algorithm>
#include <array>
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

// Rows that panels are multiplied with at a time, and bytes of their activations: as much as stays in a core's second
// cache while many panels pass.
constexpr size_t kRowBlock = 256, kPartBytes = 1 << 20;
constexpr size_t kTogether = 8;  // pairs of panels that pass one part of the activations after the other

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

// Room for n_rows of the activations that a matrix takes.
Activations room_for(Workspace& w, size_t n_rows, const Matrix& m) {
    const size_t padded = padded_to(m.inputs, kTile), span = span_of(m.format);
    const size_t groups = padded / kGroup, spans = (padded + span - 1) / span;
    return {room(w.values, n_rows * padded + kRowTile * kTile), room(w.scales, n_rows * spans),
            room(w.sums, n_rows * groups), n_rows, padded, groups, spans};
}

// The same memory's rows [first, first + n) by themselves.
Activations part_of(const Activations& a, size_t first, size_t n) {
    return {a.values + first * a.inputs, a.scales + first * a.spans, a.sums + first * a.groups, n, a.inputs, a.groups,
            a.spans};
}

// One row x [inputs] as int8, into memory of the workspace.
void put_row(const Activations& a, size_t row, const float* x, const Matrix& m) {
    kernels().quantize(x, m.inputs, a.inputs, span_of(m.format), const_cast<int8_t*>(a.at(row, 0)), a.height(row) * kTile,
                       const_cast<float*>(a.scales) + row * a.spans, const_cast<int32_t*>(a.sums) + row * a.groups);
}

// Rows of x, normed where norm is given, as int8.
Activations activations(Workspace& w, const float* x, size_t n_rows, const Matrix& m, const float* norm, float eps) {
    const size_t inputs = m.inputs;
    float* normed = norm ? room(w.normed, n_rows * inputs) : nullptr;
    const Activations a = room_for(w, n_rows, m);
    spread(n_rows, [&](size_t row) {
        const float* from = x + row * inputs;
        if (norm) {
            kernels().norm(from, norm, eps, inputs, normed + row * inputs);
            from = normed + row * inputs;
        }
        put_row(a, row, from, m);
    });
    return a;
}

// Two panels that are multiplied side by side: neighbours, or the gate's and up's for the same outputs.
struct Pair {
    const Matrix* matrix[2];
    size_t panel[2];
    int n;
};

Pair neighbours(const Matrix& m, size_t pair) {
    return {{&m, &m}, {2 * pair, 2 * pair + 1}, 2 * pair + 1 < m.panels ? 2 : 1};
}

size_t pairs_of(const Matrix& m) { return (m.panels + 1) / 2; }

void multiply(const Pair& pair, const Activations& a, size_t row, size_t n, size_t tile, size_t last, float* out) {
    const auto product = [&](int first, int count) {
        const Matrix& m = *pair.matrix[first];
        const Product p{{m.panel(pair.panel[first]), count > 1 ? pair.matrix[1]->panel(pair.panel[1]) : nullptr}, count,
                        a, row, n, tile, last};
        kernels().multiply[int(m.format)](p, out + first * n * kPanel);
    };
    if (pair.n == 2 && pair.matrix[0]->format == pair.matrix[1]->format) return product(0, 2);
    for (int i = 0; i < pair.n; ++i) product(i, 1);
}

// Multiplies the block of rows from `row` on with pairs of panels [first, last), pair_of(item); finish(item, pair,
// results [pair.n][n][16], row, n) takes what came out for rows [row, row + n). Where the block's activations are larger
// than a cache, some pairs at a time pass one part of the inputs after the other.
template <class PairOf, class Finish>
void multiply_block(const Activations& a, size_t row, size_t first, size_t last, PairOf pair_of, Finish finish) {
    const size_t tiles = a.inputs / kTile, block = std::min(a.rows, kRowBlock);
    const size_t n_parts = std::max<size_t>(1, (block * a.inputs + kPartBytes / 2) / kPartBytes);
    const size_t part = padded_to((tiles + n_parts - 1) / n_parts, kSpanTiles);  // they begin where spans do
    const size_t together = n_parts == 1 ? 1 : kTogether;
    const size_t n = std::min(block, a.rows - row), size = 2 * n * kPanel;
    static thread_local std::vector<float> results;
    float* out = room(results, together * size);
    for (size_t from = first; from < last; from += together) {
        const size_t to = std::min(from + together, last);
        for (size_t tile = 0; tile < tiles; tile += part)
            for (size_t item = from; item < to; ++item)
                multiply(pair_of(item), a, row, n, tile, std::min(tile + part, tiles), out + (item - from) * size);
        for (size_t item = from; item < to; ++item) finish(item, pair_of(item), out + (item - from) * size, row, n);
    }
}

// All rows with `items` pairs of panels.
template <class PairOf, class Finish>
void products(size_t items, const Activations& a, PairOf pair_of, Finish finish) {
    for (size_t row = 0; row < a.rows; row += kRowBlock)
        spread_runs(items, [&](size_t first, size_t last) { multiply_block(a, row, first, last, pair_of, finish); });
}

// Rows that only one expert's matrices are multiplied with.
struct Group {
    size_t expert;
    Activations a;
};

// Each group's rows with its own `items` pairs of panels, pair_of(group, item); all groups' items share the threads.
template <class PairOf, class Finish>
void grouped_products(const std::vector<Group>& groups, size_t items, PairOf pair_of, Finish finish) {
    size_t most = 0;
    for (const Group& group : groups) most = std::max(most, group.a.rows);
    for (size_t row = 0; row < most; row += kRowBlock)
        spread_runs(groups.size() * items, [&](size_t first, size_t last) {
            for (size_t from = first; from < last;) {
                const Group& group = groups[from / items];
                const size_t begin = from % items, end = std::min(items, begin + last - from);
                if (row < group.a.rows)
                    multiply_block(
                        group.a, row, begin, end, [&](size_t item) { return pair_of(group, item); },
                        [&](size_t, const Pair& pair, float* results, size_t at, size_t n) {
                            finish(group, pair, results, at, n);
                        });
                from += end - begin;
            }
        });
}

// Results [n][16] of a panel into out [T, width], plus residual where given.
void put(const float* results, size_t row, size_t n, size_t panel, size_t width, const float* residual, float* out) {
    const size_t column = panel * kPanel, columns = std::min<size_t>(kPanel, width - column);
    for (size_t r = 0; r < n; ++r) {
        const size_t at = (row + r) * width + column;
        for (size_t c = 0; c < columns; ++c) out[at + c] = results[r * kPanel + c] + (residual ? residual[at + c] : 0);
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

// A token's heads x [width] into a side of the cache.
void put_cached(const float* x, void* side, CacheType type, size_t slot, size_t width, size_t head_dim) {
    if (type == CacheType::float32) {
        std::memcpy(static_cast<float*>(side) + slot * width, x, width * sizeof(float));
    } else if (type == CacheType::bfloat16) {
        kernels().to_bf16(x, static_cast<uint16_t*>(side) + slot * width, width);
    } else {
        static thread_local std::vector<int8_t> values;
        static thread_local std::vector<int32_t> sums;
        const size_t padded = padded_to(head_dim, kTile), n_heads = width / head_dim;
        int8_t* own = room(values, padded);
        int8_t* out = static_cast<int8_t*>(side) + slot * n_heads * head_width(type, head_dim);
        for (size_t head = 0; head < n_heads; ++head, out += head_width(type, head_dim)) {
            float scale;
            kernels().quantize(x + head * head_dim, head_dim, padded, padded, own, kTile, &scale,
                               room(sums, padded / kGroup));
            std::memcpy(out, own, head_dim);
            std::memcpy(out + head_dim, &scale, sizeof scale);
        }
    }
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
    const auto pair_of = [&](size_t item) {
        const Side side = side_of(item);
        return neighbours(*side.m, item);
    };
    const auto keep = [&](size_t item, const Pair& pair, const float* results, size_t row, size_t n) {
        const Side side = side_of(item);
        for (int i = 0; i < pair.n; ++i)
            put(results + i * n * kPanel, row, n, pair.panel[i], side.m->outputs, nullptr, side.out);
    };
    products(pairs_of(wq) + pairs_of(wk) + pairs_of(wv), a, pair_of, keep);
    const auto finish = [&](size_t row) {
        const float *c = cos + row * head_dim / 2, *s = sin + row * head_dim / 2;
        rotate(q + row * wq.outputs, wq.outputs, c, s, head_dim);
        rotate(k + row * width, width, c, s, head_dim);
        put_cached(k + row * width, cache.k, cache.type, tables.slots[row], width, head_dim);
        put_cached(v + row * width, cache.v, cache.type, tables.slots[row], width, head_dim);
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
    static thread_local std::vector<float> own;
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
    std::vector<float> parts(chunks.size() * of_part);
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
    products(pairs_of(m), a, [&](size_t item) { return neighbours(m, item); }, keep);
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

namespace {

struct Choice {
    size_t expert;
    float weight;
};

// The best experts of a row h [dim] by gate [n_experts, dim], with a softmax over their scores alone; a sum's order is
// the same on every instruction set.
void choose(const float* h, const float* gate, size_t dim, size_t n_experts, size_t n, Choice* chosen) {
    std::vector<float> scores(n_experts);
    for (size_t e = 0; e < n_experts; ++e) {
        const float* weights = gate + e * dim;
        float lanes[16] = {};
        for (size_t i = 0; i < dim; i += 16)
            for (size_t l = 0, n = std::min<size_t>(16, dim - i); l < n; ++l) lanes[l] += h[i + l] * weights[i + l];
        for (const float lane : lanes) scores[e] += lane;
    }
    std::vector<bool> taken(n_experts);
    float total = 0, peak = 0;
    for (size_t c = 0; c < n; ++c) {
        size_t best = n_experts;
        for (size_t e = 0; e < n_experts; ++e)
            if (!taken[e] && (best == n_experts || scores[e] > scores[best])) best = e;
        taken[best] = true;
        if (c == 0) peak = scores[best];
        chosen[c] = {best, std::exp(scores[best] - peak)};
        total += chosen[c].weight;
    }
    for (size_t c = 0; c < n; ++c) chosen[c].weight /= total;
    std::sort(chosen, chosen + n, [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
}

}  // namespace

void mixture(const float* x, size_t n_rows, const float* norm, float eps, const float* gate,
             const std::vector<Expert>& experts, size_t n_chosen, float* out) {
    Workspace& w = workspace();
    std::lock_guard<std::mutex> guard(w.lock);
    const Matrix &up = *experts[0].w1, &down = *experts[0].w2;
    const size_t dim = up.inputs, hidden = up.outputs, n_places = n_rows * n_chosen;
    float* normed = room(w.normed, n_rows * dim);
    std::vector<Choice> choices(n_places);
    spread(n_rows, [&](size_t row) {
        kernels().norm(x + row * dim, norm, eps, dim, normed + row * dim);
        choose(normed + row * dim, gate, dim, experts.size(), n_chosen, choices.data() + row * n_chosen);
    });

    // Rows lie together by expert: places[i] is where choice i's row is.
    std::vector<size_t> firsts(experts.size() + 1), places(n_places);
    for (const Choice& choice : choices) ++firsts[choice.expert + 1];
    for (size_t e = 0; e < experts.size(); ++e) firsts[e + 1] += firsts[e];
    std::vector<size_t> next(firsts.begin(), firsts.end() - 1);
    for (size_t i = 0; i < n_places; ++i) places[i] = next[choices[i].expert]++;
    const auto of_expert = [&](const Activations& all, size_t e) {
        return part_of(all, firsts[e], firsts[e + 1] - firsts[e]);
    };
    const auto groups_of = [&](const Activations& all) {
        std::vector<Group> groups;
        for (size_t e = 0; e < experts.size(); ++e)
            if (firsts[e + 1] > firsts[e]) groups.push_back({e, of_expert(all, e)});
        return groups;
    };

    float* gated = room(w.projected, n_places * (hidden + dim));
    float* answers = gated + n_places * hidden;
    const Activations taken = room_for(w, n_places, up);
    spread(n_places, [&](size_t i) {
        const size_t e = choices[i].expert;
        put_row(of_expert(taken, e), places[i] - firsts[e], normed + i / n_chosen * dim, up);
    });
    grouped_products(
        groups_of(taken), up.panels,
        [&](const Group& group, size_t item) {
            const Expert& expert = experts[group.expert];
            return Pair{{expert.w1, expert.w3}, {item, item}, 2};
        },
        [&](const Group& group, const Pair& pair, float* results, size_t row, size_t n) {
            kernels().swiglu(results, results + n * kPanel, results, n * kPanel);
            put(results, firsts[group.expert] + row, n, pair.panel[0], hidden, nullptr, gated);
        });

    const Activations fed = room_for(w, n_places, down);
    spread(n_places, [&](size_t i) {
        const size_t e = choices[i].expert;
        put_row(of_expert(fed, e), places[i] - firsts[e], gated + places[i] * hidden, down);
    });
    grouped_products(
        groups_of(fed), pairs_of(down),
        [&](const Group& group, size_t item) { return neighbours(*experts[group.expert].w2, item); },
        [&](const Group& group, const Pair& pair, float* results, size_t row, size_t n) {
            for (int i = 0; i < pair.n; ++i)
                put(results + i * n * kPanel, firsts[group.expert] + row, n, pair.panel[i], dim, nullptr, answers);
        });
    spread(n_rows, [&](size_t row) {
        for (size_t c = 0; c < dim; ++c) {
            float sum = 0;
            for (size_t i = row * n_chosen; i < (row + 1) * n_chosen; ++i)
                sum += choices[i].weight * answers[places[i] * dim + c];
            out[row * dim + c] = x[row * dim + c] + sum;
        }
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
