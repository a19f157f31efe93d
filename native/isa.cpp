#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace cierzo {

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found;
#ifdef CIERZO_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        found.push_back(&kAvx2);
#endif
    found.push_back(&kPortable);
    return found;
}

static std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
    if (!chosen) chosen = available().front();
    return *chosen;
}

void use(const std::string& name) {
    std::string names;
    for (const Kernels* table : available()) {
        if (name == table->name) {
            chosen = table;
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(table->name);
    }
    throw std::invalid_argument("instruction set '" + name + "' is not available here: this machine and build run " + names);
}

}  // namespace cierzo
