// A packed matrix in memory that somebody else keeps.
#pragma once
#include <cstddef>
#include <cstdint>

#include "format.h"

namespace cierzo {

struct Matrix {
    // Throws std::invalid_argument when the memory cannot be such a matrix.
    Matrix(uintptr_t data, size_t bytes, int format, size_t outputs, size_t inputs);

    const uint8_t* data;
    Format format;
    size_t outputs, inputs, panels, tiles;

    const uint8_t* panel(size_t number) const { return data + number * panel_bytes(format, tiles); }
};

}  // namespace cierzo
