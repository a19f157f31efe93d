// Q4T times many rows on AVX-512, the same integers and then the same float operations as coded.h.
//
// A product of bytes for few rows costs a shuffle for the codes, and one with the step for every row and group. Many rows
// share weights that are whole bytes: nothing but products is left between the ends of spans, two panels by eight rows of
// them in registers.
#pragma once
#include "whole.h"

namespace cierzo::CIERZO_TARGET {

constexpr size_t kManyRows = 12;  // below, unpacking takes longer than it spares
constexpr size_t kChunkTiles = kSpanTiles > 4 ? kSpanTiles : 8 / kSpanTiles * kSpanTiles;

// Tiles of one or two panels, lines of one group after the other's: 4 inputs x 16 outputs.
struct Chunk {
    alignas(64) uint8_t tiles[kChunkTiles][2][1024];
};

// R rows over a chunk's tiles [first, last), into out[P].
template <int P, int R>
inline void chunk_rows(const Activations& a, size_t row, const Chunk& chunk, const CodedPanel* panels, size_t first,
                       size_t last, Ahead* ahead, float* const* out) {
    const size_t step = a.height(row) * kTile;
    const int8_t* x = a.at(row, first);
    for (size_t tile = first; tile < last;) {
        const size_t span = tile / kSpanTiles, end = std::min(last, (span + 1) * kSpanTiles);
        __m512i sums[P][R];
        for (int i = 0; i < P; ++i)
            for (int r = 0; r < R; ++r) sums[i][r] = _mm512_setzero_si512();
        for (; tile < end; ++tile, x += step) {
            for (int i = 0; i < P; ++i) ahead[i].some();
#pragma GCC unroll 16
            for (int l = 0; l < 16; ++l) {
                __m512i weights[P];
#pragma GCC unroll 2
                for (int i = 0; i < P; ++i) weights[i] = _mm512_load_si512(chunk.tiles[tile - first][i] + l * 64);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
                    for (int i = 0; i < P; ++i)
                        sums[i][r] = _mm512_dpbusd_epi32(sums[i][r], weights[i], broadcast_four(x + r * kTile + 4 * l));
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i shifted = _mm512_set1_epi32(128 * a.totals[(row + r) * a.spans + span]);
            const F32x16 scale = broadcast(a.scales[(row + r) * a.spans + span]);
#pragma GCC unroll 2
            for (int i = 0; i < P; ++i) {
                float* to = out[i] + r * kPanel;
                const F32x16 sum = to_float({_mm512_sub_epi32(sums[i][r], shifted)});
                const F32x16 before = span ? load(to) : broadcast(0);
                store(to, fma(mul(sum, scale), load_f16(panels[i].scales + span * kPanel), before));
            }
        }
    }
}

template <int P>
inline void multiply_chunks(const Product& p, float* out) {
    const Activations& a = p.rows;
    const size_t tiles = a.inputs / kTile, further = next_pair(p, tiles);
    size_t passes = p.n_rows / 8;  // of a chunk: eights, then a four, a two, a one
    for (const size_t rest : {4, 2, 1}) passes += (p.n_rows & rest) != 0;
    const CodedPanel panels[2] = {{p.panels[0], tiles}, {p.panels[P - 1], tiles}};
    Chunk chunk;
    for (size_t first = p.first_tile; first < p.last_tile; first += kChunkTiles) {
        const size_t last = std::min(first + kChunkTiles, p.last_tile);
        for (size_t tile = first; tile < last; ++tile)
            for (int i = 0; i < P; ++i) unpack_tile<128>(panels[i], tile, chunk.tiles[tile - first][i]);
        const size_t turns = passes * (last - first);
        Ahead ahead[P];  // the next chunk, while this one is multiplied
        for (int i = 0; i < P; ++i)
            ahead[i] = last < tiles ? Ahead(panels[i].lines + last * 512, kChunkTiles * 512, turns)
                                    : Ahead(p.panels[i] + further, CodedPanel::header(tiles) + kChunkTiles * 512, turns);
        size_t n = 0;
        const auto groups = [&](auto count) {
            for (; n + count <= p.n_rows; n += count) {
                float* const to[2] = {out + n * kPanel, out + (p.n_rows + n) * kPanel};
                chunk_rows<P, decltype(count)::value>(a, p.first_row + n, chunk, panels, first, last, ahead, to);
            }
        };
        groups(std::integral_constant<int, 8>{});
        groups(std::integral_constant<int, 4>{});
        groups(std::integral_constant<int, 2>{});
        groups(std::integral_constant<int, 1>{});
    }
}

inline void multiply_many(const Product& p, float* out) {
    if (p.n_rows < kManyRows) return multiply_coded(p, out);
    p.n_panels == 2 ? multiply_chunks<2>(p, out) : multiply_chunks<1>(p, out);
}

}  // namespace cierzo::CIERZO_TARGET
