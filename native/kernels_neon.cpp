#define CIERZO_TARGET neon
#include "simd/neon.h"
#include "table.h"

namespace cierzo {
const Kernels kNeon = neon::table("neon");
}
