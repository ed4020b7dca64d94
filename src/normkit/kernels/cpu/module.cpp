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

#include "dlpack.hpp"
#include "isa.hpp"
#include "pool.hpp"

namespace nb = nanobind;
using namespace nb::literals;
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

// One set of statistics for each channel, or for each sample and channel, parameters alike.
Call sets(int64_t N, int64_t C, int64_t S, bool per_sample) {
    Call call{};
    call.N = call.of_samples = N, call.C = call.G = C, call.S = S;
    call.affine_per_sample = per_sample;
    call.stats_stride = call.sums_stride = per_sample ? N * C : C;
    return call;
}

int64_t channels_forward(int64_t N, int64_t C, int64_t S, int dtype, bool channels_last, bool per_sample, int stages,
                         int activation, double eps, Address x, Address y, Address weight, Address bias,
                         int parameter_dtype, Address residual, Address mask, Address mean, Address var, Address tail,
                         int statistics_dtype, Address stats) {
    Call call = sets(N, C, S, per_sample);
    call.dtype = DType(dtype), call.channels_last = channels_last;
    call.stages = stages, call.activation = Activation(activation), call.eps = eps;
    call.x = at<void>(x), call.y = at<void>(y), call.residual = at<void>(residual), call.mask = at<uint8_t>(mask);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    call.mean = parameter(mean, statistics_dtype), call.var = parameter(var, statistics_dtype);
    call.tail = at<double>(tail), call.stats = at<double>(stats);
    if (!per_sample) return run(kernels().channels_forward, call, N * C * S);
    run(kernels().groups_forward, call, N * C * S);
    return S;
}

void channels_backward(int64_t N, int64_t C, int64_t S, int dtype, bool channels_last, bool per_sample, int stages,
                       int activation, double eps, Address x, Address dy, Address weight, Address bias,
                       int parameter_dtype, Address residual, Address mask, Address mean, Address var, Address tail,
                       int statistics_dtype, bool constant_statistics, Address slopes, Address dx, Address dresidual,
                       Address dweight, Address dbias, Address sums) {
    Call call = sets(N, C, S, per_sample);
    call.dtype = DType(dtype), call.channels_last = channels_last;
    call.stages = stages, call.activation = Activation(activation), call.eps = eps;
    call.x = at<void>(x), call.dy = at<void>(dy), call.residual = at<void>(residual), call.mask = at<uint8_t>(mask);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    call.mean = parameter(mean, statistics_dtype), call.var = parameter(var, statistics_dtype);
    call.tail = at<double>(tail);
    call.constant_statistics = constant_statistics, call.slopes = at<double>(slopes);
    call.dx = at<void>(dx), call.dresidual = at<void>(dresidual), call.gradient_sums = at<double>(sums);
    call.dweight = parameter(dweight, parameter_dtype), call.dbias = parameter(dbias, parameter_dtype);
    run(per_sample ? kernels().groups_backward : kernels().channels_backward, call, N * C * S);
}

void groups_forward(int64_t N, int64_t C, int64_t S, int64_t G, int dtype, bool channels_last, bool centred,
                    int activation, double eps, Address x, Address y, Address weight, Address bias, int parameter_dtype,
                    Address stats) {
    Call call{};
    call.N = call.of_samples = N, call.C = C, call.S = S, call.G = G, call.stats_stride = N * G;
    call.dtype = DType(dtype), call.channels_last = channels_last, call.uncentred = !centred;
    call.stages = kSums | kOutputs, call.activation = Activation(activation), call.eps = eps;
    call.x = at<void>(x), call.y = at<void>(y), call.stats = at<double>(stats);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    run(kernels().groups_forward, call, N * C * S);
}

void groups_backward(int64_t N, int64_t C, int64_t S, int64_t G, int dtype, bool channels_last, bool centred,
                     int activation, double eps, Address x, Address dy, Address weight, Address bias, int parameter_dtype,
                     Address stats, Address dx, Address dweight, Address dbias) {
    Call call{};
    call.N = call.of_samples = N, call.C = C, call.S = S, call.G = G, call.stats_stride = N * G;
    call.dtype = DType(dtype), call.channels_last = channels_last, call.uncentred = !centred;
    call.stages = kSums | kOutputs, call.activation = Activation(activation), call.eps = eps;
    call.x = at<void>(x), call.dy = at<void>(dy), call.dx = at<void>(dx);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    call.mean = {at<double>(stats), DType::f64}, call.var = {at<double>(stats) + N * G, DType::f64};
    call.tail = at<double>(stats) + 2 * N * G;
    call.dweight = parameter(dweight, parameter_dtype), call.dbias = parameter(dbias, parameter_dtype);
    run(kernels().groups_backward, call, N * C * S);
}

