// From statistics and parameters, in f64, to the coefficients of a channel.

#pragma once

#include <algorithm>
#include <cmath>

#include "passes.hpp"

namespace normkit::NORMKIT_ISA {

inline double value(const Parameter& p, int64_t i, double absent) {
    if (!p.data) return absent;
    switch (p.dtype) {
        case DType::f32: return static_cast<const float*>(p.data)[i];
        case DType::f64: return static_cast<const double*>(p.data)[i];
        case DType::bf16: return load<F>(static_cast<const bf16*>(p.data) + i, First{1})[0];
        default: return load<F>(static_cast<const f16*>(p.data) + i, First{1})[0];
    }
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

// 1 / sqrt(var + eps): for f64 with more bits than it, where the platform has them.
template <class T>
using Inverse = std::conditional_t<std::is_same_v<T, double>, long double, double>;
template <class T>
Inverse<T> inverse_deviation(double var, double eps) {
    return 1 / std::sqrt(Inverse<T>(var) + Inverse<T>(eps));
}

// Far enough from the ends of f32 that products and rounding errors are normal numbers.
inline bool fits_f32(double v) { return v == 0 || (std::fabs(v) > 0x1p-110 && std::fabs(v) < 0x1p110); }

// Fills the coefficients of a channel. f64 columns are filled where a pass reads them: the shift, and all
// fields by complete() where a channel of the block is wide. The first column of a channel is always there.
template <class T>
class Writer {
   public:
    Writer(const Coefficients& to, int64_t C, int64_t copies, int64_t spread)
        : to_(to), C_(C), copies_(copies), spread_(spread) {}

    void shift(int64_t c, double k, bool wide) const {
        fill(to_.row<double>(kShift), c, k);
        put(kShift, c, k, float(k));
        fill(to_.wide, c, wide);
    }

    // z = scale (x - mean) + bias
    void affine(int64_t c, const Moments& m, Inverse<T> inverse, double gamma, double beta) const {
        const Pair mean = m.mean;
        const double rstd = double(inverse), scale = double(gamma * inverse);
        const float hi = float(mean.hi);
        put(kHi, c, mean.hi, hi);
        put(kLo, c, mean.lo, float((mean.hi - hi) + mean.lo));
        put(kScale, c, scale, float(scale));
        put(kBias, c, beta, float(beta));
        put(kRstd, c, rstd, float(rstd));
        fill(to_.wide, c, !(fits_f32(mean.hi) && fits_f32(scale) && fits_f32(rstd) && fits_f32(beta)) ||
                              (m.var != 0 && m.var < 0x1p-200));
    }
    // dx = scale dz + b xhat + constant
    void gradient(int64_t c, double b, double constant) const {
        put(kB, c, b, float(b));
        put(kC, c, constant, float(constant));
        fill(to_.wide, c, to_.wide[c * spread_] || !(fits_f32(b) && fits_f32(constant)));
    }
    void complete(int64_t c0, int64_t c1, int field0, int field1) const {
        bool wide = std::is_same_v<T, double>;
        for (int64_t c = c0; c < c1; ++c) wide |= to_.wide[c * spread_] != 0;
        if (wide)
            for (int field = field0; field < field1; ++field)
                for (int64_t c = c0; c < c1; ++c) fill(to_.row<double>(field), c, first(field, c));
    }
    double first(int field, int64_t c) const { return to_.row<double>(field)[c * spread_]; }

   private:
    const Coefficients& to_;
    int64_t C_, copies_, spread_;

    template <class E, class V>
    NORMKIT_INLINE void fill(E* row, int64_t c, V v) const {
        if (copies_ * spread_ == 1) {
            row[c] = E(v);
            return;
        }
        for (int64_t copy = 0; copy < copies_; ++copy) std::fill_n(row + (copy * C_ + c) * spread_, spread_, E(v));
    }
    void put(int field, int64_t c, double v, float rounded) const {
        to_.row<double>(field)[c * spread_] = v;
        if constexpr (!std::is_same_v<T, double>) fill(to_.row<float>(field), c, rounded);
    }
};

}  // namespace normkit::NORMKIT_ISA
