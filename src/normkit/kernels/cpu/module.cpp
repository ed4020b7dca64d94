// Bindings of the kernels, and nothing else. Whoever calls has checked shapes, dtypes and layouts.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
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
#include "merging.hpp"
#include "plain.hpp"
#include "pool.hpp"
#include "tensor.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace normkit;

namespace {

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

template <class P = void>
P* data(const Maybe& tensor) {
    return tensor ? tensor->data<P>() : nullptr;
}
// Two that share a dtype, either of which may be absent.
void set(Parameter& a, const Maybe& of_a, Parameter& b, const Maybe& of_b) {
    const DType dtype = of_a ? of_a->dtype() : of_b ? of_b->dtype() : DType{};
    a = {data(of_a), dtype}, b = {data(of_b), dtype};
}

// Sizes, layout and dtype of x (N, C, *spatial), and what else every call of the two families has.
Call about(const Tensor& x, const Maybe& weight, const Maybe& bias, int stages, int activation, double eps) {
    Call call{};
    const nb::object shape = x.shape();
    const auto size = [&](Py_ssize_t axis) { return PyLong_AsLongLong(PyTuple_GetItem(shape.ptr(), axis)); };
    call.N = call.of_samples = size(0), call.C = size(1), call.S = 1;
    for (Py_ssize_t axis = 2; axis < PyTuple_Size(shape.ptr()); ++axis) call.S *= size(axis);
    call.channels_last = call.S == 1 || !x.is_contiguous();
    call.dtype = x.dtype(), call.stages = stages, call.activation = Activation(activation), call.eps = eps;
    call.x = x.data<void>();
    set(call.weight, weight, call.bias, bias);
    return call;
}

// One set of statistics for each channel, or for each sample and channel, parameters alike.
void of_channels(Call& call, bool per_sample, const Maybe& residual, const Maybe& mask, const Maybe& mean,
                 const Maybe& var, const Maybe& tail) {
    call.G = call.C, call.affine_per_sample = per_sample;
    call.stats_stride = call.sums_stride = per_sample ? call.N * call.C : call.C;
    call.residual = data(residual), call.mask = data<uint8_t>(mask);
    set(call.mean, mean, call.var, var);
    call.tail = data<double>(tail);
}

// The rows of `stats` are given: mean, biased variance and tail.
void give(Call& call, double* stats) {
    call.mean = {stats, DType::f64}, call.var = {stats + call.stats_stride, DType::f64};
    call.tail = stats + 2 * call.stats_stride;
}

void gradients(Call& call, const Maybe& dweight, const Maybe& dbias) {
    call.dweight = {data(dweight), call.weight.dtype}, call.dbias = {data(dbias), call.bias.dtype};
}

int64_t channels_forward(int stages, int activation, double eps, bool per_sample, Tensor x, Maybe y, Maybe weight,
                         Maybe bias, Maybe residual, Maybe mask, Maybe mean, Maybe var, Maybe tail, Maybe stats) {
    Call call = about(x, weight, bias, stages, activation, eps);
    of_channels(call, per_sample, residual, mask, mean, var, tail);
    call.y = data(y), call.stats = data<double>(stats);
    if (!per_sample) return run(kernels().channels_forward, call, call.N * call.C * call.S);
    run(kernels().groups_forward, call, call.N * call.C * call.S);
    return call.S;
}

void channels_backward(int stages, int activation, double eps, bool per_sample, Tensor x, Tensor dy, Maybe weight,
                       Maybe bias, Maybe residual, Maybe mask, Maybe mean, Maybe var, Maybe tail, Maybe stats,
                       bool constant_statistics, Maybe slopes, Maybe dx, Maybe dresidual, Maybe dweight, Maybe dbias,
                       Maybe sums) {
    Call call = about(x, weight, bias, stages, activation, eps);
    of_channels(call, per_sample, residual, mask, mean, var, tail);
    if (stats) give(call, stats->data<double>());
    call.constant_statistics = constant_statistics, call.slopes = data<double>(slopes);
    call.dy = dy.data<void>(), call.dx = data(dx), call.dresidual = data(dresidual);
    call.gradient_sums = data<double>(sums);
    gradients(call, dweight, dbias);
    run(per_sample ? kernels().groups_backward : kernels().channels_backward, call, call.N * call.C * call.S);
}

void groups_forward(int64_t G, bool centred, int activation, double eps, Tensor x, Tensor y, Maybe weight, Maybe bias,
                    Tensor stats) {
    Call call = about(x, weight, bias, kSums | kOutputs, activation, eps);
    call.G = G, call.stats_stride = call.N * G, call.uncentred = !centred;
    call.y = y.data<void>(), call.stats = stats.data<double>();
    run(kernels().groups_forward, call, call.N * call.C * call.S);
}

void groups_backward(int64_t G, bool centred, int activation, double eps, Tensor x, Tensor dy, Maybe weight, Maybe bias,
                     Tensor stats, Tensor dx, Maybe dweight, Maybe dbias) {
    Call call = about(x, weight, bias, kSums | kOutputs, activation, eps);
    call.G = G, call.stats_stride = call.N * G, call.uncentred = !centred;
    call.dy = dy.data<void>(), call.dx = dx.data<void>();
    give(call, stats.data<double>());
    gradients(call, dweight, dbias);
    run(kernels().groups_backward, call, call.N * call.C * call.S);
}

// Ghost batch norm: statistics of each run of `together` samples, and of what remains.
Call ghosts(int64_t together, int activation, double eps, const Tensor& x, const Maybe& weight, const Maybe& bias,
            const Maybe& residual, const Maybe& mask) {
    Call call = about(x, weight, bias, kSums | kOutputs, activation, eps);
    of_channels(call, false, residual, mask, {}, {}, {});
    call.together = together, call.stats_stride = (call.N + together - 1) / together * call.C;
    return call;
}

void ghosts_forward(int64_t together, int activation, double eps, Tensor x, Tensor y, Maybe weight, Maybe bias,
                    Maybe residual, Maybe mask, Tensor stats) {
    Call call = ghosts(together, activation, eps, x, weight, bias, residual, mask);
    call.y = y.data<void>(), call.stats = stats.data<double>();
    run(kernels().groups_forward, call, call.N * call.C * call.S);
}

void ghosts_backward(int64_t together, int activation, double eps, Tensor x, Tensor dy, Maybe weight, Maybe bias,
                     Maybe residual, Maybe mask, Tensor stats, Tensor dx, Maybe dresidual, Maybe dweight,
                     Maybe dbias) {
    Call call = ghosts(together, activation, eps, x, weight, bias, residual, mask);
    call.dy = dy.data<void>(), call.dx = dx.data<void>(), call.dresidual = data(dresidual);
    give(call, stats.data<double>());
    gradients(call, dweight, dbias);
    run(kernels().groups_backward, call, call.N * call.C * call.S);
}

// Batch norm by a blend: the statistics of all samples, or of each, a share of the way there from known ones.
void blend_forward(int activation, double eps, bool per_sample, Tensor x, Tensor y, Maybe weight, Maybe bias,
                   Maybe residual, Maybe mask, Tensor known_mean, Tensor known_var, double share, Tensor stats) {
    Call call = about(x, weight, bias, kSums | kOutputs, activation, eps);
    of_channels(call, false, residual, mask, {}, {}, {});
    if (per_sample) call.stats_stride = call.N * call.C;
    set(call.known_mean, known_mean, call.known_var, known_var);
    call.share = share, call.y = y.data<void>(), call.stats = stats.data<double>();
    if (per_sample) return run(kernels().groups_forward, call, call.N * call.C * call.S);
    run(kernels().channels_forward, call, call.N * call.C * call.S);
}

// Batch renorm: `stats` (7, C) are the statistics and, corrected, what they led to.
void renorm_forward(int activation, double eps, Tensor x, Tensor y, Maybe weight, Maybe bias, Maybe residual,
                    Maybe mask, Tensor known_mean, Tensor known_var, double r_max, double d_max, Tensor stats) {
    Call call = about(x, weight, bias, kSums | kOutputs, activation, eps);
    of_channels(call, false, residual, mask, {}, {}, {});
    set(call.known_mean, known_mean, call.known_var, known_var);
    call.r_max = r_max, call.d_max = d_max;
    call.y = y.data<void>(), call.stats = stats.data<double>(), call.corrected = call.stats + 3 * call.C;
    run(kernels().channels_forward, call, call.N * call.C * call.S);
}

void renorm_backward(int activation, double eps, Tensor x, Tensor dy, Maybe residual, Maybe mask, Tensor stats,
                     Tensor dx, Maybe dresidual, Maybe dweight, Maybe dbias) {
    Call call = about(x, {}, {}, kSums | kOutputs, activation, eps);
    of_channels(call, false, residual, mask, {}, {}, {});
    give(call, stats.data<double>());
    call.corrected = stats.data<double>() + 3 * call.C;
    call.weight = {call.corrected + 2 * call.C, DType::f64}, call.bias = {call.corrected + 3 * call.C, DType::f64};
    call.dy = dy.data<void>(), call.dx = dx.data<void>(), call.dresidual = data(dresidual);
    set(call.dweight, dweight, call.dbias, dbias);
    run(kernels().channels_backward, call, call.N * call.C * call.S);
}

// Switch norm and batch-instance norm: `statistics` (6, N, C) are the moments of each sample's channels and what of
// them normalizes, `batch` (2, C) the moments of the batch.
MixtureCall mixture(int kind, int activation, double eps, const Tensor& x, const Maybe& weight, const Maybe& bias,
                    const Maybe& residual, const Maybe& mask, const Tensor& first, const Maybe& second,
                    const Tensor& statistics, const Tensor& batch) {
    MixtureCall mixture{about(x, weight, bias, kSums | kOutputs, activation, eps), Mixture(kind)};
    Call& call = mixture.call;
    of_channels(call, false, residual, mask, {}, {}, {});
    call.stats_stride = call.N * call.C, call.stats = statistics.data<double>();
    set(mixture.share[0], first, mixture.share[1], second);
    mixture.batch = batch.data<double>();
    mixture.mixed = call.stats + 3 * call.stats_stride;
    return mixture;
}

int64_t mixture_forward(int kind, int activation, double eps, Tensor x, Tensor y, Maybe weight, Maybe bias,
                        Maybe residual, Maybe mask, Maybe known_mean, Maybe known_var, Tensor first, Maybe second,
                        Tensor statistics, Tensor batch) {
    MixtureCall all =
        mixture(kind, activation, eps, x, weight, bias, residual, mask, first, second, statistics, batch);
    set(all.call.known_mean, known_mean, all.call.known_var, known_var);
    all.known = known_mean.has_value(), all.call.y = y.data<void>();
    return run(kernels().mixture_forward, all, all.call.N * all.call.C * all.call.S);
}

void mixture_backward(int kind, int activation, double eps, Tensor x, Tensor dy, Maybe weight, Maybe bias,
                      Maybe residual, Maybe mask, bool known, Tensor first, Maybe second, Tensor statistics,
                      Tensor batch, Maybe dx, Maybe dresidual, Maybe dweight, Maybe dbias, Tensor dfirst,
                      Maybe dsecond) {
    MixtureCall all =
        mixture(kind, activation, eps, x, weight, bias, residual, mask, first, second, statistics, batch);
    all.known = known, all.call.dy = dy.data<void>(), all.call.dx = data(dx), all.call.dresidual = data(dresidual);
    gradients(all.call, dweight, dbias);
    set(all.dshare[0], dfirst, all.dshare[1], dsecond);
    run(kernels().mixture_backward, all, all.call.N * all.call.C * all.call.S);
}

RowsCall about_rows(int64_t R, bool centred, double eps, const Tensor& x, const Maybe& weight, const Maybe& bias,
                    const Tensor& stats) {
    RowsCall call{};
    call.R = R, call.M = x.numel() / R, call.dtype = x.dtype(), call.centred = centred, call.eps = eps;
    call.x = x.data<void>(), call.stats = stats.data<double>();
    set(call.weight, weight, call.bias, bias);
    return call;
}

void rows_forward(int64_t R, bool centred, double eps, Tensor x, Tensor y, Maybe weight, Maybe bias, Tensor stats) {
    RowsCall call = about_rows(R, centred, eps, x, weight, bias, stats);
    call.y = y.data<void>();
    run(kernels().rows_forward, call, call.R * call.M);
}

void rows_backward(int64_t R, bool centred, double eps, Tensor x, Tensor dy, Maybe weight, Maybe bias, Tensor stats,
                   Tensor dx, Maybe dweight, Maybe dbias) {
    RowsCall call = about_rows(R, centred, eps, x, weight, bias, stats);
    call.dy = dy.data<void>(), call.dx = dx.data<void>();
    call.dweight = {data(dweight), call.weight.dtype}, call.dbias = {data(dbias), call.bias.dtype};
    run(kernels().rows_backward, call, call.R * call.M);
}

void update_running(int64_t count, Maybe counts, double momentum, bool cumulative, Tensor stats, Tensor mean,
                    Tensor var, Maybe batches, Maybe skipped) {
    RunningCall call{};
    call.C = mean.numel(), call.sets = counts ? counts->numel() : 1;
    call.counts = counts ? counts->data<int64_t>() : &count;
    call.momentum = momentum, call.cumulative = cumulative;
    call.batches = batches ? batches->counter("num_batches_tracked") : nullptr;
    call.skipped = skipped ? skipped->counter("num_batches_skipped") : nullptr;
    call.stats = stats.data<double>();
    set(call.mean, mean, call.var, var);
    kernels().update_running(call);
}

void merged_moments(const std::vector<double>& counts, Tensor rows, Tensor stats) {
    const nb::object strides = rows.stride();
    const int64_t stride = PyLong_AsLongLong(PyTuple_GetItem(strides.ptr(), 0)), C = stats.numel() / 3;
    merge_moments(counts, C, rows.data<double>(), stride, stats.data<double>());
}

void statistic_gradients_of(Tensor sums, Tensor var, Maybe weight, double eps, Tensor gradients) {
    const auto from = [&](const auto* of_channels) {
        statistic_gradients(var.numel(), sums.data<double>(), var.data<double>(), of_channels, eps, gradients.data<double>());
    };
    weight && weight->dtype() == DType::f32 ? from(data<float>(weight)) : from(data<double>(weight));
}

void slopes_of(Tensor gradients, Tensor var, double eps, double count, Tensor to) {
    slopes(var.numel(), gradients.data<double>(), var.data<double>(), eps, count, to.data<double>());
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
    m.def("plain_channels", plain_channels, "x"_a, "residual"_a, "weight"_a, "bias"_a, "mean"_a, "var"_a,
          "Whether batch norm of these can go to the kernels as it is, without a check or a copy.");
    m.def("plain_rows", plain_rows, "x"_a, "normalized_shape"_a, "weight"_a, "bias"_a,
          nb::sig("def plain_rows(x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | "
                  "None) -> bool"),
          "The same of layer and RMS norm.");
    m.def("channels_forward", channels_forward, "stages"_a, "activation"_a, "eps"_a, "per_sample"_a, "x"_a, "y"_a,
          "weight"_a, "bias"_a, "residual"_a, "mask"_a, "mean"_a, "var"_a, "tail"_a, "stats"_a);
    m.def("channels_backward", channels_backward, "stages"_a, "activation"_a, "eps"_a, "per_sample"_a, "x"_a, "dy"_a,
          "weight"_a, "bias"_a, "residual"_a, "mask"_a, "mean"_a, "var"_a, "tail"_a, "stats"_a,
          "constant_statistics"_a, "slopes"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a, "sums"_a);
    m.def("groups_forward", groups_forward, "G"_a, "centred"_a, "activation"_a, "eps"_a, "x"_a, "y"_a, "weight"_a,
          "bias"_a, "stats"_a);
    m.def("groups_backward", groups_backward, "G"_a, "centred"_a, "activation"_a, "eps"_a, "x"_a, "dy"_a,
          "weight"_a, "bias"_a, "stats"_a, "dx"_a, "dweight"_a, "dbias"_a);
    m.def("ghosts_forward", ghosts_forward, "together"_a, "activation"_a, "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a,
          "residual"_a, "mask"_a, "stats"_a);
    m.def("ghosts_backward", ghosts_backward, "together"_a, "activation"_a, "eps"_a, "x"_a, "dy"_a, "weight"_a,
          "bias"_a, "residual"_a, "mask"_a, "stats"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a);
    m.def("blend_forward", blend_forward, "activation"_a, "eps"_a, "per_sample"_a, "x"_a, "y"_a, "weight"_a, "bias"_a,
          "residual"_a, "mask"_a, "known_mean"_a, "known_var"_a, "share"_a, "stats"_a);
    m.def("renorm_forward", renorm_forward, "activation"_a, "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a,
          "residual"_a, "mask"_a, "known_mean"_a, "known_var"_a, "r_max"_a, "d_max"_a, "stats"_a);
    m.def("renorm_backward", renorm_backward, "activation"_a, "eps"_a, "x"_a, "dy"_a, "residual"_a, "mask"_a,
          "stats"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a);
    m.def("mixture_forward", mixture_forward, "kind"_a, "activation"_a, "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a,
          "residual"_a, "mask"_a, "known_mean"_a, "known_var"_a, "first"_a, "second"_a, "statistics"_a, "batch"_a);
    m.def("mixture_backward", mixture_backward, "kind"_a, "activation"_a, "eps"_a, "x"_a, "dy"_a, "weight"_a,
          "bias"_a, "residual"_a, "mask"_a, "known"_a, "first"_a, "second"_a, "statistics"_a, "batch"_a, "dx"_a,
          "dresidual"_a, "dweight"_a, "dbias"_a, "dfirst"_a, "dsecond"_a);
    m.def("rows_forward", rows_forward, "R"_a, "centred"_a, "eps"_a, "x"_a, "y"_a, "weight"_a, "bias"_a, "stats"_a);
    m.def("rows_backward", rows_backward, "R"_a, "centred"_a, "eps"_a, "x"_a, "dy"_a, "weight"_a, "bias"_a,
          "stats"_a, "dx"_a, "dweight"_a, "dbias"_a);
    m.def("merged_moments", merged_moments, "counts"_a, "rows"_a, "stats"_a,
          nb::sig("def merged_moments(counts: Sequence[float], rows: Tensor, stats: Tensor) -> None"));
    m.def("statistic_gradients", statistic_gradients_of, "sums"_a, "var"_a, "weight"_a, "eps"_a, "gradients"_a);
    m.def("slopes", slopes_of, "gradients"_a, "var"_a, "eps"_a, "count"_a, "to"_a);
    m.def("update_running", update_running, "count"_a, "counts"_a, "momentum"_a, "cumulative"_a, "stats"_a, "mean"_a,
          "var"_a, "batches"_a, "skipped"_a);
}
