// Every instruction set that this machine has against plain C++, bit for bit, over random shapes.
//
//   cmake -S tests/native -B build/sets && cmake --build build/sets && build/sets/sets [cases] [seed]
//
// Exit status 0 and a last line "same bits" when nothing differs. Needs no Python, so that an emulator can run it for sets that
// a machine lacks (docs/log.md tells how).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "half.h"
#include "isa.h"

using namespace cierzo;

namespace {

std::mt19937 random_bits;

int between(int low, int high) { return low + static_cast<int>(random_bits() % unsigned(high - low + 1)); }

std::vector<float> floats(size_t n, float size = 1) {
    std::normal_distribution<float> normal(0, size);
    std::vector<float> out(n);
    for (float& x : out) x = normal(random_bits);
    return out;
}

// Runs `run(kernels, results)` on every set and compares the bytes with those of the last set, portable.
template <class T, class Run>
bool same(const std::string& what, size_t size, Run run) {
    std::vector<std::vector<T>> results;
    std::vector<const char*> names;
    for (const Candidate& candidate : candidates()) {
        if (!candidate.against.empty()) continue;
        results.emplace_back(size);
        names.push_back(candidate.table->name);
        run(*candidate.table, results.back().data());
    }
    bool all = true;
    for (size_t i = 0; i + 1 < results.size(); ++i) {
        size_t differing = 0;
        for (size_t j = 0; j < size; ++j) differing += std::memcmp(&results[i][j], &results.back()[j], sizeof(T)) != 0;
        if (differing) std::printf("%s: %s differs in %zu of %zu\n", what.c_str(), names[i], differing, size);
        all &= !differing;
    }
    return all;
}

struct Rows {  // what an operation makes of float rows
    std::vector<int8_t> values;
    std::vector<float> scales, offsets, span_scales;
    std::vector<int32_t> sums, totals;
    Activations view;

    Rows(const std::vector<float>& x, size_t n, size_t inputs, size_t span)
        : view{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, n, padded_to(inputs, kTile), 0, 0} {
        view.groups = view.inputs / kGroup;
        view.spans = (view.inputs + span - 1) / span;
        values.resize(n * view.inputs + kRowTile * kTile);
        scales.resize(n * view.spans);
        sums.resize(n * view.groups);
        offsets.resize(sums.size());
        totals.resize(n * view.spans);
        span_scales.resize(n * view.spans);
        view = {values.data(), scales.data(), sums.data(), totals.data(), offsets.data(), span_scales.data(), n, view.inputs, view.groups, view.spans};
        for (size_t row = 0; row < n; ++row) {
            kPortable.quantize(x.data() + row * inputs, inputs, view.inputs, span, values.data() + view.offset(row, 0),
                               view.height(row) * kTile, scales.data() + row * view.spans, sums.data() + row * view.groups,
                               totals.data() + row * view.spans);
            view.derive(row);
        }
    }
};

uint16_t* random_scales(uint8_t* at, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        const uint16_t half = float_to_half(0.001f * static_cast<float>(between(1, 1000)));
        std::memcpy(at + 2 * i, &half, 2);
    }
    return reinterpret_cast<uint16_t*>(at);
}

// Two panels of random bytes with finite scales.
std::vector<uint8_t> random_panels(Format format, size_t tiles) {
    const size_t size = panel_bytes(format, tiles);
    std::vector<uint8_t> memory(2 * size);
    for (uint8_t& byte : memory) byte = static_cast<uint8_t>(random_bits());
    const size_t tile = size / tiles, scales = format == Format::q4m ? 64 : 32;
    for (int panel = 0; panel < 2; ++panel)
        if (format == Format::q4t)
            random_scales(memory.data() + panel * size, spans_of(tiles) * kPanel);
        else
            for (size_t t = 0; t < tiles; ++t) random_scales(memory.data() + panel * size + t * tile, scales);
    return memory;
}

