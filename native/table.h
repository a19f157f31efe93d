// Every kernel of the instruction set whose lanes have been included before, as CIERZO_TARGET.
#pragma once
#include <type_traits>

#include "attention.h"
#include "coded.h"
#include "kernels.h"
#include "linear.h"
#include "round.h"
#include "rows.h"

namespace cierzo::CIERZO_TARGET {

constexpr Kernels table(const char* name, decltype(multiply_coded)* coded = multiply_coded) {
    return {name,
            quantize,
            norm,
            {multiply<Q4>, multiply<Q4M>, multiply<Q8>, coded},
            {unpack<Q4>, unpack<Q4M>, unpack<Q8>, unpack_coded},
            swiglu,
            attend,
            to_bf16,
            round_span,
            exponentials};
}

}  // namespace cierzo::CIERZO_TARGET
