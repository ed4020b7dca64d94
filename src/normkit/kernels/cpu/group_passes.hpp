// What is done to a group whose channels are planes that adjoin in memory: the walks of group norm.
//
// A plane of 7 x 7 is three vectors and one value, which would cost as much as a fourth. So outputs are written as one
// run, whose vectors take the coefficients of two channels where a plane ends within them. Sums are each channel's own;
// their lanes are added up for several planes together.

#pragma once

#include "coefficients.hpp"
#include "walk.hpp"

namespace normkit::NORMKIT_ISA {

// The coefficients of a group: its channels have statistics in common, and parameters of their own.
struct GroupCoefficients {
    double hi, rstd, end, b, c;
    double *scale, *bias;     // of each channel
    float *scale32, *bias32;  // the same, rounded
    bool wide;                // f32 does not do

    template <class E>
    NORMKIT_INLINE const E* scales() const {
        if constexpr (std::is_same_v<E, double>)
            return scale;
        else
            return scale32;
    }
    template <class E>
    NORMKIT_INLINE const E* biases() const {
        if constexpr (std::is_same_v<E, double>)
            return bias;
        else
            return bias32;
    }
};

// What its channels have in common, in A.
template <class A>
struct InCommon {
    A hi, rstd, end, b, c;
    NORMKIT_INLINE explicit InCommon(const GroupCoefficients& of)
        : hi(splat<A>(of.hi)), rstd(splat<A>(of.rstd)), end(splat<A>(of.end)), b(splat<A>(of.b)), c(splat<A>(of.c)) {}
    NORMKIT_INLINE A get(int field) const {
        return field == kHi ? hi : field == kRstd ? rstd : field == kEnd ? end : field == kB ? b : c;
    }
};
// Of a vector in one channel; and of one whose first lanes are the end of a channel, the others the next one's beginning.
template <class A>
struct InChannel {
    const InCommon<A>& common;
    const ElementOf<A>*scale, *bias;
    template <class>
    NORMKIT_INLINE A get(int field) const {
        return field == kScale ? splat<A>(*scale) : field == kBias ? splat<A>(*bias) : common.get(field);
    }
};
template <class A>
struct InTwoChannels {
    InChannel<A> of;
    I first;
    template <class>
    NORMKIT_INLINE A get(int field) const {
        return field == kScale ? mixed(of.scale) : field == kBias ? mixed(of.bias) : of.common.get(field);
    }

