// Q4T times many rows on AMX, the same integers and then the same float operations as coded.h.
//
// Two panels are taken together, 32 outputs, and two row tiles, 32 rows: four accumulators. Nibbles become int8 a chunk of
// inputs at a time, 16 KB that stay in the first cache while all rows pass; the next chunk is unpacked, and the sums of the
// span before are scaled, by the vector units between the tile products of this one. Activations are loaded with a hint that
// keeps them out of the first cache, which is the chunk's (plain loads cost a quarter of the speed).
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "chunk.h"

namespace cierzo::CIERZO_TARGET {

constexpr size_t kFewRows = 6;  // below, unpacking for tiles takes longer than multiplying by vectors

// Rows, and bytes a row, of the eight tile registers.
struct alignas(64) TileShapes {
    constexpr TileShapes(const uint8_t (&heights)[8], const uint16_t (&widths)[8]) {
        for (int i = 0; i < 8; ++i) {
            rows[i] = heights[i];
            row_bytes[i] = widths[i];
        }
    }
    // As assembly that reads all 64 bytes: gcc 12's intrinsic says 8.
    void configure() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }

    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// Instructions on tile registers, as assembly that says which 1024 bytes are read or written; gcc 12's intrinsics do not.
template <int T>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void load_tile(const void* p) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
                 ::"i"(T), "r"(p), "r"(64L), "m"(*static_cast<const int8_t(*)[1024]>(p)));
}
template <int T>
inline void stream_tile(const int8_t* p) {
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0"
                 ::"i"(T), "r"(p), "r"(64L), "m"(*reinterpret_cast<const int8_t(*)[1024]>(p)));
}
template <int T>
inline void store_tile(int32_t (&to)[256]) {
    asm volatile("tilestored %%tmm%c1, (%2,%3,1)" : "=m"(to) : "i"(T), "r"(to), "r"(64L));
}
// C += A x B: 16 rows x 64 inputs times 64 inputs x 16 outputs, exact.
template <int C, int A, int B>
inline void add_product() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
inline void release_tiles() { asm volatile("tilerelease"); }

// Unpacks a chunk of two panels line by line.
class Unpacking {
public:
    Unpacking(const CodedPanel (&panels)[2], size_t first, size_t last, Chunk& chunk)
        : chunk_(chunk), lines_(16 * (last - first)) {
        for (int i = 0; i < 2; ++i) {
            nibbles_[i] = panels[i].lines + first * 512;
            for (size_t t = first; t < last; ++t)
                for (int half = 0; half < 2; ++half) steps_[t - first][i][half] = WholeSteps<0>(panels[i].steps + t * kPanel, half);
        }
    }
    size_t lines() const { return lines_; }

    void some(size_t n) {
        for (const size_t end = std::min(done_ + n, lines_); done_ < end; ++done_) one(done_ / 16, done_ / 8 % 2, done_ % 8);
    }

private:
    void one(size_t tile, size_t panel, size_t line) {
        alignas(64) static constexpr auto table = code_bytes<64>();
        const __m512i codes = _mm512_load_si512(table.data());
        const uint8_t* from = nibbles_[panel] + tile * 512 + line * 64;
        asm volatile("prefetcht1 (%0)" ::"r"(from + kChunkTiles * 512));
        const __m512i nibbles = _mm512_loadu_si512(from);  // only the low bits of a byte are looked up
        const Bytes64 low{_mm512_permutexvar_epi8(nibbles, codes)};
        const Bytes64 high{_mm512_permutexvar_epi8(_mm512_srli_epi16(nibbles, 4), codes)};
        uint8_t* to = chunk_.tiles[tile][panel] + line * 64;
        _mm512_store_si512(to, steps_[tile][panel][0].weights(low));
        _mm512_store_si512(to + 512, steps_[tile][panel][1].weights(high));
    }

    Chunk& chunk_;
    const size_t lines_;
    size_t done_ = 0;
    const uint8_t* nibbles_[2];
    WholeSteps<0> steps_[kChunkTiles][2][2];
};

// Integer sums of a span, [row tile][panel][16 rows][16 outputs], and where they go, a few rows at a time.
class Scaling {
public:
    alignas(64) int32_t sums[2][2][256];

