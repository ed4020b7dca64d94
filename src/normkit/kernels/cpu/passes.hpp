// What is done to one vector of elements, for any layout: the four passes that every norm is made of.
//
//   MomentsPass         Σ(x - k), Σ(x - k)²               in f64 for f32, in short runs of f32 for half types
//   NormalizePass       y  = a(z),  z = scale (x - hi) + bias + residual
//   GradientSumsPass    Σ dz, Σ dz xhat                   with dz = dy a'(z); writes dz where there is a place for it
//   InputGradientPass   dx = scale dz + b (x - hi) + c,  dresidual = dz
//
// A pass is called as pass.apply<A>(at, lanes, coefficients, sums), one that writes outputs as apply_two as well, whose
// vectors are whole: at is the offset of the vector in memory, A the type of the arithmetic: F, FF for two vectors of
// what comes apart by twos, or D where f64_alone and for channels whose coefficients f32 cannot hold. It adds
// Addend::most vectors at most to its Addend<A>, which then joins its Result. What the loop of one that writes outputs
// can know before it begins, which operands there are and whether it streams, is in the type of what settled() gives.
// The mean is hi + lo to twice the bits of T, and the products of lo are part of bias, end and c. That loses nothing:
// of x - hi and lo one is exact or beyond notice, as either x and hi are so close that x - hi is exact and 0 or twice lo
// at least, or lo is below the last place of x - hi.

#pragma once

#include "activation.hpp"
#include "sums.hpp"

namespace normkit::NORMKIT_ISA {

// Towards the second-level cache, which has more room for what is on its way than the first. A prefetch never faults:
// p may lie beyond the tensor.
template <class T>
NORMKIT_INLINE void fetch(const T* p) {
    __builtin_prefetch(p, 0, 2);
}

template <class A>
using ElementOf = std::conditional_t<std::is_same_v<A, D>, double, float>;

// Coefficients: one row per field, one column per channel, in f64 and rounded to f32.
enum Field { kShift, kHi, kScale, kBias, kRstd, kEnd, kB, kC, kFields };

struct Coefficients {
    double* f64;
    float* f32;
    float* twos;   // those of f32 for FF, where T comes by twos and lanes are columns
    uint8_t* wide;  // per column: f32 does not do
    int64_t stride;

    template <class E>
    NORMKIT_INLINE E* row(int field) const {
        if constexpr (std::is_same_v<E, double>)
            return f64 + field * stride;
        else
            return f32 + field * stride;
    }
};

// Two ways to take the coefficients of a vector: all lanes in one channel, or a channel for each lane.
struct OneChannel {
    const Coefficients& of;
    int64_t c;
    template <class A>
    NORMKIT_INLINE A get(int field) const {
        return splat<A>(of.row<ElementOf<A>>(field)[c]);
    }
};
struct ChannelPerLane {
    const Coefficients& of;
    int64_t c;
    template <class A>
    NORMKIT_INLINE A get(int field) const {
        if constexpr (std::is_same_v<A, FF>) {
            const float* two = of.twos + field * of.stride + c;
            return {load<F>(two, All{}), load<F>(two + L, All{})};
        } else {
            return load<A>(of.row<ElementOf<A>>(field) + c, All{});
        }
    }
};

template <class A>
struct Affine {
    A hi, scale, bias;
    template <class From>
    NORMKIT_INLINE explicit Affine(const From& from)
        : hi(from.template get<A>(kHi)),
          scale(from.template get<A>(kScale)),
          bias(from.template get<A>(kBias)) {}
    NORMKIT_INLINE A centred(A x) const { return x - hi; }
    NORMKIT_INLINE A operator()(A d) const { return fma(d, scale, bias); }
};

// body(std::true_type) or body(std::false_type).
template <class Body>
void decide(bool known, const Body& body) {
    known ? body(std::true_type{}) : body(std::false_type{});
}
// Whether there are operands that need not be: a truth value, or bool for what is asked vector by vector.
template <class Has>
constexpr bool perhaps = !std::is_same_v<Has, std::false_type>;

// Stores either way; pass.lead(at) elements are done first, so that streamed vectors are aligned.
template <class T, class Streamed = bool>
struct Output {
    T* data;
    Streamed streamed;
    template <class A>
    NORMKIT_INLINE void put(int64_t at, A v, All) const {
        streamed ? stream(data + at, v) : store(data + at, v, All{});
    }
    template <class A>
    NORMKIT_INLINE void put(int64_t at, A v, int64_t next, A w) const {
        streamed ? stream(data + at, v, data + next, w) : store(data + at, v, data + next, w);
    }
    template <class A, class Lanes>
    NORMKIT_INLINE void put(int64_t at, A v, Lanes lanes) const {
        store(data + at, keep(v, lanes), lanes);
    }
    NORMKIT_INLINE void prefetch(int64_t at) const {
        if (!streamed) __builtin_prefetch(data + at, 1, 3);
    }
    int64_t lead(int64_t at) const {
        if (!streamed) return 0;
        return -int64_t(reinterpret_cast<uintptr_t>(data + at) / sizeof(T)) & ((by_twos<T> ? 2 * L : L) - 1);
    }
};

struct NoSums {
    static constexpr int most = 1 << 30;
    NORMKIT_INLINE void join(const NoSums&) {}
    NORMKIT_INLINE void read(const Totals&, int64_t) {}
    NORMKIT_INLINE void write(const Totals&, int64_t) const {}
};

template <class T, class A>
using AddendOf = std::conditional_t<std::is_same_v<A, D>, Sums<T>, ShortSums<A>>;

template <class T>
struct MomentsPass {
    static constexpr bool f64_alone = !is_half<T>;
    using Result = Sums<T>;
    template <class A>
    using Addend = AddendOf<T, A>;
    const T* x;

