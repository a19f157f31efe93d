// Which instruction set runs: the best that the machine has, or the one that CIERZO_ISA names.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace cierzo {

// The tables of this build that this machine can run, best first; portable is always there.
std::vector<const Kernels*> available();

// The chosen table. `use` throws std::invalid_argument for a name that is not available.
const Kernels& kernels();
void use(const std::string& name);

}  // namespace cierzo
