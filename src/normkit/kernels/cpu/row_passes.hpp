// What is done to one vector of a row: the passes of layer and RMS norm.
//
//   RowMomentsPass    Σ(x - k), Σ(x - k)²                    in f64 for f32, in short runs of f32 for half types
//   RowOutputPass     y  = xhat weight + bias
//   RowSumsPass       Σ g, Σ g t                             with g = weight dy, t = x - hi
//   RowGradientPass   dx = rstd (g + c + b xhat), and the columns' Σ dy xhat, Σ dy
//
// A is the type of the arithmetic: F, or D for f64 and for rows whose coefficients f32 cannot hold. The mean is
// hi + lo with hi in the precision of A, and xhat = t rstd - lo rstd is one subtraction and one fma. Of t and lo one
// is exact or beyond notice: either x and hi are so close that t is exact, or lo is below the last place of t. With
// rstd, xhat and y rounded once each, y is within four roundings of the truth.

#pragma once

#include <algorithm>

#include "coefficients.hpp"

namespace normkit::NORMKIT_ISA {

// Parameters are read in E: as they are, or as a copy.
template <class T>
using ParameterOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The coefficients of a row, in values that its arithmetic can hold.
struct Row {
    double hi, lo, rstd;  // lo is what hi has left of the mean, to the bits of f64
    double b, c;          // of the gradient
    bool wide;            // f32 cannot hold it
};

// The same in A: what xhat is made of.
template <class A>
struct Standardize {
    A hi, rstd, end;
    Standardize() = default;
    NORMKIT_INLINE explicit Standardize(const Row& row)
        : hi(splat<A>(row.hi)), rstd(splat<A>(row.rstd)), end(splat<A>(-row.lo * ElementOf<A>(row.rstd))) {}
    NORMKIT_INLINE A operator()(A x) const { return fma(x - hi, rstd, end); }
};

template <class T, bool centred>
struct RowMomentsPass {
    const T* x;

    template <class A>
    struct Coefficient {
        A k;
        NORMKIT_INLINE explicit Coefficient(const Row& row) : k(splat<A>(row.hi)) {}
        template <class>
        NORMKIT_INLINE A get(int) const {
            return k;
        }
    };
    template <class A, class Lanes, class Addend>
    NORMKIT_INLINE void apply(int64_t at, int64_t, Lanes lanes, const Coefficient<A>& by, Addend& sums) const {
        if constexpr (centred)
            MomentsPass<T>{x}.add(at, lanes, typename MomentsPass<T>::template Coefficient<A>(by), sums);
        else
            add_square(sums, load<A>(x + at, lanes));
    }

   private:
    NORMKIT_INLINE static void add_square(ShortSums<F>& sums, F v) { sums.second = fma(v, v, sums.second); }
    NORMKIT_INLINE static void add_square(Sums<T>& sums, D v) { sums.second.add_product(v, v); }
};

template <class T>
struct RowSumsPass {
    const T *x, *dy;
    const ParameterOf<T>* weight;

    template <class A>
    struct Coefficient {
        A hi;
        NORMKIT_INLINE explicit Coefficient(const Row& row) : hi(splat<A>(row.hi)) {}
    };
    template <class A, class Lanes, class Addend>
    NORMKIT_INLINE void apply(int64_t at, int64_t j, Lanes lanes, const Coefficient<A>& by, Addend& sums) const {
        const A g = load<A>(dy + at, lanes) * load<A>(weight + j, lanes);
        add_gradient(sums, g, load<A>(x + at, lanes) - by.hi);
    }
};

// The sums of a pass over n elements of a row, from column j, which lie at `at`. Several sums at a time hide the
// latency of an addition.
template <class T, class A, class Pass>
NORMKIT_INLINE Sums<T> sum_run(const Pass pass, const Row& row, int64_t at, int64_t j, int64_t n) {
    constexpr bool is_short = std::is_same_v<A, F>;
    using Addend = std::conditional_t<is_short, ShortSums<F>, Sums<T>>;
    const typename Pass::template Coefficient<A> by(row);
    Sums<T> sums{};
    int64_t i = 0;
    while (i + 4 * L <= n) {
        Addend first{}, second{}, third{}, fourth{};
        for (int most = Addend::most / 2; most > 0 && i + 4 * L <= n; --most, i += 4 * L) {
            pass.template apply<A>(at + i, j + i, All{}, by, first);
            pass.template apply<A>(at + i + L, j + i + L, All{}, by, second);
            pass.template apply<A>(at + i + 2 * L, j + i + 2 * L, All{}, by, is_short ? third : first);
            pass.template apply<A>(at + i + 3 * L, j + i + 3 * L, All{}, by, is_short ? fourth : second);
        }
        if constexpr (is_short) {
            first.join(third);
            second.join(fourth);
        }
        first.join(second);
        sums.join(first);
    }
    Addend rest{};
    for (; i + L <= n; i += L) pass.template apply<A>(at + i, j + i, All{}, by, rest);
    if (i < n) pass.template apply<A>(at + i, j + i, First{int(n - i)}, by, rest);
    sums.join(rest);
    return sums;
}

// Writes the columns [j0, j1) of `rows` rows of M, from row r: column by column, so that rows share what belongs to
// a column. Two vectors are stored at a time, of neighbouring rows, or of one row where it is alone. A pass makes a
// Column at each column: value(by, at) is that of one row, and end() comes after them.
template <class T, class A, int rows, bool streamed, class Pass>
void write_rows(const Pass pass, const Row* row, int64_t r, int64_t M, int64_t j0, int64_t j1) {
    using Coefficient = typename Pass::template Coefficient<A>;
    Coefficient by[rows];
    for (int i = 0; i < rows; ++i) by[i] = Coefficient(row[i]);
    const Output<T> out{pass.to, streamed};
    const int64_t at = r * M;
    int64_t j = j0;
    for (; rows == 1 && j + 2 * L <= j1; j += 2 * L) {
        typename Pass::template Column<A, All> first(pass, j, All{}), second(pass, j + L, All{});
        pass.template prefetch<streamed>(at + j);
        if (sizeof(T) > 2) pass.template prefetch<streamed>(at + j + L);
        const A v = first.value(by[0], at + j), w = second.value(by[0], at + j + L);
        out.put(at + j, v, at + j + L, w);
        first.end();
        second.end();
    }
    for (; rows > 1 && j + L <= j1; j += L) {
        typename Pass::template Column<A, All> column(pass, j, All{});
#pragma GCC unroll 4
        for (int i = 0; i + 1 < rows; i += 2) {
            const int64_t here = at + i * M + j, below = here + M;
            pass.template prefetch<streamed>(here);
            pass.template prefetch<streamed>(below);
            const A v = column.value(by[i], here), w = column.value(by[i + 1], below);
            out.put(here, v, below, w);
        }
        column.end();
    }
    for (; j < j1; j += L) {
        const First lanes{int(std::min<int64_t>(L, j1 - j))};
        typename Pass::template Column<A, First> column(pass, j, lanes);
        for (int i = 0; i < rows; ++i) {
            pass.template prefetch<streamed>(at + i * M + j);
            out.put(at + i * M + j, column.value(by[i], at + i * M + j), lanes);
        }
        column.end();
    }
}

template <class T>
struct RowOutputPass {
    const T* x;
    const ParameterOf<T>*weight, *bias;
    T* to;
    int64_t ahead;  // where to the cache is told to look, in elements from here; 0: nowhere
    static constexpr int block = 1;  // rows that are written together: in the order of memory, which is faster

