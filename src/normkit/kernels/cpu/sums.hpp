// Sums that keep every digit the result needs, and the moments made from them.
//
// Σ(x - k) and Σ(x - k)² are taken in f64 about k, one element of the sample, so that
// (k - mean)² <= n var: the subtraction in m2 = Σ(x - k)² - (Σ(x - k))² / n loses at most log2(n) of f64's bits,
// which leaves more than f32 holds up to n = 2^26 in the worst case. For f64 inputs every rounding error of the
// sums is kept beside them, which doubles the bits.

#pragma once

#include <cmath>

#include "vector.hpp"

namespace normkit::NORMKIT_ISA {

// hi + lo, with lo below the last place of hi.
struct Pair {
    double hi, lo;
};
inline Pair two_sum(double a, double b) {
    const double s = a + b, w = s - a;
    return {s, (a - (s - w)) + (b - w)};
}
inline Pair operator+(Pair a, Pair b) {
    const Pair s = two_sum(a.hi, b.hi);
    const double lo = s.lo + (a.lo + b.lo);
    return {s.hi + lo, lo - ((s.hi + lo) - s.hi)};
}
// The sum of totals of T: f64 alone is enough for those of f32.
template <class T>
constexpr bool has_lo = std::is_same_v<T, double>;
template <class T>
Pair plus(Pair a, Pair b) {
    if constexpr (has_lo<T>) return a + b;
    return {a.hi + b.hi, 0};
}
inline Pair square(Pair a) {
    const double s = a.hi * a.hi;
    return {s, std::fma(a.hi, a.hi, -s) + 2 * a.hi * a.lo};
}
// a / n, with inverse = 1 / n: what the product has lost is left in the remainder, which fma gives exactly.
inline Pair divide(Pair a, double n, double inverse) {
    const double q = a.hi * inverse;
    return {q, (std::fma(-q, n, a.hi) + a.lo) * inverse};
}

// Two sums for each channel or column, as rows of doubles: hi of both, then lo of both, which only f64 has.
struct Totals {
    double* rows;
    int64_t stride;
    NORMKIT_INLINE double* row(int i) const { return rows + i * stride; }
    template <class T>
    Pair get(int which, int64_t c) const {
        return {row(which)[c], has_lo<T> ? row(which + 2)[c] : 0};
    }
    template <class T>
    void set(int which, int64_t c, Pair v) const {
        row(which)[c] = v.hi;
        if (has_lo<T>) row(which + 2)[c] = v.lo;
    }
    Totals from(int64_t c) const { return {rows + c, stride}; }
    // Adds the columns [0, n) of other, always in the order of the calls.
    template <class T>
    void add(const Totals& other, int64_t n) const {
        for (int which : {0, 1}) {
#pragma GCC ivdep
            for (int64_t c = 0; c < n; ++c) set<T>(which, c, plus<T>(get<T>(which, c), other.get<T>(which, c)));
        }
    }
};

// L running sums, for inputs of at most f32: f64 rounds 2^-29 below them.
struct Sum {
    D s{};
    NORMKIT_INLINE void add(D v) { s = s + v; }
    NORMKIT_INLINE void add_product(D a, D b) { s = fma(a, b, s); }
    NORMKIT_INLINE void join(const Sum& other) { add(other.s); }
    NORMKIT_INLINE void keep(First lanes) { s = NORMKIT_ISA::keep(s, lanes); }
    NORMKIT_INLINE void read(const Totals& of, int which, int64_t i) { s = load<D>(of.row(which) + i, All{}); }
    template <class Lanes>
    NORMKIT_INLINE void write(const Totals& of, int which, int64_t i, Lanes lanes) const {
        store(of.row(which) + i, s, lanes);
    }
    Pair total() const {
        return {sum_of<double, L / 2>(s.low + s.high), 0};
    }
};

// The same for f64 inputs: e gathers the rounding errors (Knuth's two-sum; the two-product by fma).
struct ExactSum {
    D s{}, e{};
    NORMKIT_INLINE void add(D v) {
        const D t = s + v, w = t - s;
        e = e + ((s - (t - w)) + (v - w));
        s = t;
    }
    NORMKIT_INLINE void add_product(D a, D b) {
        const D p = a * b;
        e = e + fma(a, b, -p);
        add(p);
    }
    NORMKIT_INLINE void join(const ExactSum& other) {
        add(other.s);
        e = e + other.e;
    }
    NORMKIT_INLINE void keep(First lanes) {
        s = NORMKIT_ISA::keep(s, lanes);
        e = NORMKIT_ISA::keep(e, lanes);
    }
    NORMKIT_INLINE void read(const Totals& of, int which, int64_t i) {
        s = load<D>(of.row(which) + i, All{});
        e = load<D>(of.row(which + 2) + i, All{});
    }
    template <class Lanes>
    NORMKIT_INLINE void write(const Totals& of, int which, int64_t i, Lanes lanes) const {
        store(of.row(which) + i, s, lanes);
        store(of.row(which + 2) + i, e, lanes);
    }
    Pair lane(int i) const {
        return i < L / 2 ? Pair{s.low[i], e.low[i]} : Pair{s.high[i - L / 2], e.high[i - L / 2]};
    }
    Pair total() const {
        Pair t{0, 0};
        for (int i = 0; i < L; ++i) t = t + lane(i);
        return t;
    }
};

template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, ExactSum, Sum>;

// A few terms in f32, on their way to Sums; A is F or FF.
template <class A>
struct ShortSums {
    static constexpr int most = 8;
    A first{}, second{};
    NORMKIT_INLINE void join(const ShortSums& other) {
        first = first + other.first;
        second = second + other.second;
    }
};

// Two sums over the same elements: Σ(x - k) and Σ(x - k)², or Σ dz and Σ dz xhat.
template <class T>
struct Sums {
    static constexpr int most = 1 << 30;
    SumOf<T> first, second;
    NORMKIT_INLINE void join(const Sums& other) {
        first.join(other.first);
        second.join(other.second);
    }
    NORMKIT_INLINE void join(const ShortSums<F>& other) {
        first.add(widen(other.first));
        second.add(widen(other.second));
    }
    NORMKIT_INLINE void read(const Totals& of, int64_t i) {
        first.read(of, 0, i);
        second.read(of, 1, i);
    }
    NORMKIT_INLINE void write(const Totals& of, int64_t i) const {
        first.write(of, 0, i, All{});
        second.write(of, 1, i, All{});
    }
};

// Of two vectors of columns that are neighbours.
template <class T>
struct TwoSums {
    Sums<T> low, high;
    NORMKIT_INLINE void join(const ShortSums<FF>& other) {
        const FF first = in_order(other.first), second = in_order(other.second);
        low.join(ShortSums<F>{first.first, second.first});
        high.join(ShortSums<F>{first.second, second.second});
    }
    NORMKIT_INLINE void read(const Totals& of, int64_t i) { low.read(of, i), high.read(of, i + L); }
    NORMKIT_INLINE void write(const Totals& of, int64_t i) const { low.write(of, i), high.write(of, i + L); }
};

// Whether Σ(x - k) and Σ(x - k)² of n values, in short runs of f32, are right: their squares are in its range, and k is
// within four deviations of the mean.
inline bool short_sums_hold(double sum, double squares, double n) {
    return sum * sum * 17 < squares * n * 16 && squares > 0x1p-80 && squares < 0x1p120;
}

struct Moments {
    Pair mean;
    double var;
};
NORMKIT_INLINE Moments moments_about(double k, Pair sum, Pair squares, double n) {
    const double inverse = n > 0 ? 1 / n : 0;
    const Pair delta = divide(sum, n, inverse), loss = divide(square(sum), n, inverse);
    const Pair mean = two_sum(k, delta.hi);
    const double tail = mean.lo + delta.lo;
    const double m2 = (squares.hi - loss.hi) + (squares.lo - loss.lo);
    return {{mean.hi + tail, tail - ((mean.hi + tail) - mean.hi)}, m2 < 0 ? 0 : m2 * inverse};  // a NaN stays
}

}  // namespace normkit::NORMKIT_ISA
