// Bindings of the compiled extension, and nothing else.
//
// describe() tells what the extension was built with and what this processor can run;
// `normkit env` shows it, so that a slow machine or a broken build is seen and not guessed.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

namespace nb = nanobind;

namespace {

std::string compiler() {
#if defined(__clang__)
    return "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#elif defined(__GNUC__)
    return "gcc " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__);
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

// The widest instruction set that the processor runs, by the names that kernels are built under.
std::string instruction_set() {
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
    return "baseline";
#elif defined(__aarch64__)
    return "neon";
#else
    return "baseline";
#endif
}

}  // namespace

NB_MODULE(_native, m) {
    m.def(
        "describe",
        [] {
            nb::dict facts;
            facts["compiler"] = compiler();
            facts["instruction_set"] = instruction_set();
            return facts;
        },
        nb::sig("def describe() -> dict[str, str]"),
        "The compiler of this extension and the widest instruction set of this processor.");
}
