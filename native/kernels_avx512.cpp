#define CIERZO_TARGET avx512
#include "simd/avx512.h"
#include "table.h"

namespace cierzo {
const Kernels kAvx512 = avx512::table("avx512");
}
