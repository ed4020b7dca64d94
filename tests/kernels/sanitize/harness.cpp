// Calls every kernel of every instruction set on random shapes, with optional arguments absent at random, on
// buffers that end exactly where the tensor does. It checks nothing but that outputs are written: what it is for
// is to run under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (`make sanitize`).

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "isa.hpp"

using namespace normkit;

namespace {

std::mt19937 random_bits(1);

int64_t below(int64_t n) { return int64_t(random_bits() % uint64_t(n)); }
bool chance(int of) { return below(of) == 0; }

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

void write(void* p, DType dtype, int64_t i, float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const uint16_t high = uint16_t(bits >> 16);
    // Any bits make a number of each type: values need no care, only f32 and f64 keep theirs.
    switch (dtype) {
        case DType::f32: std::memcpy(static_cast<char*>(p) + 4 * i, &v, 4); return;
        case DType::f64: {
            const double wide = v;
            std::memcpy(static_cast<char*>(p) + 8 * i, &wide, 8);
            return;
        }
        default: std::memcpy(static_cast<char*>(p) + 2 * i, &high, 2);
    }
}

// Buffers of one call, each of its own allocation of exactly its size.
class Buffers {
   public:
    void* make(DType dtype, int64_t n) {
        held_.emplace_back(new char[size_t(n * size_of(dtype))]);
        std::normal_distribution<float> normal(3, 2);
        for (int64_t i = 0; i < n; ++i) write(held_.back().get(), dtype, i, normal(random_bits));
        return held_.back().get();
    }
    double* doubles(int64_t n) { return static_cast<double*>(make(DType::f64, n)); }
    uint8_t* mask(int64_t n) {
        held_.emplace_back(new char[size_t(n)]);
        for (int64_t i = 0; i < n; ++i) held_.back()[i] = char(below(4) != 0);
        return reinterpret_cast<uint8_t*>(held_.back().get());
    }

