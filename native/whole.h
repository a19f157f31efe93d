// Weights of Q4T, code x step, as whole bytes, for many rows to pass.
#pragma once
#include <algorithm>

#include "coded.h"

namespace cierzo::CIERZO_TARGET {

// A group's steps, each twice in 16 bits, and what makes weights + Offset of their products with unsigned codes.
template <int Offset>
struct WholeSteps {
    __m512i twice, shift;

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

// A tile of a panel as weights + Offset.
template <int Offset>
inline void unpack_tile(const CodedPanel& panel, size_t tile, uint8_t* to) {
    const uint8_t *lines = panel.lines + tile * 512, *steps = panel.steps + tile * kPanel;
    const WholeSteps<Offset> low(steps, 0), high(steps, 1);
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) {
        const Bytes64 line = load_line(lines + l * 64);
        _mm512_store_si512(to + l * 64, low.weights(codes_of(low_nibbles(line))));
        _mm512_store_si512(to + 512 + l * 64, high.weights(codes_of(high_nibbles(line))));
    }
}

// Memory that is wanted soon, fetched in `turns` parts.
class Ahead {
public:
    Ahead() = default;
    Ahead(const uint8_t* from, size_t bytes, size_t turns)
        : at_(from), end_(from + bytes), part_(padded_to((bytes + turns - 1) / turns, 64)) {}

    void some() {
        for (const uint8_t* stop = std::min(at_ + part_, end_); at_ < stop; at_ += 64) prefetch(at_);
    }

private:
    const uint8_t *at_ = nullptr, *end_ = nullptr;
    size_t part_ = 0;
};

// From one pair of panels of Q4T to the next that a thread takes: neighbours come in pairs.
inline size_t next_pair(const Product& p, size_t tiles) {
    const size_t size = panel_bytes(Format::q4t, tiles);
    return p.n_panels == 2 && p.panels[1] == p.panels[0] + size ? 2 * size : size;
}

}  // namespace cierzo::CIERZO_TARGET
