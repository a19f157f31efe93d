// Where the cache keeps the keys of a step's sequences.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cierzo {

// One window group's.
struct Tables {
    // rows: start, stop and position of each sequence; firsts, ends, blocks: sequence s has blocks[ends[s-1]:ends[s]],
    // from block number firsts[s] of its text on. Throws std::invalid_argument when a table does not cover its rows, or
    // names a block outside the cache.
    Tables(int64_t block_size, int64_t n_blocks, std::vector<int64_t> rows, std::vector<int64_t> firsts,
           std::vector<int64_t> ends, std::vector<int32_t> blocks);

    struct Sequence {
        int64_t start, stop, position, first_block;
        const int32_t* blocks;
    };
    int64_t block_size, n_blocks, n_rows = 0;
    std::vector<Sequence> sequences;
    std::vector<int64_t> slots;  // cache row of each row of the step

    Tables(const Tables&) = delete;  // sequences point into blocks_
    Tables& operator=(const Tables&) = delete;

private:
    std::vector<int32_t> blocks_;
};

}  // namespace cierzo
