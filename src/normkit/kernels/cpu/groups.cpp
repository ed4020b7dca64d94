// Statistics per sample and group of channels: group norm, and instance norm with a group for each channel.
//
// One sample is a call of the channel family whose channels share statistics, so a call here is one of those for
// each sample: side by side on the threads, or one after the other where there are too few to go round. Parameters
// and sums of gradients can be each sample's own too.

#include "coefficients.hpp"
#include "family.hpp"
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

Call sample(const Call& call, int64_t n) {
    const int64_t bytes = n * call.C * call.S * size_of(call.dtype);
    const int64_t groups = n * call.G * int64_t(sizeof(double));
    Call one = call;
    one.N = 1;
    one.of_samples = call.N;
    one.stats_stride = call.N * call.G;
    one.x = moved(call.x, bytes), one.residual = moved(call.residual, bytes), one.dy = moved(call.dy, bytes);
    one.y = moved(call.y, bytes), one.dx = moved(call.dx, bytes), one.dresidual = moved(call.dresidual, bytes);
    one.mask = moved(call.mask, n * call.S);
    const int64_t channels = n * call.C * int64_t(sizeof(double));
    const int64_t affine = call.affine_per_sample ? n * call.C * size_of(call.weight.dtype) : 0;
    one.weight.data = moved(call.weight.data, affine), one.bias.data = moved(call.bias.data, affine);
    one.gradient_sums = moved(call.gradient_sums, channels), one.slopes = moved(call.slopes, channels);
    one.mean.data = moved(call.mean.data, groups), one.var.data = moved(call.var.data, groups);
    one.tail = moved(call.tail, groups), one.stats = moved(call.stats, groups);
    return one;
}

template <class Body>
void each_sample(const Call& call, const Body& body) {
    const int threads = threads_for(call.N * call.C * call.S);
    const bool enough = call.N >= 4 * threads || call.N % threads == 0;
    parallel(call.N, enough ? threads : 1, Order::forward, [&](int64_t n) { body(sample(call, n), n); });
}

}  // namespace

void groups_forward(const Call& call) {
    each_sample(call, [](const Call& one, int64_t) { channels_forward(one); });
}

void groups_backward(const Call& call) {
    const bool parameters = call.dweight.data || call.dbias.data;
    const Scratch memory(parameters ? 2 * call.N * call.C * int64_t(sizeof(double)) : 0);
    Call summed = call;
    if (parameters) summed.gradient_sums = memory.as<double>(), summed.sums_stride = call.N * call.C;
    summed.dweight.data = summed.dbias.data = nullptr;
    each_sample(summed, [](const Call& one, int64_t) { channels_backward(one); });
    for (int64_t c = 0; parameters && c < call.C; ++c) {
        double dz = 0, dz_xhat = 0;
        for (int64_t n = 0; n < call.N; ++n) {
            dz += summed.gradient_sums[n * call.C + c];
            dz_xhat += summed.gradient_sums[summed.sums_stride + n * call.C + c];
        }
        assign(call.dbias, c, dz);
        assign(call.dweight, c, dz_xhat);
    }
}

}  // namespace normkit::NORMKIT_ISA
