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

using Multiply = void (*)(const Product& product, float* out);

constexpr Kernels table(const char* name, Multiply q4 = multiply<Q4>, Multiply q4m = multiply<Q4M>,
                        Multiply q8 = multiply<Q8>, Multiply q4t = multiply_coded) {
    return {name,
            kSideBySide,
            quantize,
            norm,
            layer_norm,
            {q4, q4m, q8, q4t},
            {unpack<Q4>, unpack<Q4M>, unpack<Q8>, unpack_coded},
            put_panel,
            swiglu,
            gelu,
            attend,
            add_part,
            finish_attention,
            to_bf16,
            round_span,
            best_steps,
            exponentials};
}

}  // namespace cierzo::CIERZO_TARGET