bool products(Format format) {
    const size_t inputs = between(1, 4) == 1 ? between(1, 4000) : between(1, 1100), n = between(1, 4) == 1 ? between(97, 280) : between(1, 96);
    const Rows rows(floats(n * inputs, 2), n, inputs, span_of(format));
    const size_t tiles = rows.view.inputs / kTile, unit = 8 * kSpanTiles;
    const size_t cut = tiles > unit && between(0, 1) ? unit : tiles;  // in two parts, or in one
    const int panels = between(1, 2);
    const size_t row = n > 32 && between(0, 1) ? 32 * between(1, int(n - 1) / 32) : 0, taken = between(1, int(n - row));
    const std::vector<uint8_t> memory = random_panels(format, tiles);
    const std::string what = "format " + std::to_string(int(format)) + ", " + std::to_string(taken) + " rows from " + std::to_string(row) + " on of " +
                             std::to_string(inputs) + ", " + std::to_string(panels) + " panels";
    bool all = same<float>(what, panels * taken * kPanel, [&](const Kernels& kernels, float* out) {
        for (size_t first = 0; first < tiles; first += cut) {
            const Product p{{memory.data(), memory.data() + panel_bytes(format, tiles)}, panels, rows.view, row, taken, first,
                            std::min(first + cut, tiles)};
            kernels.multiply[int(format)](p, out);
        }
    });
    return all & same<float>("unpacked " + what, tiles * kTile, [&](const Kernels& kernels, float* out) {
        kernels.unpack[int(format)](memory.data(), int(n % kPanel), tiles, out);
    });
}

bool rows() {
    const size_t n = between(1, 700), padded = padded_to(n, kTile), wide = padded_to(n, 16);
    const std::vector<float> x = floats(wide, std::exp(static_cast<float>(between(-20, 20)))), y = floats(wide);
    bool all = same<float>("norm of " + std::to_string(n), n, [&](const Kernels& kernels, float* out) {
        kernels.norm(x.data(), y.data(), 1e-5f, n, out);
    });
    const std::vector<float> both = floats(2 * n);
    all &= same<float>("layer norm of " + std::to_string(n), n, [&](const Kernels& kernels, float* out) {
        std::copy_n(x.data(), n, out);
        kernels.layer_norm(out, both.data(), 1e-12f, n);
    });
    all &= same<float>("gelu of " + std::to_string(n), n, [&](const Kernels& kernels, float* out) {
        std::copy_n(x.data(), n, out);
        kernels.gelu(out, n);
    });
    all &= same<float>("swiglu of " + std::to_string(n), wide, [&](const Kernels& kernels, float* out) {
        kernels.swiglu(x.data(), y.data(), out, wide);
    });
    all &= same<uint16_t>("bfloat16 of " + std::to_string(n), n, [&](const Kernels& kernels, uint16_t* out) {
        kernels.to_bf16(x.data(), out, n);
    });
    const size_t columns = between(1, kPanel), width = columns + between(0, 20), rows = between(1, 40);
    const std::vector<float> results = floats(rows * kPanel), target = floats(rows * width);
    for (const bool added : {false, true})
        all &= same<float>("panel of " + std::to_string(columns), rows * width, [&](const Kernels& kernels, float* out) {
            std::copy(target.begin(), target.end(), out);
            kernels.put_panel(results.data(), rows, columns, added ? out : nullptr, width, out);
        });
    std::vector<float> odd = x;  // now and then with numbers that are none
    for (int i = between(-2, 2); i > 0; --i)
        odd[between(0, int(n) - 1)] = between(0, 1) ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
    for (const size_t span : {kGroup, kSpan}) {
        const std::string what = "int8 of " + std::to_string(n) + " by " + std::to_string(span);
        all &= same<float>(what, 2 * padded, [&](const Kernels& kernels, float* out) {
            std::vector<int8_t> values(3 * padded);
            std::vector<int32_t> sums(padded), totals(padded);
            kernels.quantize(odd.data(), n, padded, span, values.data(), 3 * kTile, out, sums.data(), totals.data());
            for (size_t i = 0; i < padded / kGroup; ++i) out[padded / 2 + i] = static_cast<float>(sums[i]);
            for (size_t i = 0; i * span < padded; ++i) out[padded / 4 + i] = static_cast<float>(totals[i]);
            for (size_t i = 0; i < padded; ++i) out[padded + i] = values[i / kTile * 3 * kTile + i % kTile];
        });
    }
    const size_t groups = between(1, 9);
    const std::vector<float> weights = floats(groups * kGroup), by = floats(groups * kGroup);
    std::vector<float> importance, scales;
    for (const float one : by) importance.push_back(one * one);
    for (size_t g = 0; g < groups; ++g) scales.push_back(static_cast<float>(between(0, 40)) / 1000.0f);
    all &= same<uint8_t>("steps of " + std::to_string(groups), groups, [&](const Kernels& kernels, uint8_t* out) {
        kernels.best_steps(weights.data(), importance.data(), scales.data(), groups, out);
    });
    const size_t span = between(1, kSpan);
    return all & same<uint8_t>("rounding of " + std::to_string(span), 2 + kSpan / kGroup + kSpan, [&](const Kernels& kernels, uint8_t* out) {
        const std::vector<float> w(y.size() >= span ? y : std::vector<float>(span, 0.5f));
        const uint16_t scale = kernels.round_span(w.data(), span, out + 2, out + 2 + kSpan / kGroup);
        std::memcpy(out, &scale, 2);
    });
}