// Ghost batch norm: statistics of each run of `together` samples, and of what remains.
Call ghosts(int64_t N, int64_t C, int64_t S, int64_t together, int dtype, bool channels_last, int activation,
            double eps, Address x, Address weight, Address bias, int parameter_dtype, Address residual, Address mask) {
    Call call = sets(N, C, S, false);
    call.together = together, call.stats_stride = (N + together - 1) / together * C;
    call.dtype = DType(dtype), call.channels_last = channels_last;
    call.stages = kSums | kOutputs, call.activation = Activation(activation), call.eps = eps;
    call.x = at<void>(x), call.residual = at<void>(residual), call.mask = at<uint8_t>(mask);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    return call;
}

void ghosts_forward(int64_t N, int64_t C, int64_t S, int64_t together, int dtype, bool channels_last, int activation,
                    double eps, Address x, Address y, Address weight, Address bias, int parameter_dtype,
                    Address residual, Address mask, Address stats) {
    Call call = ghosts(N, C, S, together, dtype, channels_last, activation, eps, x, weight, bias, parameter_dtype,
                       residual, mask);
    call.y = at<void>(y), call.stats = at<double>(stats);
    run(kernels().groups_forward, call, N * C * S);
}

void ghosts_backward(int64_t N, int64_t C, int64_t S, int64_t together, int dtype, bool channels_last, int activation,
                     double eps, Address x, Address dy, Address weight, Address bias, int parameter_dtype,
                     Address residual, Address mask, Address stats, Address dx, Address dresidual, Address dweight,
                     Address dbias) {
    Call call = ghosts(N, C, S, together, dtype, channels_last, activation, eps, x, weight, bias, parameter_dtype,
                       residual, mask);
    call.dy = at<void>(dy), call.dx = at<void>(dx), call.dresidual = at<void>(dresidual);
    call.mean = {at<double>(stats), DType::f64}, call.var = {at<double>(stats) + call.stats_stride, DType::f64};
    call.tail = at<double>(stats) + 2 * call.stats_stride;
    call.dweight = parameter(dweight, parameter_dtype), call.dbias = parameter(dbias, parameter_dtype);
    run(kernels().groups_backward, call, N * C * S);
}

void renorm_forward(int64_t N, int64_t C, int64_t S, int dtype, bool channels_last, int activation, double eps,
                    Address x, Address y, Address weight, Address bias, int parameter_dtype, Address residual,
                    Address mask, Address known_mean, Address known_var, int known_dtype, double r_max, double d_max,
                    Address stats, Address corrected) {
    Call call = sets(N, C, S, false);
    call.dtype = DType(dtype), call.channels_last = channels_last;
    call.stages = kSums | kOutputs, call.activation = Activation(activation), call.eps = eps;
    call.x = at<void>(x), call.y = at<void>(y), call.residual = at<void>(residual), call.mask = at<uint8_t>(mask);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    call.known_mean = parameter(known_mean, known_dtype), call.known_var = parameter(known_var, known_dtype);
    call.r_max = r_max, call.d_max = d_max;
    call.stats = at<double>(stats), call.corrected = at<double>(corrected);
    run(kernels().channels_forward, call, N * C * S);
}

void rows_forward(int64_t R, int64_t M, int dtype, bool centred, double eps, Address x, Address y, Address weight,
                  Address bias, int parameter_dtype, Address stats) {
    RowsCall call{};
    call.R = R, call.M = M, call.dtype = DType(dtype), call.centred = centred, call.eps = eps;
    call.x = at<void>(x), call.y = at<void>(y), call.stats = at<double>(stats);
    call.weight = parameter(weight, parameter_dtype), call.bias = parameter(bias, parameter_dtype);
    run(kernels().rows_forward, call, R * M);
}

void rows_backward(int64_t R, int64_t M, int dtype, bool centred, double eps, Address x, Address dy, Address weight,
                   int parameter_dtype, Address stats, Address dx, Address dweight, Address dbias) {
    RowsCall call{};
    call.R = R, call.M = M, call.dtype = DType(dtype), call.centred = centred, call.eps = eps;
    call.x = at<void>(x), call.dy = at<void>(dy), call.dx = at<void>(dx), call.stats = at<double>(stats);
    call.weight = parameter(weight, parameter_dtype);
    call.dweight = parameter(dweight, parameter_dtype), call.dbias = parameter(dbias, parameter_dtype);
    run(kernels().rows_backward, call, R * M);
}

void update_running(int64_t C, int64_t sets, int64_t count, Address counts, double momentum, bool cumulative,
                    Address stats, Address mean, Address var, int dtype, Address batches, Address skipped) {
    kernels().update_running({C, sets, counts ? at<int64_t>(counts) : &count, momentum, cumulative,
                              at<int64_t>(batches), at<int64_t>(skipped), at<double>(stats), parameter(mean, dtype),
                              parameter(var, dtype)});
}

