// Q4T times many rows on AMX, the same integers and then the same float operations as coded.h.
//
// Two panels are taken together, 32 outputs, and two row tiles, 32 rows: four accumulators. Nibbles become int8 a span of
// inputs at a time, which stays in the first cache while all rows pass; the next span is unpacked, and the sums of the rows
// before are scaled, by the vector units between the tile products of these. An accumulator is stored just before its next
// product: by then the products after its last have hidden how long that takes. Activations are loaded with a hint that keeps
// them out of the first cache, which is the span's (plain loads cost a tenth to a quarter of the speed).
#pragma once
#include <algorithm>
#include <cstdint>

#include "whole.h"
#include "simd/tile_registers.h"

namespace cierzo::CIERZO_TARGET {

constexpr size_t kFewRows = 6;  // below, unpacking for tiles takes longer than multiplying by vectors
static_assert(Activations::kTogether == 2 * kRowTile);

// Makes a span of two panels whole bytes, in even parts over so many turns.
class Unpacking {
public:
    using Span = uint8_t[kSpanTiles][2][1024];

    Unpacking(const CodedPanel (&panels)[2], size_t first, size_t last, Span& to, size_t turns)
        : panels_(panels), first_(first), units_(2 * (last - first)), turns_(turns), to_(to) {}

    void some() {
        for (due_ += units_; due_ >= turns_; due_ -= turns_, ++done_)
            unpack_tile<0>(panels_[done_ % 2], first_ + done_ / 2, to_[done_ / 2][done_ % 2]);
    }

private:
    const CodedPanel (&panels_)[2];
    const size_t first_, units_, turns_;  // a unit is a tile of one panel
    size_t due_ = 0, done_ = 0;
    Span& to_;
};

// Sums of up to 32 rows over a span, [row tile][panel][16 rows][16 outputs], that are to be scaled and added to `out`.
struct Summed {
    const int32_t* sums = nullptr;
    const float* scales = nullptr;  // of the rows' activations
    size_t rows = 0;
    F32x16 weight_scales[2];
    float* out[2];
    bool first = false;  // there is nothing in `out` yet

