#include "products.h"

#include <pthread.h>

namespace cierzo {

static Workspace* shared = new Workspace;  // never destroyed: threads may outlive main

Workspace& workspace() {
    // Whoever held a lock when the process forked is not in the child, which starts with a workspace of its own.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { shared = new Workspace; });
    (void)registered;
    static thread_local Workspace own;
    return alone ? own : *shared;
}

Activations room_for(Workspace& w, size_t n_rows, const Matrix& m) {
    const size_t padded = padded_to(m.inputs, kTile), span = span_of(m.format);
    const size_t groups = padded / kGroup, spans = (padded + span - 1) / span;
    return {room(w.values, n_rows * padded + kRowTile * kTile), room(w.scales, n_rows * spans),
            room(w.sums, n_rows * groups), room(w.totals, n_rows * spans), room(w.offsets, n_rows * groups),
            room(w.span_scales, n_rows * spans), n_rows, padded, groups, spans};
}

Activations part_of(const Activations& a, size_t first, size_t n) {
    return {a.values + first * a.inputs, a.scales + first * a.spans, a.sums + first * a.groups, a.totals + first * a.spans,
            a.offsets + first * a.groups, a.span_scales + first * a.spans, n, a.inputs, a.groups, a.spans};
}

void put_row(const Activations& a, size_t row, const float* x, const Matrix& m) {
    kernels().quantize(x, m.inputs, a.inputs, span_of(m.format), const_cast<int8_t*>(a.at(row, 0)), a.height(row) * kTile,
                       const_cast<float*>(a.scales) + row * a.spans, const_cast<int32_t*>(a.sums) + row * a.groups,
                       const_cast<int32_t*>(a.totals) + row * a.spans);
    a.derive(row);
}

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

size_t pairs_of(const Matrix& m) { return (m.panels + 1) / 2; }

Pair pair_of(const Matrix& m, size_t number, size_t rows) {
    const bool halves = rows < kernels().side_by_side;
    const size_t first = halves ? number : 2 * number, second = halves ? number + pairs_of(m) : first + 1;
    return {{&m, &m}, {first, second}, second < m.panels ? 2 : 1};
}

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

void put(const float* results, size_t row, size_t n, size_t panel, size_t width, const float* residual, float* out) {
    const size_t at = row * width + panel * kPanel, columns = std::min<size_t>(kPanel, width - panel * kPanel);
    kernels().put_panel(results, n, columns, residual ? residual + at : nullptr, width, out + at);
}

}  // namespace cierzo