    void start(const Product& p, const CodedPanel (&panels)[2], size_t row, size_t rows, size_t span, float* out) {
        rows_ = rows;
        done_ = 0;
        stride_ = p.rows.spans;
        activation_scales_ = p.rows.scales + (p.first_row + row) * stride_ + span;
        panels_ = p.n_panels;
        for (int i = 0; i < panels_; ++i) {
            weight_scales_[i] = load_f16(panels[i].scales + span * kPanel);
            out_[i] = out + (i * p.n_rows + row) * kPanel;
        }
        begins_ = span == 0;
    }
    void some(size_t n) {
        for (const size_t end = std::min(done_ + n, rows_); done_ < end; ++done_)
            for (int i = 0; i < panels_; ++i) {
                const F32x16 sum = to_float({_mm512_load_si512(sums[done_ / 16][i] + done_ % 16 * 16)});
                float* to = out_[i] + done_ * kPanel;
                const F32x16 before = begins_ ? broadcast(0) : load(to);
                store(to, fma(mul(sum, broadcast(activation_scales_[done_ * stride_])), weight_scales_[i], before));
            }
    }

private:
    size_t rows_ = 0, done_ = 0, stride_ = 0;
    const float* activation_scales_ = nullptr;
    F32x16 weight_scales_[2];
    float* out_[2];
    int panels_ = 0;
    bool begins_ = false;
};

// Sums of 16 (Tiles = 1) or 32 rows over some tiles of inputs, into `sums`; `between` is called after each.
template <int Tiles, class Between>
inline void tile_sums(const int8_t* a, size_t a_step, const int8_t* next_a, size_t next_step, const Chunk& chunk, size_t first,
                      size_t last, int32_t (&sums)[2][2][256], Between between) {
    zero_tile<0>();
    zero_tile<1>();
    if constexpr (Tiles == 2) {
        zero_tile<2>();
        zero_tile<3>();
    }
    for (size_t t = first; t < last; ++t) {
        load_tile<6>(chunk.tiles[t][0]);
        stream_tile<4>(a);
        add_product<0, 4, 6>();
        load_tile<7>(chunk.tiles[t][1]);
        add_product<1, 4, 7>();
        between();
        if constexpr (Tiles == 2) {
            stream_tile<5>(next_a);
            add_product<2, 5, 6>();
            add_product<3, 5, 7>();
        }
        a += a_step;
        next_a += next_step;
    }
    store_tile<0>(sums[0][0]);
    store_tile<1>(sums[0][1]);
    if constexpr (Tiles == 2) {
        store_tile<2>(sums[1][0]);
        store_tile<3>(sums[1][1]);
    }
}

inline void multiply_tiles(const Product& p, float* out) {
    if (p.n_rows < kFewRows) return multiply_coded(p, out);
    // Full tiles: rows beyond the last are multiplied too, and not looked at.
    static constexpr TileShapes shapes({16, 16, 16, 16, 16, 16, 16, 16}, {64, 64, 64, 64, 64, 64, 64, 64});
    shapes.configure();
    const Activations& a = p.rows;
    const size_t all = a.inputs / kTile, row_pairs = (p.n_rows + 31) / 32;
    const CodedPanel panels[2] = {{p.panels[0], all}, {p.panels[p.n_panels - 1], all}};
    Chunk chunks[2];
    Scaling scaling[2];  // one is filled while the other is added
    size_t spans = 0;
    const auto end_of = [&](size_t tile) { return std::min(tile + kChunkTiles, p.last_tile); };
    Unpacking(panels, p.first_tile, end_of(p.first_tile), chunks[0]).some(~size_t(0) >> 1);
    for (size_t tile = p.first_tile, number = 0; tile < p.last_tile; tile += kChunkTiles, ++number) {
        const size_t end = end_of(tile);
        Unpacking next(panels, end, end_of(end), chunks[(number + 1) % 2]);
        const size_t lines = (next.lines() + row_pairs * (end - tile) - 1) / (row_pairs * (end - tile));
        for (size_t row = 0; row < p.n_rows; row += 32) {
            const size_t rows = std::min<size_t>(32, p.n_rows - row);
            for (size_t from = tile; from < end; from += kSpanTiles) {
                const size_t to = std::min(from + kSpanTiles, end);
                Scaling &now = scaling[spans % 2], &before = scaling[(spans + 1) % 2];
                ++spans;
                const size_t scaled = (32 + to - from - 1) / (to - from);
                const auto between = [&] {
                    next.some(lines);
                    before.some(scaled);
                };
                const size_t at = p.first_row + row, below = at + (rows > 16 ? 16 : 0);
                (rows > 16 ? tile_sums<2, decltype(between)> : tile_sums<1, decltype(between)>)(
                    a.at(at, from), a.height(at) * kTile, a.at(below, from), a.height(below) * kTile,
                    chunks[number % 2], from - tile, to - tile, now.sums, between);
                now.start(p, panels, row, rows, from / kSpanTiles, out);
            }
        }
    }
    scaling[(spans + 1) % 2].some(32);
    release_tiles();
}

}  // namespace cierzo::CIERZO_TARGET