   private:
    std::vector<std::unique_ptr<char[]>> held_;
};

int64_t some_size() {
    const int64_t sizes[] = {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 49, 64, 65, 100, 129};
    return sizes[below(16)];
}

Call random_call(Buffers& buffers, bool groups) {
    Call call{};
    call.N = call.of_samples = 1 + below(9), call.C = some_size(), call.S = chance(20) ? 20000 : some_size();
    if (call.S > 1000) call.C = 1 + below(4);
    call.G = groups && chance(2) ? 1 : call.C;
    if (groups && call.C % 2 == 0 && chance(2)) call.G = call.C / 2;
    call.stats_stride = groups ? call.N * call.G : call.C;
    call.dtype = DType(below(4));
    call.channels_last = chance(2);
    call.activation = Activation(below(10));
    call.eps = chance(8) ? 0 : 1e-5;
    const int64_t n = call.N * call.C * call.S;
    const DType parameters = chance(2) ? call.dtype : DType::f32;
    call.x = buffers.make(call.dtype, n), call.dy = buffers.make(call.dtype, n);
    call.y = buffers.make(call.dtype, n), call.dx = buffers.make(call.dtype, n);
    if (chance(2)) call.residual = buffers.make(call.dtype, n), call.dresidual = buffers.make(call.dtype, n);
    if (chance(3)) call.mask = buffers.mask(call.N * call.S);
    for (Parameter* p : {&call.weight, &call.bias, &call.dweight, &call.dbias})
        if (chance(2)) *p = {buffers.make(parameters, call.C), parameters};
    call.stats = buffers.doubles(3 * call.stats_stride);
    return call;
}

void give_statistics(Call& call) {
    call.mean = {call.stats, DType::f64}, call.var = {call.stats + call.stats_stride, DType::f64};
    call.tail = call.stats + 2 * call.stats_stride;
}

// Statistics that are known: of a blend.
void blend(Call& call, Buffers& buffers) {
    call.known_mean = {buffers.doubles(call.C), DType::f64}, call.known_var = {buffers.doubles(call.C), DType::f64};
    call.share = 0.25;
}

void channels(const Kernels& kernels) {
    Buffers buffers;
    Call call = random_call(buffers, false);
    call.stages = 1 + int(below(3));
    if (call.stages == kOutputs) give_statistics(call);
    if (call.stages & kSums && chance(3)) {
        call.known_mean = {buffers.doubles(call.C), DType::f64}, call.known_var = {buffers.doubles(call.C), DType::f64};
        call.r_max = 3, call.d_max = 5, call.corrected = buffers.doubles(4 * call.C);
    } else if (call.stages & kSums && chance(3)) {
        blend(call, buffers);
    }
    kernels.channels_forward(call);
    if (chance(2)) call.corrected = nullptr;
    give_statistics(call);
    call.constant_statistics = chance(3);
    call.sums_stride = call.C;
    if (chance(2)) call.gradient_sums = buffers.doubles(2 * call.C);
    if (call.stages == kOutputs && chance(2)) call.slopes = buffers.doubles(2 * call.C);
    kernels.channels_backward(call);
}

void groups(const Kernels& kernels) {
    Buffers buffers;
    Call call = random_call(buffers, true);
    const bool plain = chance(3);  // group norm as it mostly is
    if (plain) call.mask = nullptr, call.residual = call.dresidual = nullptr, call.channels_last = false;
    call.stages = plain ? kSums | kOutputs : 1 + int(below(3));
    call.affine_per_sample = !plain && chance(2);
    call.uncentred = chance(3);
    if (call.affine_per_sample) {
        for (Parameter* p : {&call.weight, &call.bias})
            if (p->data) *p = {buffers.doubles(call.N * call.C), DType::f64};
        call.dweight.data = call.dbias.data = nullptr;
    } else {
        call.together = plain ? 1 : 1 + below(4);
    }
    if (call.stages == kOutputs) give_statistics(call);
    if (call.stages & kSums && call.G == call.C && chance(3)) blend(call, buffers);
    kernels.groups_forward(call);
    give_statistics(call);
    call.sums_stride = call.N * call.C;
    if (!call.dweight.data && !call.dbias.data && chance(2)) call.gradient_sums = buffers.doubles(2 * call.N * call.C);
    if (call.stages == kOutputs && chance(2)) call.slopes = buffers.doubles(2 * call.N * call.C);
    if (call.stages == kOutputs) call.dweight.data = call.dbias.data = nullptr;
    kernels.groups_backward(call);
}

// Logits, or gates, and what is mixed of moments that are as random as they come.
void mixtures(const Kernels& kernels) {
    Buffers buffers;
    MixtureCall mixture{random_call(buffers, false), Mixture(below(2))};
    Call& call = mixture.call;
    call.G = call.C, call.stats_stride = call.N * call.C, call.stages = kSums | kOutputs;
    call.stats = buffers.doubles(3 * call.stats_stride);
    mixture.mixed = buffers.doubles(3 * call.stats_stride), mixture.batch = buffers.doubles(2 * call.C);
    const DType of_shares = DType(below(4));
    const bool switched = mixture.kind == Mixture::switched;
    for (int i = 0; i < (switched ? 2 : 1); ++i) {
        mixture.share[i] = {buffers.make(of_shares, switched ? 3 : call.C), of_shares};
        mixture.dshare[i] = {buffers.make(of_shares, switched ? 3 : call.C), of_shares};
    }
    mixture.known = chance(2);
    if (mixture.known)
        call.known_mean = {buffers.doubles(call.C), DType::f64}, call.known_var = {buffers.doubles(call.C), DType::f64};
    kernels.mixture_forward(mixture);
    if (!call.dresidual && chance(3)) call.dx = nullptr;
    kernels.mixture_backward(mixture);
}

void rows(const Kernels& kernels) {
    Buffers buffers;
    RowsCall call{};
    call.R = some_size() * (1 + below(3)), call.M = some_size() * (1 + below(5));
    if (chance(20)) call.R = 1 + below(3), call.M = 70001;
    call.dtype = DType(below(4));
    call.centred = chance(2);
    call.eps = 1e-5;
    const DType parameters = chance(2) ? call.dtype : DType::f32;
    const int64_t n = call.R * call.M;
    call.x = buffers.make(call.dtype, n), call.dy = buffers.make(call.dtype, n);
    call.y = buffers.make(call.dtype, n), call.dx = buffers.make(call.dtype, n);
    for (Parameter* p : {&call.weight, &call.bias, &call.dweight, &call.dbias})
        if (chance(2)) *p = {buffers.make(parameters, call.M), parameters};
    call.stats = buffers.doubles(3 * call.R);
    kernels.rows_forward(call);
    kernels.rows_backward(call);
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
    for (const Kernels* kernels : available_kernels()) {
        for (int i = 0; i < rounds; ++i) channels(*kernels), groups(*kernels), mixtures(*kernels), rows(*kernels);
        std::printf("%s: %d rounds without a finding\n", kernels->name, rounds);
    }
}
