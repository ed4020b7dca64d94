// From statistics and parameters, in f64, to the coefficients of a channel.

#pragma once

#include <algorithm>
#include <cmath>

#include "dispatch.hpp"
#include "memory.hpp"
#include "passes.hpp"

namespace normkit::NORMKIT_ISA {

inline float element(float v) { return v; }
inline double element(double v) { return v; }
inline float element(bf16 v) { return bits<float>(uint32_t(v.bits) << 16); }
inline float element(f16 v) { return load<F>(&v, First{1})[0]; }

inline double value(const Parameter& p, int64_t i, double absent) {
    if (!p.data) return absent;
    return with_dtype(p.dtype, [&](auto t) -> double { return element(static_cast<const decltype(t)*>(p.data)[i]); });
}
inline void assign(const Parameter& p, int64_t i, double v) {
    if (!p.data) return;
    switch (p.dtype) {
        case DType::f32: static_cast<float*>(p.data)[i] = float(v); return;
        case DType::f64: static_cast<double*>(p.data)[i] = v; return;
        case DType::bf16: return store(static_cast<bf16*>(p.data) + i, splat<F>(v), First{1});
        default: return store(static_cast<f16*>(p.data) + i, splat<F>(v), First{1});
    }
}

// n elements from i on, in f64.
inline void values(const Parameter& p, int64_t i, int64_t n, double absent, double* to) {
    if (!p.data) return void(std::fill_n(to, n, absent));
    with_dtype(p.dtype, [&](auto t) {
        const auto* from = static_cast<const decltype(t)*>(p.data) + i;
        int64_t j = 0;
        for (; j + L <= n; j += L) store(to + j, load<D>(from + j, All{}), All{});
        if (j < n) store(to + j, load<D>(from + j, First{int(n - j)}), First{int(n - j)});
    });
}
inline void assign(const Parameter& p, int64_t i, int64_t n, const double* from) {
    if (!p.data) return;
    with_dtype(p.dtype, [&](auto t) {
        auto* to = static_cast<decltype(t)*>(p.data) + i;
        int64_t j = 0;
        for (; j + L <= n; j += L) store(to + j, load<D>(from + j, All{}), All{});
        if (j < n) store(to + j, load<D>(from + j, First{int(n - j)}), First{int(n - j)});
    });
}
inline double sum(const double* p, int64_t n) {
    D of_lanes{};
    double rest = 0;
    int64_t i = 0;
    for (; i + L <= n; i += L) of_lanes = of_lanes + load<D>(p + i, All{});
    for (; i < n; ++i) rest += p[i];
    return sum_of<double, L / 2>(of_lanes.low + of_lanes.high) + rest;
}

// 1 / sqrt(var + eps): for f64 with more bits than it, where the platform has them.
template <class T>
using Inverse = std::conditional_t<std::is_same_v<T, double>, long double, double>;
template <class T>
Inverse<T> inverse_deviation(double var, double eps) {
    return 1 / std::sqrt(Inverse<T>(var) + Inverse<T>(eps));
}

// Far enough from the ends of f32 that products and rounding errors are normal numbers.
inline bool fits_f32(double v) { return (v == 0) | ((std::fabs(v) > 0x1p-110) & (std::fabs(v) < 0x1p110)); }

// The coefficients of a call: in f64 a row for each field with an element for each channel, and the columns that
// passes read, made of the rows. Loops are plain ones over the elements of rows: the compiler makes vectors of them.
template <class T>
class CoefficientRows {
   public:
    // Channel c is at the columns c * spread + [0, spread), and the whole again `copies` times; lanes are columns, or
    // all in one channel.
    CoefficientRows(int64_t C, int64_t group, int64_t copies, int64_t spread, bool lanes_are_columns)
        : C_(C),
          group_(group),
          copies_(copies),
          spread_(spread),
          twos_(by_twos<T> && lanes_are_columns),
          length_(ceil_div(C, L) * L),
          stride_(ceil_div(C * copies * spread, L) * L),
          memory_(kRows * length_ * 8 + kFields * stride_ * (twos_ ? 16 : 12) + length_ + stride_) {
        rows_ = memory_.template as<double>();
        by_.stride = stride_;
        by_.f64 = apart() ? row(kRows) : rows_;
        by_.f32 = reinterpret_cast<float*>(row(kRows) + kFields * stride_);
        by_.twos = by_.f32 + (twos_ ? kFields * stride_ : 0);
        by_.wide = reinterpret_cast<uint8_t*>(by_.twos + kFields * stride_);
        wide_ = apart() ? by_.wide + stride_ : by_.wide;
        std::memset(by_.wide, 0, stride_);
    }
    const Coefficients& columns() const { return by_; }
    double* row(int field) const { return rows_ + field * length_; }

