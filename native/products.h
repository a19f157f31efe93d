// What the fused operations are made of: activations as int8, and their products with panels of matrices over the
// pool's threads.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "isa.h"
#include "kernels.h"
#include "matrix.h"
#include "spread.h"

namespace cierzo {

// Rows that panels are multiplied with at a time, and bytes of their activations: as much as stays in a core's second
// cache while many panels pass.
constexpr size_t kRowBlock = 256, kPartBytes = 1 << 20;
constexpr size_t kPairsInTurn = 8;  // pairs of panels that pass one part of the activations after the other
static_assert(kRowBlock % Activations::kTogether == 0);

// Memory that operations of one process reuse: `lock` is held for the length of an operation, `layers_lock` for that of
// `run_layers`.
struct Workspace {
    std::mutex lock, layers_lock;
    Buffer<float> normed, scales, offsets, span_scales, projected, layers;
    Buffer<int8_t> values;
    Buffer<int32_t> sums, totals;
};
Workspace& workspace();

template <class T>
T* room(Buffer<T>& buffer, size_t n) {
    if (buffer.size() < n) buffer.resize(n);
    return buffer.data();
}

// Room for n_rows of the activations that a matrix takes.
Activations room_for(Workspace& w, size_t n_rows, const Matrix& m);

// The same memory's rows [first, first + n) by themselves.
Activations part_of(const Activations& a, size_t first, size_t n);

// One row x [inputs] as int8, into memory of the workspace.
void put_row(const Activations& a, size_t row, const float* x, const Matrix& m);

// Rows of x, normed where norm is given, as int8.
Activations activations(Workspace& w, const float* x, size_t n_rows, const Matrix& m, const float* norm, float eps);

// Two panels that are multiplied side by side: of one matrix, or the gate's and up's for the same outputs.
struct Pair {
    const Matrix* matrix[2];
    size_t panel[2];
    int n;
};
size_t pairs_of(const Matrix& m);
// Panels as kernels read them fastest for so many rows: neighbours, or one of either half of the matrix, which are two streams
// of memory then.
Pair pair_of(const Matrix& m, size_t number, size_t rows);

// Rows [row, row + n) of the activations times the pair -> out [pair.n][n][16], over tiles [tile, last) of the inputs:
// where `tile` is not 0, added to what is there.
void multiply(const Pair& pair, const Activations& a, size_t row, size_t n, size_t tile, size_t last, float* out);

// Multiplies the block of rows from `row` on with pairs of panels [first, last), pair_of(item); finish(item, pair,
// results [pair.n][n][16], row, n) takes what came out for rows [row, row + n). Where the block's activations are larger
// than a cache, some pairs at a time pass one part of the inputs after the other.
template <class PairOf, class Finish>
void multiply_block(const Activations& a, size_t row, size_t first, size_t last, PairOf pair_of, Finish finish) {
    const size_t tiles = a.inputs / kTile, block = std::min(a.rows, kRowBlock);
    const size_t n_parts = std::max<size_t>(1, (block * a.inputs + kPartBytes / 2) / kPartBytes);
    const size_t part = padded_to((tiles + n_parts - 1) / n_parts, kSpanTiles);  // they begin where spans do
    const size_t together = n_parts == 1 ? 1 : kPairsInTurn;
    const size_t n = std::min(block, a.rows - row), size = 2 * n * kPanel;
    static thread_local Buffer<float> results;
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
void put(const float* results, size_t row, size_t n, size_t panel, size_t width, const float* residual, float* out);

}  // namespace cierzo
