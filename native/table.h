// Every kernel of the instruction set whose lanes have been included before, as CIERZO_TARGET.
#pragma once
#include <type_traits>

#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "rows.h"

namespace cierzo::CIERZO_TARGET {

constexpr Kernels table(const char* name) {
    return {name, quantize, norm, {panel<Q4>, panel<Q4M>, panel<Q8>}, {unpack<Q4>, unpack<Q4M>, unpack<Q8>}, swiglu,
            attend, to_bf16, exponentials};
}

}  // namespace cierzo::CIERZO_TARGET