    // What p has for each group, for each channel of it.
    void repeat(double* p, int64_t groups) const {
        for (int64_t g = groups - 1; group_ > 1 && g >= 0; --g) std::fill_n(p + g * group_, group_, p[g]);
    }

    // The shifts stand in their row.
    void shift(int64_t c0, int64_t c1, bool wide) const {
        std::fill(wide_ + c0, wide_ + c1, wide);
        if (apart()) expand(by_.wide, wide_, c0, c1), expand(by_.row<double>(kShift), row(kShift), c0, c1);
        if constexpr (is_half<T>) publish_f32(kShift, c0, c1);
    }

    // z = scale (x - hi) + bias, xhat = rstd (x - hi) + end, with a mean and a variance for each group.
    void affine(int64_t c0, int64_t c1, const Parameter& mean, const Parameter& variance, const double* tail,
                const Parameter& weight, const Parameter& bias, double eps) const {
        double *hi = row(kHi), *lo = row(kLo), *var = row(kVar);
        double *scale = row(kScale), *beta = row(kBias), *rstd = row(kRstd), *end = row(kEnd);
        const int64_t g0 = c0 / group_, groups = (c1 - c0) / group_;
        values(mean, g0, groups, 0, hi + c0);
        const bool with_tail = std::is_same_v<T, double>;  // other means have bits enough without
        values({with_tail ? const_cast<double*>(tail) : nullptr, DType::f64}, g0, groups, 0, lo + c0);
        values(variance, g0, groups, 1, var + c0);
        for (double* each : {hi, lo, var}) repeat(each + c0, groups);
        values(weight, c0, c1 - c0, 1, scale + c0);
        values(bias, c0, c1 - c0, 0, beta + c0);
#pragma GCC ivdep
        for (int64_t c = c0; c < c1; ++c) {
            const Inverse<T> inverse = inverse_deviation<T>(var[c], eps);
            rstd[c] = double(inverse);
            scale[c] = double(scale[c] * inverse);
            if constexpr (!std::is_same_v<T, double>) {  // hi is a number of f32
                lo[c] = hi[c] - float(hi[c]);
                hi[c] = float(hi[c]);
            }
            beta[c] -= lo[c] * scale[c];
            end[c] = -lo[c] * rstd[c];
        }
        std::fill(wide_ + c0, wide_ + c1, false);
        find_wide(c0, c1, [=](int64_t c) {
            return fits_f32(hi[c]) & fits_f32(scale[c]) & fits_f32(rstd[c]) & fits_f32(beta[c]) &
                   ((var[c] == 0) | !(var[c] < 0x1p-200));
        });
        publish(c0, c1, kHi, kB);
    }
    // dx = scale dz - rstd xhat (mean of weight dz xhat) - rstd (mean of weight dz), the last where x is centred
    //    = scale dz + b xhat + constant,  the latter to be written in x - hi
    void gradient(int64_t c0, int64_t c1, const double* dz, const double* dz_xhat, double count, bool centred) const {
        double *scale = row(kScale), *b = row(kB), *constant = row(kC);
        const double share = -1 / (count * double(group_)), share_of_dz = centred ? share : 0;
#pragma GCC ivdep
        for (int64_t c = c0; c < c1; ++c) {
            b[c] = scale[c] * share * dz_xhat[c];
            constant[c] = scale[c] * share_of_dz * dz[c];
        }
        for (double* each : {b, constant})
            for (int64_t c = c0; group_ > 1 && c < c1; c += group_) std::fill_n(each + c, group_, sum(each + c, group_));
        publish_slopes(c0, c1);
    }
    // The same with b and constant given, or zero.
    void slopes(int64_t c0, int64_t c1, const double* b, const double* constant) const {
        values({const_cast<double*>(b), DType::f64}, c0, c1 - c0, 0, row(kB) + c0);
        values({const_cast<double*>(constant), DType::f64}, c0, c1 - c0, 0, row(kC) + c0);
        publish_slopes(c0, c1);
    }

