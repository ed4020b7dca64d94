// Activations a(z), and the gradient dz = dy * a'(z) with z recomputed from x.
//
// None and Relu are types of their own, so that their kernels carry no trace of the others; Any chooses at run
// time, once per vector. In f32 the exponential family is evaluated in vectors, to a few units in the last place;
// in f64 the C library does it lane by lane.

#pragma once

#include "vector.hpp"

namespace normkit::NORMKIT_ISA {

struct None {};
struct Relu {};
struct Any {
    Activation which;
};

// exp(x) - 1 = 2^k (1 + p) - 1 with p = exp(r) - 1, x = k ln 2 + r and |r| <= ln 2 / 2: exact near zero too.
struct Exp {
    F two_k, p;
};
inline Exp exp_parts(F x) {
    x = select(x > 88.f, splat<F>(88.f), x);  // a NaN passes
    x = select(x < -87.f, splat<F>(-87.f), x);
    const F magic = splat<F>(0x1.8p23);  // adding it rounds to an integer, kept in the low bits
    const F k = fma(x, splat<F>(1.44269504088896341), magic);
    const F whole = k - magic;
    const F r = fma(whole, splat<F>(-1.42860682030941723e-6), fma(whole, splat<F>(-0.693145751953125), x));
    F q = splat<F>(1.99141664779774979e-4);
    q = fma(q, r, splat<F>(1.39410060364753e-3));
    q = fma(q, r, splat<F>(8.33327323198318e-3));
    q = fma(q, r, splat<F>(4.166635498404503e-2));
    q = fma(q, r, splat<F>(1.666666716337204e-1));
    q = fma(q, r, splat<F>(0.5));
    return {bits<F>((bits<U>(k) << 23) + 0x3f800000), fma(q, r * r, r)};
}
inline F exp(F x) {
    const Exp e = exp_parts(x);
    return fma(e.two_k, e.p, e.two_k);
}
inline F expm1(F x) {
    const Exp e = exp_parts(x);
    return fma(e.two_k, e.p, e.two_k - 1.f);
}
inline F abs(F x) { return bits<F>(bits<U>(x) & 0x7fffffff); }
inline F with_sign_of(F sign, F magnitude) {
    return bits<F>(bits<U>(magnitude) | (bits<U>(sign) & 0x80000000));
}
inline F tanh(F x) {
    const F e = expm1(2.f * select(abs(x) > 10.f, splat<F>(10.f), abs(x)));
    return with_sign_of(x, e / (e + 2.f));
}
// Two minimax polynomials: a + a Q(a^2) below 0.92, 1 - exp(|a| R(|a|)) above.
inline F erf(F a) {
    const F s = a * a, t = select(abs(a) > 4.f, splat<F>(4.f), abs(a));
    F q = splat<F>(-5.988755147e-4);
    for (double c : {4.993275274e-3, -2.6767101139e-2, 1.12818442285e-1, -3.76124978065e-1, 1.28379151225e-1})
        q = fma(q, s, splat<F>(c));
    F r = splat<F>(2.13532082853e-4);
    for (double c : {-3.211311297491e-3, 2.287859097123e-2, -1.05244636535645e-1, -6.35730922222138e-1,
                     -1.12851071357727})
        r = fma(r, t, splat<F>(c));
    return select(t > 0.92f, with_sign_of(a, -expm1(r * t)), fma(q, a, a));
}

template <class Function>
D per_lane(D v, Function f) {
    for (int i = 0; i < L / 2; ++i) v.low[i] = f(v.low[i]), v.high[i] = f(v.high[i]);
    return v;
}
inline D exp(D v) { return per_lane(v, [](double x) { return std::exp(x); }); }
inline D expm1(D v) { return per_lane(v, [](double x) { return std::expm1(x); }); }
inline D tanh(D v) { return per_lane(v, [](double x) { return std::tanh(x); }); }
inline D erf(D v) { return per_lane(v, [](double x) { return std::erf(x); }); }

template <class A>
A sigmoid(A z) {
    const A one = splat<A>(1);
    return one / (one + exp(-z));
}
template <class A>
A normal_cdf(A z) {
    return splat<A>(0.5) * (splat<A>(1) + erf(z * splat<A>(0.70710678118654752)));
}

template <class A>
A activate(A z, None) {
    return z;
}
template <class A>
A activate(A z, Relu) {  // a NaN stays
    return select(z <= A{}, A{}, z);
}
template <class A>
A relu6(A z) {  // a NaN stays here too
    return select(splat<A>(6) <= z, splat<A>(6), activate(z, Relu{}));
}
template <class A>
A activate(A z, Any a) {
    switch (a.which) {
        case Activation::relu: return activate(z, Relu{});
        case Activation::leaky_relu: return select(z > A{}, z, z * splat<A>(0.01));
        case Activation::silu: return z * sigmoid(z);
        case Activation::gelu: return z * normal_cdf(z);
        case Activation::elu: return select(z > A{}, z, expm1(z));
        case Activation::sigmoid: return sigmoid(z);
        case Activation::tanh: return tanh(z);
        case Activation::relu6: return relu6(z);
        case Activation::hardswish: return z * (relu6(z + splat<A>(3)) * splat<A>(1.0 / 6));
        default: return z;
    }
}

template <class A>
A through(A, A dy, None) {
    return dy;
}
template <class A>
A through(A z, A dy, Relu) {
    return select(z <= A{}, A{}, dy);
}
template <class A>
A through(A z, A dy, Any a) {
    const A one = splat<A>(1);
    switch (a.which) {
        case Activation::relu: return through(z, dy, Relu{});
        case Activation::leaky_relu: return select(z > A{}, dy, dy * splat<A>(0.01));
        case Activation::silu: {
            const A s = sigmoid(z);
            return dy * fma(z * s, one - s, s);
        }
        case Activation::gelu: {
            const A density = splat<A>(0.39894228040143268) * exp(splat<A>(-0.5) * z * z);
            return dy * fma(z, density, normal_cdf(z));
        }
        case Activation::elu: return select(z > A{}, dy, dy * exp(z));
        case Activation::sigmoid: {
            const A s = sigmoid(z);
            return dy * s * (one - s);
        }
        case Activation::tanh: {
            const A t = tanh(z);
            return dy * (one - t * t);
        }
        case Activation::relu6: return select(splat<A>(6) <= z, A{}, through(z, dy, Relu{}));
        case Activation::hardswish: {
            const A between = dy * fma(z, splat<A>(1.0 / 3), splat<A>(0.5));
            return select(z <= splat<A>(-3), A{}, select(splat<A>(3) <= z, dy, between));
        }
        default: return dy;
    }
}

// Of both vectors of FF, or of one.
template <class A, class Act>
NORMKIT_INLINE A activated(A z, Act act) {
    if constexpr (std::is_same_v<A, FF>)
        return {activate(z.first, act), activate(z.second, act)};
    else
        return activate(z, act);
}
template <class A, class Act>
NORMKIT_INLINE A passed_through(A z, A dy, Act act) {
    if constexpr (std::is_same_v<A, FF>)
        return {through(z.first, dy.first, act), through(z.second, dy.second, act)};
    else
        return through(z, dy, act);
}

}  // namespace normkit::NORMKIT_ISA
