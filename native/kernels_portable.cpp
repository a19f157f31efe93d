#define CIERZO_TARGET portable
#include "simd/portable.h"
#include "table.h"

namespace cierzo {
const Kernels kPortable = portable::table("portable");
}