    template <bool streamed>
    NORMKIT_INLINE void prefetch(int64_t at) const {
        if (!ahead) return;
        fetch(x + at + ahead);
        if (!streamed) __builtin_prefetch(to + at + ahead, 1);
    }
    template <class A>
    using Coefficient = Standardize<A>;
    template <class A, class Lanes>
    struct Column {
        const RowOutputPass& pass;
        Lanes lanes;
        A gamma, beta;
        NORMKIT_INLINE Column(const RowOutputPass& pass, int64_t j, Lanes lanes)
            : pass(pass), lanes(lanes), gamma(load<A>(pass.weight + j, lanes)), beta(load<A>(pass.bias + j, lanes)) {}
        NORMKIT_INLINE A value(const Standardize<A>& by, int64_t at) const {
            return fma(by(load<A>(pass.x + at, lanes)), gamma, beta);
        }
        NORMKIT_INLINE void end() const {}
    };
};

// b = -mean(g xhat) and c = -mean(g). Centred before it is scaled, so that what cancels does so at the size of dy,
// and the gradient of a row of one value is 0. The rows' shares of dweight and dbias, either of which may be null,
// are summed in A over these few rows, and added to those in f64.
template <class T>
struct RowGradientPass {
    const T *x, *dy;
    const ParameterOf<T>* weight;
    T* to;
    int64_t ahead;
    double *dweight, *dbias;
    static constexpr int block = 4;  // fewer additions to dweight and dbias

    template <bool streamed>
    NORMKIT_INLINE void prefetch(int64_t at) const {
        if (!ahead) return;
        fetch(x + at + ahead);
        fetch(dy + at + ahead);
        if (!streamed) __builtin_prefetch(to + at + ahead, 1);
    }
    template <class A>
    struct Coefficient {
        Standardize<A> standardize;
        A b, c;
        Coefficient() = default;
        NORMKIT_INLINE explicit Coefficient(const Row& row)
            : standardize(row), b(splat<A>(row.b)), c(splat<A>(row.c)) {}
    };
    template <class A, class Lanes>
    struct Column {
        const RowGradientPass& pass;
        int64_t j;
        Lanes lanes;
        A gamma, dy_xhat{}, dy{};
        NORMKIT_INLINE Column(const RowGradientPass& pass, int64_t j, Lanes lanes)
            : pass(pass), j(j), lanes(lanes), gamma(load<A>(pass.weight + j, lanes)) {}
        NORMKIT_INLINE A value(const Coefficient<A>& by, int64_t at) {
            const A xhat = by.standardize(load<A>(pass.x + at, lanes)), v = load<A>(pass.dy + at, lanes);
            dy_xhat = fma(v, xhat, dy_xhat);
            dy = dy + v;
            return by.standardize.rstd * fma(by.b, xhat, v * gamma + by.c);
        }
        NORMKIT_INLINE void end() const {
            if (pass.dweight) add(pass.dweight + j, dy_xhat);
            if (pass.dbias) add(pass.dbias + j, dy);
        }

       private:
        NORMKIT_INLINE void add(double* to, A v) const { store(to, load<D>(to, lanes) + in_f64(v), lanes); }
    };
};

}  // namespace normkit::NORMKIT_ISA