   private:
    enum { kLo = kFields, kVar, kRows };  // what hi leaves of the mean; the variance
    const int64_t C_, group_, copies_, spread_;
    const bool twos_;
    const int64_t length_, stride_;
    const Scratch memory_;
    double* rows_;
    uint8_t* wide_;  // per channel
    Coefficients by_;

    bool apart() const { return copies_ * spread_ > 1; }  // columns are not channels
    template <class E, class V>
    void expand(E* to, const V* from, int64_t c0, int64_t c1) const {
        for (int64_t copy = 0; copy < copies_; ++copy, to += C_ * spread_) {
            if (spread_ > 1) {
                for (int64_t c = c0; c < c1; ++c) std::fill_n(to + c * spread_, spread_, E(from[c]));
            } else {
#pragma GCC ivdep
                for (int64_t c = c0; c < c1; ++c) to[c] = E(from[c]);
            }
        }
    }
    void publish_slopes(int64_t c0, int64_t c1) const {
        double *b = row(kB), *constant = row(kC);
        const double *rstd = row(kRstd), *end = row(kEnd);
#pragma GCC ivdep
        for (int64_t c = c0; c < c1; ++c) {
            constant[c] += b[c] * end[c];
            b[c] *= rstd[c];
        }
        find_wide(c0, c1, [=](int64_t c) { return fits_f32(b[c]) & fits_f32(constant[c]); });
        publish(c0, c1, kB, kFields);
    }
    template <class Fits>
    void find_wide(int64_t c0, int64_t c1, const Fits& fits) const {
        int64_t misfits = 0;
        for (int64_t c = c0; c < c1; ++c) misfits += fits(c) ? 0 : 1;
        for (int64_t c = c0; misfits > 0 && c < c1; ++c) wide_[c] |= !fits(c);
    }
    void publish_f32(int field, int64_t c0, int64_t c1) const {
        float* columns = by_.row<float>(field);
        expand(columns, row(field), c0, c1);
        if (!twos_) return;
        float* twos = by_.twos + field * stride_;
        const int64_t j0 = copies_ > 1 ? 0 : c0 * spread_, j1 = copies_ > 1 ? C_ * copies_ : c1 * spread_;
        for (int64_t j = j0; j + 2 * L <= j1; j += 2 * L)
            for (int i = 0; i < L; ++i) twos[j + i] = columns[j + 2 * i], twos[j + L + i] = columns[j + 2 * i + 1];
    }
    // Columns in f64 are there where a pass reads them.
    void publish(int64_t c0, int64_t c1, int field0, int field1) const {
        bool wide = true;
        if constexpr (!std::is_same_v<T, double>) {
            wide = std::any_of(wide_ + c0, wide_ + c1, [](uint8_t flag) { return flag != 0; });
            for (int field = field0; field < field1; ++field) publish_f32(field, c0, c1);
        }
        if (!apart()) return;
        expand(by_.wide, wide_, c0, c1);
        for (int field = kHi; wide && field < field1; ++field) expand(by_.row<double>(field), row(field), c0, c1);
    }
};

}  // namespace normkit::NORMKIT_ISA
