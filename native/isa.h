// Which instruction set runs: the best that the machine has, or the one that CIERZO_ISA names.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace cierzo {

struct Candidate {
    const Kernels* table;
    std::string against;  // why this machine cannot run it; "" if it can
};

// The tables of this build, best first; portable, the last, always runs.
std::vector<Candidate> candidates();

// The chosen table. `use` throws std::invalid_argument for one that is not to be had.
const Kernels& kernels();
void use(const std::string& name);

}  // namespace cierzo