   private:
    NORMKIT_INLINE A mixed(const ElementOf<A>* p) const {
        if constexpr (std::is_same_v<A, D>)
            return select(widen(first), splat<A>(p[0]), splat<A>(p[1]));
        else
            return select(first, splat<A>(p[0]), splat<A>(p[1]));
    }
};

// What a pass reads.
template <class... Of>
NORMKIT_INLINE void fetch_inputs(const NormalizePass<Of...>& pass, int64_t at) {
    fetch(pass.x + at);
}
template <class... Of>
NORMKIT_INLINE void fetch_inputs(const InputGradientPass<Of...>& pass, int64_t at) {
    fetch(pass.x + at), pass.upstream.prefetch(at);
}

// Outputs of a group of n elements in planes of S, at least a vector each. Stores are aligned: others take twice as long.
// What is read next lies `ahead` elements from here; 0: it is in the cache.
template <class A, class Pass>
NORMKIT_INLINE void write_group(const Pass& pass, const GroupCoefficients& by, int64_t at, int64_t n, int64_t S,
                                int64_t ahead) {
    using Coefficient = typename Pass::template Coefficient<A>;
    const InCommon<A> common(by);
    InChannel<A> channel{common, by.scales<ElementOf<A>>(), by.biases<ElementOf<A>>()};
    Coefficient here(channel);
    NoSums none;
    const auto out = pass.out();
    const auto address = reinterpret_cast<uintptr_t>(out.data + at) / sizeof(*out.data);
    int64_t i = -int64_t(address) & (L - 1), end = S;
    const auto put_end = [&](int64_t from, int64_t lanes, int64_t whole) {  // or the whole vector that holds it
        out.streamed ? pass.template apply<A>(at + from, First{int(lanes)}, here, none)
                     : pass.template apply<A>(at + whole, All{}, here, none);
    };
    if (i > 0) put_end(0, i, 0);
    const auto next = [&]() __attribute__((always_inline)) {  // a call of it would keep all that it knows in memory
        if (ahead) fetch_inputs(pass, at + i + ahead);
        const int64_t here_at = at + i, left = end - i;
        i += L;
        if (left >= L) return pass.template value<A>(here_at, All{}, here);
        const Coefficient both(InTwoChannels<A>{channel, first_lanes(int(left))});
        ++channel.scale, ++channel.bias, end += S;
        here = Coefficient(channel);
        return pass.template value<A>(here_at, All{}, both);
    };
    while (i + 2 * L <= n) {
        const int64_t to = at + i;
        const A v = next(), w = next();
        out.put(to, v, to + L, w);
    }
    if (i + L <= n) {
        const int64_t to = at + i;
        out.put(to, next(), All{});
    }
    if (i < n) put_end(i, n - i, n - L);
}

// Two vectors, whose planes have so many lanes each, become one: lanes are added to others of their plane.
template <int lanes, class V, size_t... i>
NORMKIT_INLINE V folded(V a, V b, std::index_sequence<i...>) {
    constexpr int half = lanes / 2;
    return __builtin_shufflevector(a, b, int(i / half * lanes + i % half)...) +
           __builtin_shufflevector(a, b, int(i / half * lanes + i % half + half)...);
}
template <int lanes>
NORMKIT_INLINE HalfD totals_of(const HalfD* v) {
    if constexpr (lanes == L / 4)
        return v[0];
    else
        return folded<2 * lanes>(totals_of<2 * lanes>(v), totals_of<2 * lanes>(v + L / 8 / lanes), Half{});
}

// The totals of L vectors: their lanes are added in f32 to a quarter of them, and then in f64.
NORMKIT_INLINE D totals(const F* v) {
    HalfD quarters[L / 2];
    for (int i = 0; i < L; i += 4) {
        const F a = folded<L>(v[i], v[i + 1], Whole{}), b = folded<L>(v[i + 2], v[i + 3], Whole{});
        const D four = widen(folded<L / 2>(a, b, Whole{}));
        quarters[i / 2] = four.low, quarters[i / 2 + 1] = four.high;
    }
    return {totals_of<1>(quarters), totals_of<1>(quarters + L / 4)};
}

// Planes of so many vectors at most are summed in f32 before their lanes are added.
constexpr int64_t kShortPlane = ShortSums<F>::most * L;

// The totals of planes one after another, L at a time.
struct PlaneTotals {
    Totals to;
    int64_t done = 0;
    int n = 0;
    F first[L], second[L];

    NORMKIT_INLINE void add(const ShortSums<F>& sums) {
        first[n] = sums.first, second[n] = sums.second;
        if (++n == L) flush();
    }
    NORMKIT_INLINE void skip(int64_t planes) {  // whose totals are then written by others
        finish();
        done += planes;
    }
    NORMKIT_INLINE void finish() {
        if (n == 0) return;
        std::fill(first + n, first + L, F{}), std::fill(second + n, second + L, F{});
        flush();
    }

   private:
    NORMKIT_INLINE void flush() {  // whole vectors, at the end too: what comes next is written over it
        store(to.row(0) + done, totals(first), All{});
        store(to.row(1) + done, totals(second), All{});
        done += n, n = 0;
    }
};

// v, of which the compiler would load each use anew from memory, and a load across the end of a line is two.
NORMKIT_INLINE F loaded_once(F v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

// Sums of each channel of a group in short planes.
template <class T, class Act, class None>
NORMKIT_INLINE void sum_short_planes(const T* x, const Upstream<T, Act, None>& upstream, const GroupCoefficients& by, int64_t at,
                                     int64_t planes, int64_t S, PlaneTotals& to) {
    using Coefficient = typename GradientSumsPass<T, Act>::template Coefficient<F>;
    const InCommon<F> common(by);
    const int64_t whole = S / L * L;
    const First rest{int(S - whole)};
    for (int64_t plane = 0; plane < planes; ++plane, at += S) {
        const Coefficient here(InChannel<F>{common, by.scale32 + plane, by.bias32 + plane});
        const auto add = [&](int64_t i, auto lanes, ShortSums<F>& sums) __attribute__((always_inline)) {
            const F d = here.centred(load<F>(x + at + i, lanes));
            const F dz = loaded_once(upstream.dz(at + i, lanes, d, here));
            add_gradient(sums, keep(dz, lanes), fma(d, here.rstd, here.end));
        };
        ShortSums<F> even{}, odd{};
        int64_t i = 0;
        for (; i + 2 * L <= whole; i += 2 * L) add(i, All{}, even), add(i + L, All{}, odd);
        if (i < whole) add(i, All{}, even);
        if (rest.n > 0) add(whole, rest, odd);
        even.join(odd);
        to.add(even);
    }
}

}  // namespace normkit::NORMKIT_ISA
