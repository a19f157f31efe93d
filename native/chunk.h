// Weights of Q4T, code x step, as whole bytes: a chunk of the inputs of one or two panels, for many rows to pass.
#pragma once
#include <algorithm>

#include "coded.h"

namespace cierzo::CIERZO_TARGET {

constexpr size_t kChunkTiles = kSpanTiles > 4 ? kSpanTiles : 8 / kSpanTiles * kSpanTiles;

// Lines of each tile, one group's after the other's: 4 inputs x 16 outputs.
struct Chunk {
    alignas(64) uint8_t tiles[kChunkTiles][2][1024];
};

// A group's steps, each twice in 16 bits, and what makes weights + Offset of their products with unsigned codes.
template <int Offset>
struct WholeSteps {
    __m512i twice, shift;

    WholeSteps() = default;
    WholeSteps(const uint8_t* numbers, int half) {
        alignas(64) static constexpr auto steps = step_bytes<64>(), shifts = shift_bytes<64>(Offset);
        __m128i n = _mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers));
        n = _mm_and_si128(half ? _mm_srli_epi16(n, 4) : n, _mm_set1_epi8(15));
        const __m512i four_times = _mm512_broadcast_i32x4(_mm_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0));
        const __m512i each = _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(n), four_times);
        static_assert(Q4T::steps[7] > 0 && Q4T::steps[8] < 0);
        // Below zero (numbers from 8 on) the product of the low byte takes one from the high byte.
        const __m512i taken = _mm512_and_si512(_mm512_srli_epi16(each, 3), _mm512_set1_epi16(0x0100));
        twice = _mm512_srai_epi16(_mm512_shuffle_epi8(_mm512_load_si512(steps.data()), each), 8);
        shift = _mm512_add_epi8(_mm512_shuffle_epi8(_mm512_load_si512(shifts.data()), each), taken);
    }
    // Unsigned codes lie two in 16 bits, and their products with a step, at most 240, fit a byte each.
    __m512i weights(Bytes64 codes) const { return _mm512_add_epi8(_mm512_mullo_epi16(codes.v, twice), shift); }
};

}  // namespace cierzo::CIERZO_TARGET
