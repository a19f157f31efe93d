#define CIERZO_TARGET avx2
#include "simd/avx2.h"
#include "table.h"

namespace cierzo {
const Kernels kAvx2 = avx2::table("avx2");
}
