// Statistics per sample and group of channels: group norm, and instance norm with a group for each channel. Or per
// run of neighbouring samples: ghost batch norm.
//
// One set of samples is a call of the channel family whose channels share statistics, so a call here is one of those
// for each set: side by side on the threads, or one after the other where there are too few to go round. Parameters
// and sums of gradients can be each sample's own too.

#include "coefficients.hpp"
#include "family.hpp"
#include "group_runs.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

template <class P>
P* moved(P* p, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return p ? reinterpret_cast<P*>(reinterpret_cast<Byte*>(p) + bytes) : nullptr;
}

int64_t sets(const Call& call) { return (call.N + call.together - 1) / call.together; }

Call set(const Call& call, int64_t i) {
    const int64_t first = i * call.together, bytes = first * call.C * call.S * size_of(call.dtype);
    const int64_t groups = i * call.G * int64_t(sizeof(double));
    Call one = call;
    one.N = std::min(call.together, call.N - first);
    one.of_samples = call.N;
    one.stats_stride = sets(call) * call.G;
    one.x = moved(call.x, bytes), one.residual = moved(call.residual, bytes), one.dy = moved(call.dy, bytes);
    one.y = moved(call.y, bytes), one.dx = moved(call.dx, bytes), one.dresidual = moved(call.dresidual, bytes);
    one.mask = moved(call.mask, first * call.S);
    const int64_t channels = i * call.C * int64_t(sizeof(double));
    for (Parameter* p : {&one.weight, &one.bias})  // one of them may be absent, and without a dtype
        if (call.affine_per_sample) p->data = moved(p->data, i * call.C * size_of(p->dtype));
    one.gradient_sums = moved(call.gradient_sums, channels), one.slopes = moved(call.slopes, channels);
    one.mean.data = moved(call.mean.data, groups), one.var.data = moved(call.var.data, groups);
    one.tail = moved(call.tail, groups), one.stats = moved(call.stats, groups);
    return one;
}

template <class Body>
void each_set(const Call& call, const Body& body) {
    const int threads = threads_for(call.N * call.C * call.S);
    const bool enough = sets(call) >= 4 * threads || sets(call) % threads == 0;
    parallel(sets(call), enough ? threads : 1, Order::forward, [&](int64_t i) { body(set(call, i)); });
}

// Gradients of the parameters: the sums of all sets, some channels of one set after the other, for what other cores have
// written is far, and fetched ahead only in the order of memory.
void add_sets(const Call& call, const double* sums, int64_t stride) {
    constexpr int64_t channels = 256;
    const int64_t n = sets(call);
    parallel(ceil_div(call.C, channels), threads_for(2 * n * call.C), Order::forward, [&](int64_t task) {
        const int64_t c0 = task * channels, c1 = std::min(call.C, c0 + channels);
        const auto add = [&](const Parameter& to, const double* from) {
            double total[channels] = {};
            for (int64_t i = 0; i < n; ++i) {
                const double* of = from + i * call.C + c0;
                for (int64_t c = 0; c < c1 - c0; ++c) total[c] += of[c];
            }
            assign(to, c0, c1 - c0, total);
        };
        add(call.dbias, sums);
        add(call.dweight, sums + stride);
    });
}

}  // namespace

void groups_forward(const Call& call) {
    if (are_group_runs(call)) return group_runs_forward(call);
    each_set(call, [](const Call& one) { channels_forward(one); });
}

void groups_backward(const Call& call) {
    const bool parameters = call.dweight.data || call.dbias.data;
    const Scratch memory(parameters ? 2 * sets(call) * call.C * int64_t(sizeof(double)) : 0);
    Call summed = call;
    if (parameters) summed.gradient_sums = memory.as<double>(), summed.sums_stride = sets(call) * call.C;
    summed.dweight.data = summed.dbias.data = nullptr;
    if (are_group_runs(call))
        group_runs_backward(summed);
    else
        each_set(summed, [](const Call& one) { channels_backward(one); });
    if (parameters) add_sets(call, summed.gradient_sums, summed.sums_stride);
}

}  // namespace normkit::NORMKIT_ISA