    template <class A>
    struct Coefficient {
        A k;
        template <class From>
        NORMKIT_INLINE explicit Coefficient(const From& from) : k(from.template get<A>(kShift)) {}
    };
    NORMKIT_INLINE void prefetch(int64_t at) const { fetch(x + at); }
    int64_t lead(int64_t) const { return 0; }

    // By fma, which leaves the additions' units to the sums: 42 GB/s against 38, in cache.
    NORMKIT_INLINE static D minus(D v, D k) { return std::is_same_v<T, double> ? v - k : fma(v, splat<D>(1), -k); }
    template <class Lanes>
    NORMKIT_INLINE void add(int64_t at, Lanes lanes, const Coefficient<D>& by, Sums<T>& sums) const {
        const D v = load<D>(x + at, lanes), d = keep(minus(v, by.k), lanes);
        sums.first.add(d);
        sums.second.add_product(d, d);
        if constexpr (std::is_same_v<T, double>) {  // what the subtraction rounded away
            const D back = d - v, error = keep((v - (d - back)) - (by.k + back), lanes);
            sums.first.e = sums.first.e + error;
            sums.second.e = fma(d + d, error, sums.second.e);
        }
    }
    template <class A, class Lanes>
    NORMKIT_INLINE void add(int64_t at, Lanes lanes, const Coefficient<A>& by, ShortSums<A>& sums) const {
        const A d = keep(load<A>(x + at, lanes) - by.k, lanes);
        sums.first = sums.first + d;
        sums.second = fma(d, d, sums.second);
    }
    template <class A, class Lanes>
    NORMKIT_INLINE void apply(int64_t at, Lanes lanes, const Coefficient<A>& by, Addend<A>& sums) const {
        add(at, lanes, by, sums);
    }
};

template <class T, class Act, class HasResidual = bool, class Streamed = bool>
struct NormalizePass {
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    using Result = NoSums;
    template <class A>
    using Addend = NoSums;
    const T *x, *residual;
    Output<T, Streamed> y;
    Act act;

    template <class A>
    using Coefficient = Affine<A>;
    NORMKIT_INLINE bool has_residual() const {
        return std::is_same_v<HasResidual, bool> ? residual != nullptr : perhaps<HasResidual>;
    }
    template <class Body>
    void settled(const Body& body) const {
        decide(residual != nullptr, [&](auto has) {
            decide(y.streamed, [&](auto streamed) {
                body(NormalizePass<T, Act, decltype(has), decltype(streamed)>{x, residual, {y.data, streamed}, act});
            });
        });
    }
    NORMKIT_INLINE void prefetch(int64_t at) const {
        fetch(x + at), y.prefetch(at);
        if (has_residual()) fetch(residual + at);
    }
    int64_t lead(int64_t at) const { return y.lead(at); }
    bool streamed() const { return y.streamed; }
    const Output<T, Streamed>& out() const { return y; }

    template <class A, class Lanes>
    NORMKIT_INLINE A value(int64_t at, Lanes lanes, const Affine<A>& by) const {
        A z = by(by.centred(load<A>(x + at, lanes)));
        if (has_residual()) z = z + load<A>(residual + at, lanes);
        return activated(z, act);
    }
    template <class A, class Lanes>
    NORMKIT_INLINE void apply(int64_t at, Lanes lanes, const Affine<A>& by, NoSums&) const {
        y.put(at, value<A>(at, lanes, by), lanes);
    }
    template <class A>
    NORMKIT_INLINE void apply_two(int64_t at, int64_t next, const Affine<A>& by, NoSums&) const {
        const A v = value<A>(at, All{}, by), w = value<A>(next, All{}, by);
        y.put(at, v, next, w);
    }
};

// dz of one vector, from d = x - hi.
template <class T, class Act, class HasResidual = bool>
struct Upstream {
    const T *dy, *residual;
    Act act;

