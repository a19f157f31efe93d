#include <algorithm>
#include <cmath>

#include "fused.h"
#include "products.h"

namespace cierzo {

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
        [&](const Group& group, size_t item) { return pair_of(*experts[group.expert].w2, item, group.a.rows); },
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

}  // namespace cierzo
