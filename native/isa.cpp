#include "isa.h"

#include <atomic>
#include <stdexcept>

#ifdef CIERZO_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(CIERZO_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace cierzo {

namespace {

#ifdef CIERZO_X86
bool has_avx512() {
    for (const bool found : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                             __builtin_cpu_supports("avx512vl") != 0, __builtin_cpu_supports("avx512dq") != 0,
                             __builtin_cpu_supports("avx512vnni") != 0})
        if (!found) return false;
    return true;
}
#endif

#ifdef CIERZO_AMX
#ifdef CIERZO_EMULATED_TILES
constexpr bool kEmulatedTiles = true;
#else
constexpr bool kEmulatedTiles = false;
#endif

// What stands against tiles, "" if nothing does.
std::string against_tiles() {
    if (kEmulatedTiles) return "";
    unsigned eax, ebx, ecx, edx, states, high;
    constexpr unsigned tile = 1u << 24, int8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (tile | int8)) != (tile | int8))
        return "the processor has no AMX int8";
    asm volatile("xgetbv" : "=a"(states), "=d"(high) : "c"(0));
    constexpr unsigned tiles = 3u << 17;
    if ((states & tiles) != tiles) return "the operating system does not keep tiles";
    // Linux wants to be asked, once a process, before tiles are used (Documentation/x86/xstate.rst).
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    static const long refused = syscall(SYS_arch_prctl, request, tile_data);
    return refused ? "the operating system does not grant tiles to this process" : "";
}
#endif

#ifdef CIERZO_NEON
bool has_dot_products() {
#ifdef __linux__
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return true;  // every processor of Apple's computers
#endif
}
#endif

}  // namespace

std::vector<Candidate> candidates() {
    std::vector<Candidate> all;
#ifdef CIERZO_X86
    __builtin_cpu_init();
    const std::string no_avx512 = has_avx512() ? "" : "the processor has no AVX-512 VNNI";
    all.push_back({&kAvx512, no_avx512});
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    all.push_back({&kAvx2, avx2 ? "" : "the processor has no AVX2"});
#ifdef CIERZO_AMX
    const Candidate amx{&kAmx, no_avx512.empty() ? against_tiles() : no_avx512};
    all.insert(kEmulatedTiles ? all.end() : all.begin(), amx);  // emulated ones only when they are asked for
#endif
#endif
#ifdef CIERZO_NEON
    all.push_back({&kNeon, has_dot_products() ? "" : "the processor has no dot products of bytes (ARMv8.2)"});
#endif
    all.push_back({&kPortable, ""});
    return all;
}

static std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
    if (!chosen)
        for (const Candidate& candidate : candidates())
            if (candidate.against.empty()) {
                chosen = candidate.table;
                break;
            }
    return *chosen;
}

void use(const std::string& name) {
    for (const Candidate& candidate : candidates())
        if (name == candidate.table->name) {
            if (!candidate.against.empty()) throw std::invalid_argument("no " + name + " here: " + candidate.against);
            chosen = candidate.table;
            return;
        }
    throw std::invalid_argument("unknown instruction set '" + name + "'");
}

}  // namespace cierzo
