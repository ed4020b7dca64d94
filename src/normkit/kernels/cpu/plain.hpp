// Whether a call of a norm is an ordinary one: tensors that go to the kernels as they are. One look from here costs a
// quarter of the same questions asked in Python, which only whoever gets a no has to ask, for his error or his copy.

#pragma once

#include <algorithm>
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

inline bool has_shape(const Tensor& tensor, const int64_t* sizes, size_t n) {
    const nanobind::object shape = tensor.shape();
    if (size_t(PyTuple_GET_SIZE(shape.ptr())) != n) return false;
    for (size_t i = 0; i < n; ++i) {
        if (PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i)) != sizes[i]) return false;
    }
    return true;
}

// Contiguous, of this shape, of one dtype: that of x, or f32 where x is of a half type.
inline bool are_parameters(std::initializer_list<const Maybe*> parameters, const int64_t* sizes, size_t n, DType of_x) {
    int dtype = -1;
    for (const Maybe* parameter : parameters) {
        if (!*parameter) continue;
        const int found = (*parameter)->plain_dtype();
        if (found < 0 || (dtype >= 0 && found != dtype)) return false;
        if (!has_shape(**parameter, sizes, n) || !(*parameter)->is_contiguous() || (*parameter)->is_negated()) return false;
        dtype = found;
    }
    return dtype < 0 || DType(dtype) == of_x || (DType(dtype) == DType::f32 && (of_x == DType::bf16 || of_x == DType::f16));
}

// x (N, C, *) with more than one value per channel, in a layout of the kernels, as the residual; all else (C).
inline bool plain_channels(Tensor x, Maybe residual, Maybe weight, Maybe bias, Maybe mean, Maybe var) {
    const int dtype = x.plain_dtype();
    if (dtype < 0 || !x.is_dense() || bool(mean) != bool(var)) return false;
    const Sizes shape = sizes(x.shape());
    if (shape.size() < 2) return false;
    int64_t values = shape[0];  // per channel
    for (size_t axis = 2; axis < shape.size(); ++axis) values *= shape[axis];
    if (shape[1] == 0 || values < 2) return false;
    const bool contiguous = x.is_contiguous();
    const Sizes stride = contiguous ? Sizes{} : sizes(x.stride());
    if (!contiguous && !is_channels_last(shape, stride)) return false;
    if (residual) {
        if (residual->plain_dtype() != dtype || !residual->is_dense()) return false;
        if (!has_shape(*residual, shape.data(), shape.size())) return false;
        if (contiguous ? !residual->is_contiguous() : sizes(residual->stride()) != stride) return false;
    }
    return are_parameters({&weight, &bias}, &shape[1], 1, DType(dtype)) &&
           are_parameters({&mean, &var}, &shape[1], 1, DType(dtype));
}

// x, not empty and contiguous, ends in the axes of weight and bias.
inline bool plain_rows(Tensor x, nanobind::tuple normalized_shape, Maybe weight, Maybe bias) {
    const int dtype = x.plain_dtype();
    if (dtype < 0 || !x.is_dense() || !x.is_contiguous()) return false;
    const Sizes shape = sizes(x.shape()), row = sizes(normalized_shape);
    if (row.empty() || row.size() > shape.size() || !std::equal(row.begin(), row.end(), shape.end() - row.size()))
        return false;
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return false;
    return are_parameters({&weight, &bias}, row.data(), row.size(), DType(dtype));
}

}  // namespace normkit
