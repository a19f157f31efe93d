#define CIERZO_TARGET amx
#include "simd/avx512.h"
#include "group_tiles.h"
#include "table.h"

namespace cierzo {
const Kernels kAmx = amx::table("amx", amx::multiply_group_tiles<Q4>, amx::multiply_group_tiles<Q4M>,
                                amx::multiply_group_tiles<Q8>, amx::multiply_tiles);
}
