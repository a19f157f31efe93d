#define CIERZO_TARGET amx
#include "simd/avx512.h"
#include "table.h"
#include "tiles.h"

namespace cierzo {
const Kernels kAmx = amx::table("amx", amx::multiply_tiles);
}
