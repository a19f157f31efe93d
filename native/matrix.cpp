#include "matrix.h"

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace cierzo {

Matrix::Matrix(uintptr_t memory, size_t bytes, int kind, size_t n_outputs, size_t n_inputs)
    : data(reinterpret_cast<const uint8_t*>(memory)), format(static_cast<Format>(kind)), outputs(n_outputs),
      inputs(n_inputs) {
    constexpr size_t limit = size_t(1) << 31;
    if (kind < 0 || kind >= kFormats) throw std::invalid_argument("unknown format " + std::to_string(kind));
    if (outputs < 1 || inputs < 1 || outputs > limit || inputs > limit)
        throw std::invalid_argument("a packed matrix needs between 1 and 2^31 outputs and inputs");
    panels = padded_to(outputs, kPanel) / kPanel;
    tiles = padded_to(inputs, kTile) / kTile;
    const size_t needed = panels * panel_bytes(format, tiles);
    if (bytes != needed)
        throw std::invalid_argument("a packed matrix of " + std::to_string(outputs) + " x " + std::to_string(inputs) +
                                    " takes " + std::to_string(needed) + " bytes, not " + std::to_string(bytes));
    if (memory % 64) throw std::invalid_argument("packed matrices must be 64-byte aligned");
}

}  // namespace cierzo
