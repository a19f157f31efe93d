// From a row of scores to a token.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cierzo {

struct Draw {
    const float* scores;
    const uint8_t* allowed;  // a bit a token, or null for all
    double temperature, top_p, min_p;
    int64_t top_k;
    double draw;  // uniform in [0, 1)
    int64_t token;  // out: what was chosen, or -1 if no score is a number that can be chosen
};

// Chooses a token of `vocab` for every draw, as `cierzo.ops.reference.sample` says; a draw's token is its own alone.
void sample(Draw* draws, size_t n, size_t vocab);

}  // namespace cierzo
