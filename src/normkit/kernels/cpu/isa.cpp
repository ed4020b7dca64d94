#include "isa.hpp"

#include <stdexcept>

namespace normkit {

#define NORMKIT_DECLARE(isa)         \
    namespace isa {                  \
    extern const Kernels kernels;    \
    }
#if defined(NORMKIT_X86)
NORMKIT_DECLARE(avx512)
NORMKIT_DECLARE(avx2)
#endif
NORMKIT_DECLARE(baseline)

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> available;
#if defined(NORMKIT_X86)
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        available.push_back(&avx512::kernels);
    if (avx2) available.push_back(&avx2::kernels);
#endif
    available.push_back(&baseline::kernels);
    return available;
}

const Kernels& choose_kernels(const char* name) {
    std::string names;
    for (const Kernels* kernels : available_kernels()) {
        if (name == nullptr || *name == '\0' || name == std::string(kernels->name)) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("NORMKIT_ISA='" + std::string(name) + "': this build on this processor runs " + names);
}

}  // namespace normkit
