// Bindings of the kernels, and nothing else. Tensors pass as addresses; an absent one is 0. Whoever calls has
// checked shapes, dtypes and layouts: kernels/cpu/__init__.py does.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "isa.hpp"

namespace nb = nanobind;
using namespace normkit;

namespace {

using Address = uintptr_t;

const Kernels& kernels() {
    static const Kernels& chosen = choose_kernels(std::getenv("NORMKIT_ISA"));
    return chosen;
}

std::string compiler() {
#if defined(__clang__)
    return "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#elif defined(__GNUC__)
    return "gcc " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__);
#else
    return "unknown";
#endif
}

int threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// Others may run Python meanwhile, unless the call is over before they could.
template <class Kernel, class Arguments>
auto run(Kernel kernel, const Arguments& call, int64_t elements) {
    std::optional<nb::gil_scoped_release> release;
    if (elements >= 1 << 16) release.emplace();
    return kernel(call);
}

template <class P>
P* at(Address address) {
    return reinterpret_cast<P*>(address);
}
Parameter parameter(Address address, int dtype) { return {at<void>(address), DType(dtype)}; }

Call call_of(int64_t N, int64_t C, int64_t S, int64_t G, int dtype, bool channels_last, int stages, int activation,
             double eps) {
    Call call{};
    call.N = N, call.C = C, call.S = S, call.G = G;
    call.dtype = DType(dtype);
    call.channels_last = channels_last;
    call.stages = stages;
    call.activation = Activation(activation);
    call.eps = eps;
    return call;
}

int64_t channels_forward(int64_t N, int64_t C, int64_t S, int dtype, bool channels_last, int stages, int activation,
                         double eps, Address x, Address y, Address weight, Address bias, int parameter_dtype,
                         Address residual, Address mask, Address mean, Address var, Address tail,
                         int statistics_dtype, Address stats) {
    Call call = call_of(N, C, S, 0, dtype, channels_last, stages, activation, eps);
    call.x = at<void>(x), call.y = at<void>(y), call.residual = at<void>(residual), call.mask = at<uint8_t>(mask);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    call.mean = parameter(mean, statistics_dtype), call.var = parameter(var, statistics_dtype);
    call.tail = at<double>(tail), call.stats = at<double>(stats);
    return run(kernels().channels_forward, call, N * C * S);
}

void channels_backward(int64_t N, int64_t C, int64_t S, int dtype, bool channels_last, int stages, int activation,
                       double eps, Address x, Address dy, Address weight, Address bias, int parameter_dtype,
                       Address residual, Address mask, Address mean, Address var, Address tail, int statistics_dtype,
                       bool constant_statistics, double count, Address dx, Address dresidual, Address dweight,
                       Address dbias, Address sums) {
    Call call = call_of(N, C, S, 0, dtype, channels_last, stages, activation, eps);
    call.x = at<void>(x), call.dy = at<void>(dy), call.residual = at<void>(residual), call.mask = at<uint8_t>(mask);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    call.mean = parameter(mean, statistics_dtype), call.var = parameter(var, statistics_dtype);
    call.tail = at<double>(tail);
    call.constant_statistics = constant_statistics, call.count = count;
    call.dx = at<void>(dx), call.dresidual = at<void>(dresidual), call.gradient_sums = at<double>(sums);
    call.dweight = parameter(dweight, parameter_dtype), call.dbias = parameter(dbias, parameter_dtype);
    run(kernels().channels_backward, call, N * C * S);
}

}  // namespace

NB_MODULE(_native, m) {
    kernels();  // an unknown NORMKIT_ISA is an error of the import

    m.def(
        "describe",
        [] {
            nb::dict facts;
            facts["compiler"] = compiler();
            facts["instruction_set"] = kernels().name;
            return facts;
        },
        nb::sig("def describe() -> dict[str, str]"),
        "The compiler of this extension and the instruction set that it runs with.");
    m.def("threads", threads, "The number of threads that a large call runs on.");
    m.def("channels_forward", channels_forward, nb::arg("N"), nb::arg("C"), nb::arg("S"), nb::arg("dtype"),
          nb::arg("channels_last"), nb::arg("stages"), nb::arg("activation"), nb::arg("eps"), nb::arg("x"),
          nb::arg("y"), nb::arg("weight"), nb::arg("bias"), nb::arg("parameter_dtype"), nb::arg("residual"),
          nb::arg("mask"), nb::arg("mean"), nb::arg("var"), nb::arg("tail"), nb::arg("statistics_dtype"),
          nb::arg("stats"));
    m.def("channels_backward", channels_backward, nb::arg("N"), nb::arg("C"), nb::arg("S"), nb::arg("dtype"),
          nb::arg("channels_last"), nb::arg("stages"), nb::arg("activation"), nb::arg("eps"), nb::arg("x"),
          nb::arg("dy"), nb::arg("weight"), nb::arg("bias"), nb::arg("parameter_dtype"), nb::arg("residual"),
          nb::arg("mask"), nb::arg("mean"), nb::arg("var"), nb::arg("tail"), nb::arg("statistics_dtype"),
          nb::arg("constant_statistics"), nb::arg("count"), nb::arg("dx"), nb::arg("dresidual"), nb::arg("dweight"),
          nb::arg("dbias"), nb::arg("sums"));
}
