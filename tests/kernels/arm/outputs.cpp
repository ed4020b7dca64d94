// Prints what the baseline kernels give for fixed inputs, so that two processors can be compared (`make arm`).

#include <cstdio>
#include <cstring>
#include <vector>

#include "isa.hpp"

using namespace normkit;

namespace {

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Numbers of few bits, the same in every dtype: multiples of 1/16 in [-4, 4), times a bit of both signs.
class Numbers {
   public:
    std::vector<char> make(DType dtype, int64_t n) {
        std::vector<char> made(size_t(n * size_of(dtype)));
        for (int64_t i = 0; i < n; ++i) put(made.data() + i * size_of(dtype), dtype, next());
        return made;
    }

   private:
    uint32_t state_ = 12345;
    float next() {
        state_ = state_ * 1664525 + 1013904223;
        return float(int(state_ >> 25) - 64) / 16;
    }
    static void put(char* p, DType dtype, float v) {
        const double wide = v;
        uint32_t bits;
        std::memcpy(&bits, &v, 4);
        const uint32_t exponent = (bits >> 23) & 255;
        uint16_t half = uint16_t(bits >> 16);
        if (dtype == DType::f16)  // exact: the numbers have 7 bits
            half = uint16_t((bits >> 16 & 0x8000) | (v == 0 ? 0 : (exponent - 112) << 10 | (bits >> 13 & 0x3ff)));
        if (dtype == DType::f32) std::memcpy(p, &v, 4);
        if (dtype == DType::f64) std::memcpy(p, &wide, 8);
        if (size_of(dtype) == 2) std::memcpy(p, &half, 2);
    }
};

double get(const char* p, DType dtype) {
    if (dtype == DType::f64) return *reinterpret_cast<const double*>(p);
    if (dtype == DType::f32) return *reinterpret_cast<const float*>(p);
    uint16_t half;
    std::memcpy(&half, p, 2);
    if (dtype == DType::bf16) {
        const uint32_t bits = uint32_t(half) << 16;
        float v;
        std::memcpy(&v, &bits, 4);
        return v;
    }
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double magnitude = exponent ? double(1024 + fraction) * (1 << exponent) / (1 << 25) : double(fraction) / (1 << 24);
    return half & 0x8000 ? -magnitude : magnitude;
}

void print(const char* name, const std::vector<char>& values, DType dtype) {
    std::printf("%s %d", name, int(dtype));
    for (size_t i = 0; i < values.size(); i += size_t(size_of(dtype))) std::printf(" %.17g", get(values.data() + i, dtype));
    std::printf("\n");
}

void channels(const Kernels& kernels, DType dtype, bool last, Activation activation, int64_t G) {
    Numbers numbers;
    Call call{};
    call.N = call.of_samples = 3, call.C = 12, call.S = 35, call.G = G ? G : call.C;
    const int64_t n = call.N * call.C * call.S, sets = G ? call.N * G : call.C;
    call.stats_stride = sets, call.sums_stride = sets;
    call.dtype = dtype, call.stages = kSums | kOutputs, call.channels_last = last;
    call.activation = activation, call.eps = 1e-5;
    auto x = numbers.make(dtype, n), dy = numbers.make(dtype, n), weight = numbers.make(dtype, call.C);
    auto bias = numbers.make(dtype, call.C), y = x, dx = x, dweight = weight, dbias = weight;
    std::vector<double> stats(size_t(3 * sets));
    call.x = x.data(), call.dy = dy.data(), call.y = y.data(), call.dx = dx.data(), call.stats = stats.data();
    call.weight = {weight.data(), dtype}, call.bias = {bias.data(), dtype};
    (G ? kernels.groups_forward(call) : void(kernels.channels_forward(call)));
    call.mean = {stats.data(), DType::f64}, call.var = {stats.data() + sets, DType::f64};
    call.tail = stats.data() + 2 * sets;
    call.dweight = {dweight.data(), dtype}, call.dbias = {dbias.data(), dtype};
    (G ? kernels.groups_backward(call) : kernels.channels_backward(call));
    print("y", y, dtype), print("dx", dx, dtype), print("dweight", dweight, dtype), print("dbias", dbias, dtype);
}

void rows(const Kernels& kernels, DType dtype, bool centred) {
    Numbers numbers;
    RowsCall call{};
    call.R = 11, call.M = 77, call.dtype = dtype, call.centred = centred, call.eps = 1e-5;
    auto x = numbers.make(dtype, call.R * call.M), dy = numbers.make(dtype, call.R * call.M);
    auto weight = numbers.make(dtype, call.M), y = x, dx = x, dweight = weight;
    std::vector<double> stats(size_t(3 * call.R));
    call.x = x.data(), call.dy = dy.data(), call.y = y.data(), call.dx = dx.data(), call.stats = stats.data();
    call.weight = {weight.data(), dtype}, call.dweight = {dweight.data(), dtype};
    kernels.rows_forward(call);
    kernels.rows_backward(call);
    print("y", y, dtype), print("dx", dx, dtype), print("dweight", dweight, dtype);
}

}  // namespace

int main() {
    const Kernels& kernels = choose_kernels("baseline");
    for (int dtype = 0; dtype < 4; ++dtype) {
        for (int activation = 0; activation < 10; ++activation)
            for (bool last : {false, true}) channels(kernels, DType(dtype), last, Activation(activation), 0);
        for (int64_t groups : {3, 12}) channels(kernels, DType(dtype), false, Activation::silu, groups);
        for (bool centred : {false, true}) rows(kernels, DType(dtype), centred);
    }
}