bool attention() {
    const int kv_heads = between(1, 3), heads = kv_heads * between(1, 4);
    const bool whole = between(0, 1);  // sixteens, which kernels read where they are
    const int dim = whole ? 16 * between(1, 9) : 4 * between(1, 35), block = whole ? 16 * between(1, 3) : between(1, 20);
    const int64_t n = between(1, 40), position = between(0, 3) ? between(0, 300) : between(900, 2500), window = between(0, 1) ? between(1, 200) : 0;
    const int64_t blocks = (position + n + block - 1) / block;
    const size_t together = tokens_together(block), groups = size_t(blocks) * block / together * kv_heads;
    const size_t cells = groups * together * dim, of_group = together * head_width(CacheType::int8, dim);
    const std::vector<float> q = floats(size_t(n) * heads * dim, 2), k = floats(cells), v = floats(cells);
    std::vector<uint16_t> k16(cells), v16(cells);
    kPortable.to_bf16(k.data(), k16.data(), cells);
    kPortable.to_bf16(v.data(), v16.data(), cells);
    std::vector<int8_t> k8(groups * of_group), v8(k8.size());
    for (std::vector<int8_t>* side : {&k8, &v8})
        for (size_t at = 0; at < k8.size(); at += of_group) {
            int8_t* own = side->data() + at;
            for (size_t c = 0; c < together * dim; ++c) own[c] = static_cast<int8_t>(between(-127, 127));
            for (size_t token = 0; token < together; ++token) {
                const float scale = static_cast<float>(between(1, 1000)) / 50000.0f;
                std::memcpy(own + together * dim + token * sizeof scale, &scale, sizeof scale);
            }
        }
    struct Kept {
        const void *k, *v;
        CacheType type;
    };
    std::vector<int32_t> table;
    for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(blocks - 1 - b));
    bool all = true;
    for (const Kept& kept : {Kept{k.data(), v.data(), CacheType::float32}, Kept{k16.data(), v16.data(), CacheType::bfloat16},
                             Kept{k8.data(), v8.data(), CacheType::int8}}) {
        const std::string what = "attention, " + std::to_string(n) + " rows at " + std::to_string(position);
        all &= same<float>(what, q.size(), [&](const Kernels& kernels, float* out) {
            const Attention job{q.data(), out, kept.k, kept.v, kept.type, heads, kv_heads, dim, window, block, 0,
                                table.data(), 0, n, position};
            const size_t width = padded_to(dim, 16), group = heads / kv_heads;
            std::vector<float> scratch(attention_scratch(heads, kv_heads, dim));
            std::vector<float> memory(2 * AttentionPart::floats(kQueryBlock * group, width));
            for (int head = 0; head < kv_heads; ++head)
                for (int64_t row = 0; row < n; row += kQueryBlock) {
                    const int64_t end = std::min<int64_t>(row + kQueryBlock, n), begin = job.first_chunk(row);
                    const AttentionPart part(memory.data(), (end - row) * group, width);
                    const AttentionPart next(memory.data() + memory.size() / 2, (end - row) * group, width);
                    for (int64_t chunk = begin; chunk < job.last_chunk(end); ++chunk) {
                        kernels.attend(job, head, row, end, chunk, scratch.data(), chunk > begin ? next : part);
                        if (chunk > begin) kernels.add_part(part, next);
                    }
                    kernels.finish_attention(job, head, row, part);
                }
        });
    }
    return all;
}

}  // namespace

int main(int count, char** words) {
    const int cases = count > 1 ? std::atoi(words[1]) : 60;
    random_bits.seed(count > 2 ? std::atoi(words[2]) : 1);
    for (const Candidate& candidate : candidates())
        std::printf("%s: %s\n", candidate.table->name, candidate.against.empty() ? "compared" : candidate.against.c_str());
    int wrong = 0;
    for (int i = 0; i < cases; ++i) {
        for (int format = 0; format < kFormats; ++format) wrong += !products(static_cast<Format>(format));
        wrong += !rows();
        wrong += !attention();
        if (i % 10 == 9) std::printf("%d of %d\n", i + 1, cases), std::fflush(stdout);
    }
    std::printf(wrong ? "%d comparisons differ\n" : "same bits\n", wrong);
    return wrong != 0;
}
