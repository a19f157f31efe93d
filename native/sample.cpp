#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "isa.h"
#include "spread.h"

namespace cierzo {

static bool allows(const Draw& d, size_t token) { return !d.allowed || d.allowed[token / 8] >> (token % 8) & 1; }

// Walks the tokens in ascending order until their weights pass `draw` of the whole.
static int64_t walk(const std::vector<uint32_t>& tokens, const std::vector<float>& weights, double draw) {
    double total = 0, passed = 0;
    for (const uint32_t t : tokens) total += weights[t];
    if (!(total > 0) || !std::isfinite(total)) return -1;
    int64_t last = -1;
    for (const uint32_t t : tokens) {
        passed += weights[t];
        if (weights[t] > 0) last = t;
        if (passed > draw * total) break;
    }
    return last;
}

static int64_t choose(const Draw& d, size_t vocab) {
    int64_t best = -1;
    float peak = -std::numeric_limits<float>::infinity();
    for (size_t t = 0; t < vocab; ++t) {
        if (std::isnan(d.scores[t])) return -1;
        if (d.scores[t] > peak && allows(d, t)) peak = d.scores[t], best = int64_t(t);
    }
    if (best < 0 || !std::isfinite(peak)) return -1;
    if (d.temperature == 0) return best;

    static thread_local std::vector<float> weights;
    static thread_local std::vector<uint32_t> tokens;
    weights.resize(vocab);
    kernels().exponentials(d.scores, vocab, peak, float(d.temperature), weights.data());
    tokens.clear();
    for (size_t t = 0; t < vocab; ++t)
        if (allows(d, t) && d.scores[t] != -std::numeric_limits<float>::infinity()) tokens.push_back(uint32_t(t));

    const auto better = [&](uint32_t a, uint32_t b) {
        return d.scores[a] != d.scores[b] ? d.scores[a] > d.scores[b] : a < b;
    };
    if (d.top_k > 0 && size_t(d.top_k) < tokens.size()) {
        std::nth_element(tokens.begin(), tokens.begin() + d.top_k, tokens.end(), better);
        tokens.resize(size_t(d.top_k));
        std::sort(tokens.begin(), tokens.end());
    }
    if (d.top_p < 1) {
        double total = 0;
        for (const uint32_t t : tokens) total += weights[t];
        // All tokens below this weight together have less than 1 - top_p: the better ones reach top_p without them.
        const double least = total * (1 - d.top_p) / double(tokens.size());
        tokens.erase(std::remove_if(tokens.begin(), tokens.end(), [&](uint32_t t) { return weights[t] < least; }),
                     tokens.end());
        std::sort(tokens.begin(), tokens.end(), better);
        double before = 0;
        size_t kept = 0;
        for (; kept < tokens.size() && before < d.top_p * total; ++kept) before += weights[tokens[kept]];
        tokens.resize(kept);
        std::sort(tokens.begin(), tokens.end());
    }
    if (d.min_p > 0)  // the best token's weight is 1
        tokens.erase(std::remove_if(tokens.begin(), tokens.end(), [&](uint32_t t) { return weights[t] < d.min_p; }),
                     tokens.end());
    return walk(tokens, weights, d.draw);
}

void sample(Draw* draws, size_t n, size_t vocab) {
    spread(n, [&](size_t i) { draws[i].token = choose(draws[i], vocab); });
}

}  // namespace cierzo
