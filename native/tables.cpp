#include "tables.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace cierzo {

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

}  // namespace cierzo
