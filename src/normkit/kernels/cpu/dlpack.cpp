#include "dlpack.hpp"

#include <algorithm>
#include <memory>

#include "pool.hpp"

namespace normkit {

namespace {

struct Type {
    uint8_t code, bits;
};
Type type_of(DType dtype) {
    constexpr uint8_t floating = 2, bfloat = 4;
    switch (dtype) {
        case DType::f32: return {floating, 32};
        case DType::f64: return {floating, 64};
        case DType::bf16: return {bfloat, 16};
        default: return {floating, 16};
    }
}

struct Owner {
    ManagedTensor tensor;
    int64_t shape[kMostAxes], strides[kMostAxes];
    int64_t bytes;
};

void give_back(ManagedTensor* tensor) {
    const std::unique_ptr<Owner> owner(static_cast<Owner*>(tensor->context));
    give_block(tensor->data, owner->bytes);
}

}  // namespace

ManagedTensor* pooled_tensor(DType dtype, int ndim, const int64_t* shape, const int64_t* strides) {
    constexpr int32_t cpu = 1;
    const Type type = type_of(dtype);
    auto owner = std::make_unique<Owner>();
    owner->bytes = type.bits / 8;
    for (int i = 0; i < ndim; ++i) owner->bytes *= shape[i];
    std::copy_n(shape, ndim, owner->shape);
    std::copy_n(strides, ndim, owner->strides);
    owner->tensor = {take_block(owner->bytes), cpu,  0, ndim,         type.code, type.bits, 1, owner->shape,
                     owner->strides,           0,    owner.get(), give_back};
    return &owner.release()->tensor;
}

}  // namespace normkit