// A capsule that torch adopts once; until then the block is the capsule's.
nb::object pooled(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int dtype) {
    constexpr const char* name = "dltensor";
    ManagedTensor* tensor = pooled_tensor(DType(dtype), int(shape.size()), shape.data(), strides.data());
    PyObject* capsule = PyCapsule_New(tensor, name, [](PyObject* self) {
        if (!PyCapsule_IsValid(self, name)) return;  // adopted: the name has changed
        auto* left = static_cast<ManagedTensor*>(PyCapsule_GetPointer(self, name));
        left->deleter(left);
    });
    if (!capsule) tensor->deleter(tensor);
    return nb::steal(capsule);
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
    m.def("pooled_bytes", pooled_bytes, "Outputs of at least so many bytes come from the pool; 0: none does.");
    m.def("pooled", pooled, "shape"_a, "strides"_a, "dtype"_a, nb::sig(
          "def pooled(shape: Sequence[int], strides: Sequence[int], dtype: int) -> object"),
          "A DLPack capsule over uninitialized memory of the pool.");
    m.def("release_blocks", release_blocks, "Return the idle memory of the pool to the system; its bytes.");
    m.def("channels_forward", channels_forward, "N"_a, "C"_a, "S"_a, "dtype"_a, "channels_last"_a,
          "per_sample"_a, "stages"_a, "activation"_a, "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a, "parameter_dtype"_a, "residual"_a,
          "mask"_a, "mean"_a, "var"_a, "tail"_a, "statistics_dtype"_a, "stats"_a);
    m.def("channels_backward", channels_backward, "N"_a, "C"_a, "S"_a, "dtype"_a, "channels_last"_a,
          "per_sample"_a, "stages"_a, "activation"_a, "eps"_a, "x"_a, "dy"_a, "weight"_a, "bias"_a, "parameter_dtype"_a, "residual"_a,
          "mask"_a, "mean"_a, "var"_a, "tail"_a, "statistics_dtype"_a, "constant_statistics"_a, "slopes"_a,
          "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a, "sums"_a);
    m.def("groups_forward", groups_forward, "N"_a, "C"_a, "S"_a, "G"_a, "dtype"_a, "channels_last"_a,
          "centred"_a, "activation"_a, "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a, "parameter_dtype"_a, "stats"_a);
    m.def("groups_backward", groups_backward, "N"_a, "C"_a, "S"_a, "G"_a, "dtype"_a, "channels_last"_a,
          "centred"_a, "activation"_a, "eps"_a, "x"_a, "dy"_a, "weight"_a, "bias"_a, "parameter_dtype"_a, "stats"_a,
          "dx"_a, "dweight"_a, "dbias"_a);
    m.def("ghosts_forward", ghosts_forward, "N"_a, "C"_a, "S"_a, "together"_a, "dtype"_a, "channels_last"_a,
          "activation"_a, "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a, "parameter_dtype"_a, "residual"_a, "mask"_a,
          "stats"_a);
    m.def("ghosts_backward", ghosts_backward, "N"_a, "C"_a, "S"_a, "together"_a, "dtype"_a, "channels_last"_a,
          "activation"_a, "eps"_a, "x"_a, "dy"_a, "weight"_a, "bias"_a, "parameter_dtype"_a, "residual"_a, "mask"_a,
          "stats"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a);
    m.def("renorm_forward", renorm_forward, "N"_a, "C"_a, "S"_a, "dtype"_a, "channels_last"_a, "activation"_a,
          "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a, "parameter_dtype"_a, "residual"_a, "mask"_a, "known_mean"_a,
          "known_var"_a, "known_dtype"_a, "r_max"_a, "d_max"_a, "stats"_a, "corrected"_a);
    m.def("rows_forward", rows_forward, "R"_a, "M"_a, "dtype"_a, "centred"_a, "eps"_a, "x"_a, "y"_a, "weight"_a,
          "bias"_a, "parameter_dtype"_a, "stats"_a);
    m.def("rows_backward", rows_backward, "R"_a, "M"_a, "dtype"_a, "centred"_a, "eps"_a, "x"_a, "dy"_a,
          "weight"_a, "parameter_dtype"_a, "stats"_a, "dx"_a, "dweight"_a, "dbias"_a);
    m.def("update_running", update_running, "C"_a, "sets"_a, "count"_a, "counts"_a, "momentum"_a, "cumulative"_a,
          "stats"_a, "mean"_a, "var"_a, "dtype"_a, "batches"_a, "skipped"_a);
}