    // Row tile `tile`.
    void scale(size_t tile) const {
        if (rows <= tile * kRowTile) return;
        const F32x16 left = weight_scales[0], right = weight_scales[1];
        const __mmask16 before = first ? 0 : 0xFFFF;
        const int32_t* of_row = sums + tile * 2 * 256;
        const float* activation_scale = scales + tile * kRowTile;
        float *a = out[0] + tile * 256, *b = out[1] + tile * 256;
        const size_t end = std::min(rows, (tile + 1) * kRowTile);
        for (size_t row = tile * kRowTile; row < end; ++row) {
            const F32x16 scale = broadcast(*activation_scale++);
            const F32x16 x{_mm512_maskz_loadu_ps(before, a)}, y{_mm512_maskz_loadu_ps(before, b)};
            store(a, fma(mul(to_float({_mm512_load_si512(of_row)}), scale), left, x));
            store(b, fma(mul(to_float({_mm512_load_si512(of_row + 256)}), scale), right, y));
            of_row += kPanel;
            a += kPanel;
            b += kPanel;
        }
    }
};

// R row tiles times two panels, R x 2 accumulators. Full tiles: rows beyond the last are multiplied too, and not looked at.
template <int R>
void multiply_row_tiles(const Product& p, float* out) {
    static constexpr TileShapes shapes({16, 16, 16, 16, 16, 16, 16, 16}, {64, 64, 64, 64, 64, 64, 64, 64});
    shapes.configure();
    const Activations& a = p.rows;
    const size_t all = a.inputs / kTile, further = next_pair(p, all), passes = (p.n_rows + R * kRowTile - 1) / (R * kRowTile);
    const CodedPanel panels[2] = {{p.panels[0], all}, {p.panels[p.n_panels - 1], all}};
    alignas(64) Unpacking::Span weights[2];
    alignas(64) int32_t sums[1024];  // of the rows before: stored when these begin, scaled before they end
    alignas(64) float nowhere[2 * kRowTile * kPanel] = {};  // what a second panel has that is not there
    Summed summed;
    const auto end_of = [&](size_t tile) { return std::min(tile + kSpanTiles, p.last_tile); };
    const auto multiply_span = [&](size_t tile, size_t number) {
        const size_t end = end_of(tile), after = end_of(end), turns = passes * (end - tile), span = tile / kSpanTiles;
        Unpacking next(panels, end, after, weights[(number + 1) % 2], turns);
        Ahead ahead[2];  // the span after the next, or the next panels
        for (int i = 0; i < p.n_panels; ++i)
            ahead[i] = after < p.last_tile ? Ahead(panels[i].lines + after * 512, kSpanTiles * 512, turns)
                       : end < p.last_tile ? Ahead(p.panels[i] + further, CodedPanel::header(all), turns)
                                           : Ahead(panels[i].lines + further + p.first_tile * 512, 2 * kSpanTiles * 512, turns);
        for (size_t row = 0; row < p.n_rows; row += R * kRowTile) {
            const size_t rows = std::min<size_t>(R * kRowTile, p.n_rows - row), at = p.first_row + row;
            const size_t below = at + (rows > kRowTile ? kRowTile : 0);
            for (size_t t = tile; t < end; ++t) {
                const uint8_t (&b)[2][1024] = weights[number % 2][t - tile];
                // At the start of a span an accumulator gives what it has of the rows before.
                const auto begin = [&](auto accumulator) {
                    constexpr int kNumber = decltype(accumulator)::value;
                    if (t > tile) return;
                    store_tile<kNumber>(sums + kNumber * 256);
                    zero_tile<kNumber>();
                };
                load_tile<6>(b[0]);
                stream_tile<4>(a.at(at, t));
                begin(std::integral_constant<int, 0>());
                add_product<0, 4, 6>();
                load_tile<7>(b[1]);
                begin(std::integral_constant<int, 1>());
                add_product<1, 4, 7>();
                next.some();
                for (Ahead& some : ahead) some.some();
                if (t > tile && t <= tile + R) summed.scale(t - tile - 1);
                if constexpr (R == 2) {
                    stream_tile<5>(a.at(below, t));
                    begin(std::integral_constant<int, 2>());
                    add_product<2, 5, 6>();
                    begin(std::integral_constant<int, 3>());
                    add_product<3, 5, 7>();
                }
            }
            for (size_t missed = std::min<size_t>(R, end - tile - 1); missed < R; ++missed) summed.scale(missed);
            summed = {sums,
                      a.span_scales + a.span_offset(at, span),
                      rows,
                      {load_f16(panels[0].scales + span * kPanel), load_f16(panels[1].scales + span * kPanel)},
                      {out + row * kPanel, p.n_panels == 2 ? out + (p.n_rows + row) * kPanel : nowhere},
                      span == 0};
        }
    };
    Unpacking(panels, p.first_tile, end_of(p.first_tile), weights[0], 1).some();
    for (size_t tile = p.first_tile, number = 0; tile < p.last_tile; tile += kSpanTiles, ++number) multiply_span(tile, number);
    store_tile<0>(sums);
    store_tile<1>(sums + 256);
    if constexpr (R == 2) {
        store_tile<2>(sums + 512);
        store_tile<3>(sums + 768);
    }
    for (size_t tile = 0; tile < R; ++tile) summed.scale(tile);
    release_tiles();
}

inline void multiply_tiles(const Product& p, float* out) {
    if (p.n_rows < kFewRows) return multiply_coded(p, out);
    p.n_rows > kRowTile ? multiply_row_tiles<2>(p, out) : multiply_row_tiles<1>(p, out);
}

}  // namespace cierzo::CIERZO_TARGET
