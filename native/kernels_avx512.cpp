#define CIERZO_TARGET avx512
#include "simd/avx512.h"
#include "many_rows.h"
#include "table.h"

namespace cierzo {
const Kernels kAvx512 = avx512::table("avx512", avx512::multiply<Q4>, avx512::multiply<Q4M>, avx512::multiply<Q8>,
                                      avx512::multiply_many);
}
