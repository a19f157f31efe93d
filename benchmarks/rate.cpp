// How fast each instruction set multiplies, one thread, a matrix of 4096 x 4096:
//
//   cmake -S tests/native -B build/sets [-DCIERZO_SPAN=128] && cmake --build build/sets && build/sets/rate [set] [format]
//
// Prints a line for each set, format (0 Q4, 1 Q4M, 2 Q8, 3 Q4T) and number of rows: G operations (2 a weight and row) a second and
// the weights' GB/s, best of some runs. Weights pass in pairs of panels, as the operations of the seam take them.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "isa.h"

using namespace cierzo;

int main(int count, char** words) {
    constexpr size_t inputs = 4096, outputs = 4096, tiles = inputs / kTile, copies = 40;  // 340 MB, more than caches hold
    for (const Candidate& candidate : candidates()) {
        if (!candidate.against.empty() || (count > 1 && std::strcmp(words[1], candidate.table->name))) continue;
        for (int number = 0; number < kFormats; ++number) {
            if (count > 2 && number != std::atoi(words[2])) continue;
            const Format format = static_cast<Format>(number);
            const size_t size = panel_bytes(format, tiles), n_panels = copies * outputs / kPanel;
            std::vector<uint8_t> memory(n_panels * size + 64, 0x35);
            const uint8_t* panels = memory.data() + 64 - reinterpret_cast<uintptr_t>(memory.data()) % 64;
            for (const size_t n : {1, 2, 4, 8, 16, 256}) {
                const size_t spans = (inputs + span_of(format) - 1) / span_of(format);
                Buffer<int8_t> values(n * inputs + kRowTile * kTile, 3);
                Buffer<float> scales(n * spans, 0.01f), offsets(n * inputs / kGroup, 0.96f), out(2 * n * kPanel);
                Buffer<float> span_scales = scales;
                Buffer<int32_t> sums(n * inputs / kGroup, 96), totals(n * spans, 576);
                const Activations rows{values.data(), scales.data(), sums.data(), totals.data(), offsets.data(), span_scales.data(),
                                       n, inputs, inputs / kGroup, spans};
                const size_t done = std::min(n_panels, std::max<size_t>(2, 2 * n_panels / (n * 2)));
                double best = 1e9;
                for (int run = 0; run < 5; ++run) {
                    const auto start = std::chrono::steady_clock::now();
                    for (size_t panel = 0; panel < done; panel += 2)
                        candidate.table->multiply[number](
                            {{panels + panel * size, panels + (panel + 1) * size}, 2, rows, 0, n, 0, tiles}, out.data());
                    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
                    best = std::min(best, took.count());
                }
                const double weights = static_cast<double>(done) * kPanel * inputs;
                std::printf("%s format %d span %zu rows %3zu: %6.1f GOP/s, %5.2f GB/s\n", candidate.table->name, number,
                            span_of(format), n, 2 * weights * static_cast<double>(n) / best / 1e9,
                            static_cast<double>(done * size) / best / 1e9);
            }
        }
    }
}
