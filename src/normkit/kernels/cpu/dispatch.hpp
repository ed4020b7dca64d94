// From run-time codes to types: body is called with a value of the type.

#pragma once

#include "activation.hpp"

namespace normkit::NORMKIT_ISA {

template <class Body>
auto with_dtype(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::f32: return body(float{});
        case DType::f64: return body(double{});
        case DType::bf16: return body(bf16{});
        default: return body(f16{});
    }
}
// f64 takes the general activation for all: its code is not worth its size.
template <class T, class Body>
auto with_activation(Activation activation, const Body& body) {
    if constexpr (!std::is_same_v<T, double>) {
        if (activation == Activation::none) return body(None{});
        if (activation == Activation::relu) return body(Relu{});
    }
    return body(Any{activation});
}

}  // namespace normkit::NORMKIT_ISA