    // One that the gradient depends on.
    NORMKIT_INLINE bool has_residual() const {
        return perhaps<HasResidual> && !std::is_same_v<Act, None> && residual != nullptr;
    }
    NORMKIT_INLINE void prefetch(int64_t at) const {
        fetch(dy + at);
        if (has_residual()) fetch(residual + at);
    }
    template <class A, class Lanes>
    NORMKIT_INLINE A dz(int64_t at, Lanes lanes, A d, const Affine<A>& by) const {
        const A v = load<A>(dy + at, lanes);
        if constexpr (std::is_same_v<Act, None>) return v;
        A z = by(d);
        if (has_residual()) z = z + load<A>(residual + at, lanes);
        return passed_through(z, v, act);
    }
};

template <class A>
NORMKIT_INLINE void add_gradient(ShortSums<A>& sums, A dz, A xhat) {
    sums.first = sums.first + dz;
    sums.second = fma(dz, xhat, sums.second);
}
template <class T>
NORMKIT_INLINE void add_gradient(Sums<T>& sums, D dz, D xhat) {
    sums.first.add(dz);
    sums.second.add_product(dz, xhat);
}

template <class T, class Act>
struct GradientSumsPass {
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    using Result = Sums<T>;
    template <class A>
    using Addend = AddendOf<T, A>;
    const T* x;
    Upstream<T, Act> upstream;
    Output<T> dresidual;  // dz, if not null

    template <class A>
    struct Coefficient : Affine<A> {
        A rstd, end;
        template <class From>
        NORMKIT_INLINE explicit Coefficient(const From& from)
            : Affine<A>(from), rstd(from.template get<A>(kRstd)), end(from.template get<A>(kEnd)) {}
    };
    NORMKIT_INLINE void prefetch(int64_t at) const { fetch(x + at), upstream.prefetch(at); }
    int64_t lead(int64_t) const { return 0; }
    template <class A, class Lanes>
    NORMKIT_INLINE void apply(int64_t at, Lanes lanes, const Coefficient<A>& by, Addend<A>& sums) const {
        const A d = by.centred(load<A>(x + at, lanes));
        const A dz = upstream.dz(at, lanes, d, by);
        if (dresidual.data) dresidual.put(at, dz, lanes);
        add_gradient(sums, keep(dz, lanes), fma(d, by.rstd, by.end));
    }
};

template <class T, class Act, class Has = bool, class Streamed = bool>
struct InputGradientPass {
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    using Result = NoSums;
    template <class A>
    using Addend = NoSums;
    const T* x;
    Upstream<T, Act, Has> upstream;
    Output<T, Streamed> dx;
    Output<T> dresidual;

    template <class A>
    struct Coefficient : Affine<A> {
        A b, c;
        template <class From>
        NORMKIT_INLINE explicit Coefficient(const From& from)
            : Affine<A>(from), b(from.template get<A>(kB)), c(from.template get<A>(kC)) {}
    };
    NORMKIT_INLINE void prefetch(int64_t at) const { fetch(x + at), upstream.prefetch(at), dx.prefetch(at); }
    int64_t lead(int64_t at) const { return dx.lead(at); }
    bool streamed() const { return dx.streamed; }
    const Output<T, Streamed>& out() const { return dx; }
    template <class Body>
    void settled(const Body& body) const {
        decide(upstream.has_residual() || dresidual.data, [&](auto has) {
            decide(dx.streamed, [&](auto streamed) {
                body(InputGradientPass<T, Act, decltype(has), decltype(streamed)>{
                    x, {upstream.dy, upstream.residual, upstream.act}, {dx.data, streamed}, dresidual});
            });
        });
    }

    template <class A, class Lanes>
    NORMKIT_INLINE A value(int64_t at, Lanes lanes, const Coefficient<A>& by) const {
        const A d = by.centred(load<A>(x + at, lanes));
        const A dz = upstream.dz(at, lanes, d, by);
        if (perhaps<Has> && dresidual.data) dresidual.put(at, dz, lanes);
        return fma(by.scale, dz, fma(by.b, d, by.c));
    }
    template <class A, class Lanes>
    NORMKIT_INLINE void apply(int64_t at, Lanes lanes, const Coefficient<A>& by, NoSums&) const {
        dx.put(at, value<A>(at, lanes, by), lanes);
    }
    template <class A>
    NORMKIT_INLINE void apply_two(int64_t at, int64_t next, const Coefficient<A>& by, NoSums&) const {
        const A v = value<A>(at, All{}, by), w = value<A>(next, All{}, by);
        dx.put(at, v, next, w);
    }
};

}  // namespace normkit::NORMKIT_ISA
