// Whether a call of a norm is an ordinary one: tensors that go to the kernels as they are. One look from here costs a
// quarter of the same questions asked in Python, which only whoever gets a no has to ask, for his error or his copy.

#pragma once

#include <vector>

#include "tensor.hpp"

namespace normkit {

using Sizes = std::vector<int64_t>;

inline Sizes sizes(const nanobind::object& tuple) {
    Sizes found(PyTuple_GET_SIZE(tuple.ptr()));
    for (size_t i = 0; i < found.size(); ++i) found[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i));
    return found;
}

// Memory (N, *spatial, C) of a tensor (N, C, *spatial).
inline bool is_channels_last(const Sizes& shape, const Sizes& stride) {
    int64_t expected = 1;
    const auto fits = [&](size_t axis) {
        const bool right = shape[axis] == 1 || stride[axis] == expected;
        expected *= shape[axis];
        return right;
    };
    if (!fits(1)) return false;
    for (size_t axis = shape.size() - 1; axis > 1; --axis) {
        if (!fits(axis)) return false;
    }
    return fits(0);
}

// Contiguous, of this shape, of one dtype: that of x, or f32 where x is of a half type.
inline bool are_parameters(const std::initializer_list<const Maybe*>& parameters, const Sizes& shape, DType of_x) {
    const Maybe* first = nullptr;
    for (const Maybe* parameter : parameters) {
        if (!*parameter) continue;
        if (!(*parameter)->is_plain() || sizes((*parameter)->shape()) != shape || !(*parameter)->is_contiguous())
            return false;
        if (first && (*parameter)->dtype() != (*first)->dtype()) return false;
        first = parameter;
    }
    if (!first) return true;
    const DType dtype = (*first)->dtype();
    return dtype == of_x || (dtype == DType::f32 && (of_x == DType::bf16 || of_x == DType::f16));
}

// x (N, C, *) with more than one value per channel, in a layout of the kernels, as the residual; all else (C).
inline bool plain_channels(Tensor x, Maybe residual, Maybe weight, Maybe bias, Maybe mean, Maybe var) {
    if (!x.is_plain() || !x.is_dense() || bool(mean) != bool(var)) return false;
    const Sizes shape = sizes(x.shape());
    if (shape.size() < 2 || shape[1] == 0 || x.numel() <= shape[1]) return false;
    const bool contiguous = x.is_contiguous();
    const Sizes stride = contiguous ? Sizes{} : sizes(x.stride());
    if (!contiguous && !is_channels_last(shape, stride)) return false;
    if (residual) {
        if (!residual->is_plain() || !residual->is_dense() || residual->dtype() != x.dtype() || sizes(residual->shape()) != shape) return false;
        if (contiguous ? !residual->is_contiguous() : sizes(residual->stride()) != stride) return false;
    }
    const Sizes per_channel{shape[1]};
    return are_parameters({&weight, &bias}, per_channel, x.dtype()) && are_parameters({&mean, &var}, per_channel, x.dtype());
}

}  // namespace normkit
