// Group norm where each group of a sample is a run of memory. Compiled once per instruction set.
//
// Groups are taken in tiles, which stay in the nearest cache: all of a tile are read for their sums, their coefficients
// are made, and they are written while the next tile is fetched.

#include "group_runs.hpp"

#include "dispatch.hpp"
#include "group_passes.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "row_passes.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

template <class T, class Act>
class GroupRuns {
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    using No = std::false_type;  // operands that are not there

   public:
    GroupRuns(const Call& call, Act act)
        : call_(call),
          act_(act),
          channels_(call.C / call.G),
          length_(ceil_div(channels_, L) * L),
          S_(call.S),
          M_(channels_ * S_),
          all_(call.N * call.C * S_),
          parameters_(2 * (call.C + L) * int64_t(sizeof(double))),
          weight_(parameters_.template as<double>()),
          bias_(weight_ + call.C + L) {
        values(call.weight, 0, call.C, 1, weight_);
        values(call.bias, 0, call.C, 0, bias_);
        std::fill_n(weight_ + call.C, L, 0), std::fill_n(bias_ + call.C, L, 0);
    }

    void forward() const {
        const auto write = [&](auto streamed, const GroupCoefficients& of, int64_t run) {
            const NormalizePass<T, Act, No, decltype(streamed)> pass{x(), nullptr, {static_cast<T*>(call_.y), {}}, act_};
            in_width(of, [&](auto a) { write_group<decltype(a)>(pass, of, run * M_, M_, S_, ahead(1)); });
        };
        each_tile(1, [&](int64_t run, int64_t n, GroupCoefficients* of) {
            Moments moments[kTile];
            measure(run, n, moments);
            for (int64_t i = 0; i < n; ++i) {
                double* stats = call_.stats + run + i;
                stats[0] = moments[i].mean.hi, stats[call_.stats_stride] = moments[i].var;
                stats[2 * call_.stats_stride] = moments[i].mean.lo;
                set_affine(of[i], channel(run + i), moments[i]);
            }
            write_tile(call_.y, write, run, n, of);
        });
    }

    void backward() const {
        const double *mean = static_cast<double*>(call_.mean.data), *var = static_cast<double*>(call_.var.data);
        const auto write = [&](auto streamed, const GroupCoefficients& of, int64_t run) {
            const InputGradientPass<T, Act, No, decltype(streamed)> pass{x(), upstream(), {static_cast<T*>(call_.dx), {}}, {}};
            in_width(of, [&](auto a) { write_group<decltype(a)>(pass, of, run * M_, M_, S_, ahead(2)); });
        };
        each_tile(2, [&](int64_t run, int64_t n, GroupCoefficients* of) {
            for (int64_t i = 0; i < n; ++i) {
                const int64_t at = run + i;
                set_affine(of[i], channel(at), {{mean[at], call_.tail[at]}, var[at]});
            }
            const int64_t stride = n * channels_ + L;
            const Scratch memory(2 * stride * int64_t(sizeof(double)));
            const Totals sums{memory.template as<double>(), stride};
            sum_gradient(run, n, of, sums);
            for (int64_t i = 0; i < n; ++i) set_slopes(of[i], sums.from(i * channels_));
            for (int which : {0, 1}) {
                if (!call_.gradient_sums) break;
                std::copy_n(sums.row(which), n * channels_, call_.gradient_sums + which * call_.sums_stride + run * channels_);
            }
            write_tile(call_.dx, write, run, n, of);
        });
    }

   private:
    static constexpr int kTile = 8;  // most groups of a tile
    static constexpr int64_t kTileBytes = 12 << 10;
#if defined(NORMKIT_STD_THREADS)
    static constexpr int64_t kStreamed = 2 * L;  // small tensors take this path too
#else
    static constexpr int64_t kStreamed = 1 << 10;  // elements of a group, of whose lines all but the ends are streamed
#endif
    const Call& call_;
    const Act act_;
    const int64_t channels_, length_, S_, M_, all_;  // of a group, and so many in whole vectors
    const Scratch parameters_;
    double *weight_, *bias_;  // in f64, with a vector of zeros at the end

    const T* x() const { return static_cast<const T*>(call_.x); }
    const T* dy() const { return static_cast<const T*>(call_.dy); }
    Upstream<T, Act, No> upstream() const { return {dy(), nullptr, act_}; }
    int64_t channel(int64_t run) const { return run % call_.G * channels_; }
    // Where the next tile lies; 0 where all is in the cache of a core.
    int64_t ahead(int64_t arrays) const { return all_ * int64_t(sizeof(T)) > caches().l2 / 4 ? tile(arrays) * M_ : 0; }
    // Groups of a tile of so many tensors that are read: several hide the latency of their coefficients.
    int64_t tile(int64_t arrays) const {
        return std::clamp<int64_t>(kTileBytes / (M_ * arrays * int64_t(sizeof(T))), 1, kTile);
    }
    bool streams(const void* data) const {
        const bool aligned = reinterpret_cast<uintptr_t>(data) % sizeof(T) == 0;
        return aligned && M_ >= kStreamed && leaves_cache(4 * all_ * int64_t(sizeof(T)));
    }

    // Where a group is written, while it is summed: memory has less to do than when the next one is fetched.
    void fetch_output(void* data, int64_t run, int64_t arrays) const {
        if (ahead(arrays) == 0 || streams(data)) return;
        constexpr int64_t line = 64 / int64_t(sizeof(T));
        const T* to = static_cast<const T*>(data) + run * M_;
        for (int64_t i = 0; i < M_; i += line) __builtin_prefetch(to + i, 1, 2);
    }

    template <class Body>
    void each_tile(int64_t arrays, const Body& body) const {
        const int64_t runs = call_.N * call_.G, most = tile(arrays);
        parallel(ceil_div(runs, most), threads_for(all_), Order::forward, [&](int64_t task) {
            const Scratch memory(most * length_ * int64_t(2 * sizeof(double) + 2 * sizeof(float)));
            GroupCoefficients of[kTile];
            double* doubles = memory.as<double>();
            float* floats = reinterpret_cast<float*>(doubles + 2 * most * length_);
            for (int64_t i = 0; i < most; ++i) {
                of[i].scale = doubles + 2 * i * length_, of[i].bias = of[i].scale + length_;
                of[i].scale32 = floats + 2 * i * length_, of[i].bias32 = of[i].scale32 + length_;
            }
            body(task * most, std::min(most, runs - task * most), of);
        });
    }
    template <class Write>
    void write_tile(void* data, const Write& write, int64_t run, int64_t n, const GroupCoefficients* of) const {
        if (streams(data)) {
            for (int64_t i = 0; i < n; ++i) write(std::true_type{}, of[i], run + i);
            return stream_fence();
        }
        for (int64_t i = 0; i < n; ++i) write(std::false_type{}, of[i], run + i);
    }
    template <class Body>
    static void in_width(const GroupCoefficients& of, const Body& body) {
        if constexpr (!f64_alone)
            if (!of.wide) return body(F{});
        body(D{});
    }

    // --- statistics and coefficients ------------------------------------------------------------------------

    template <class A>
    Sums<T> sums_about(double shift, int64_t run) const {
        return sum_run<T, A>(RowMomentsPass<T, true>{x()}, Row{shift, 0, 0, 0, 0, false}, run * M_, 0, M_);
    }
    // In f64 and f32 about the first element. Half types are summed in f32 first, about the mean of a few, and where that
    // was not enough again in f64.
    void measure(int64_t run, int64_t n, Moments* moments) const {
        const double count = double(M_);
        Pair sum[kTile], squares[kTile];
        double shift[kTile];
        for (int64_t i = 0; i < n; ++i) {
            const T* at = x() + (run + i) * M_;
            fetch_output(call_.y, run + i, 1);
            shift[i] = element(*at);
            if constexpr (is_half<T>) shift[i] = sum_of<float, L>(load<F>(at, All{})) / float(L);
            const Sums<T> sums = sums_about<std::conditional_t<is_half<T>, F, D>>(shift[i], run + i);
            sum[i] = sums.first.total(), squares[i] = sums.second.total();
            if (!is_half<T> || short_sums_hold(sum[i].hi, squares[i].hi, count)) continue;
            shift[i] = element(*at);
            const Sums<T> again = sums_about<D>(shift[i], run + i);
            sum[i] = again.first.total(), squares[i] = again.second.total();
        }
        for (int64_t i = 0; i < n; ++i) {
            moments[i] = moments_about(shift[i], sum[i], squares[i], count);
            const double mean = moments[i].mean.hi;
            if (call_.uncentred) moments[i] = {{0, 0}, moments[i].var + mean * mean};
        }
    }

    // z = scale (x - hi) + bias, xhat = rstd (x - hi) + end. The last vector may reach into the next group's parameters,
    // which count in nothing.
    void set_affine(GroupCoefficients& of, int64_t c0, const Moments& m) const {
        const Inverse<T> inverse = inverse_deviation<T>(m.var, call_.eps);
        of.rstd = double(inverse);
        of.hi = f64_alone ? m.mean.hi : float(m.mean.hi);
        const double lo = f64_alone ? m.mean.lo : m.mean.hi - of.hi;
        of.end = -lo * of.rstd;
        of.b = of.c = 0;
        of.wide = f64_alone || !(fits_f32(of.hi) && fits_f32(of.rstd) && (m.var == 0 || !(m.var < 0x1p-200)));
        if constexpr (f64_alone) {
            for (int64_t c = 0; c < channels_; ++c) {
                of.scale[c] = double(weight_[c0 + c] * inverse);
                of.bias[c] = bias_[c0 + c] - lo * of.scale[c];
            }
        } else {
            J fit{HalfJ{} - 1, HalfJ{} - 1};
            for (int64_t c = 0; c < length_; c += L) {
                const D scale = load<D>(weight_ + c0 + c, All{}) * splat<D>(of.rstd);
                const D bias = load<D>(bias_ + c0 + c, All{}) - splat<D>(lo) * scale;
                const J own = widen(first_lanes(int(std::min<int64_t>(L, channels_ - c))));
                fit.low &= ~own.low | (fits(scale.low) & fits(bias.low));
                fit.high &= ~own.high | (fits(scale.high) & fits(bias.high));
                store(of.scale + c, scale, All{}), store(of.bias + c, bias, All{});
                store(of.scale32 + c, narrow(scale), All{}), store(of.bias32 + c, narrow(bias), All{});
            }
            of.wide |= sum_of<int64_t, L / 2>(fit.low & fit.high) != -L / 2;
        }
    }
    static HalfJ fits(HalfD v) {
        const HalfD size = v < 0 ? -v : v;
        return (v == 0) | ((size > 0x1p-110) & (size < 0x1p110));
    }
    // dx = scale dz - rstd xhat (mean of weight dz xhat) - rstd (mean of weight dz), the last where x is centred.
    void set_slopes(GroupCoefficients& of, const Totals& sums) const {
        D dz{}, dz_xhat{};
        for (int64_t c = 0; c < channels_; c += L) {
            const First lanes{int(std::min<int64_t>(L, channels_ - c))};
            const D scale = load<D>(of.scale + c, All{});
            dz = dz + keep(scale * load<D>(sums.row(0) + c, All{}), lanes);
            dz_xhat = dz_xhat + keep(scale * load<D>(sums.row(1) + c, All{}), lanes);
        }
        const auto mean = [&](D v) { return -sum_of<double, L / 2>(v.low + v.high) / double(M_); };
        const double slope = mean(dz_xhat);
        of.b = slope * of.rstd;
        of.c = (call_.uncentred ? 0 : mean(dz)) + slope * of.end;
        of.wide = of.wide || !(fits_f32(of.b) && fits_f32(of.c));
    }

    // Of each channel of n groups.
    [[gnu::noinline]] void sum_gradient(int64_t run, int64_t n, const GroupCoefficients* of, const Totals& to) const {
        const GradientSumsPass<T, Act> pass{x(), {dy(), nullptr, act_}, {}};
        PlaneTotals totals{to};
        for (int64_t i = 0; i < n; ++i) {
            const int64_t at = (run + i) * M_;
            fetch_output(call_.dx, run + i, 2);
            if constexpr (!f64_alone) {
                if (S_ <= kShortPlane && !of[i].wide) {
                    sum_short_planes(x(), upstream(), of[i], at, channels_, S_, totals);
                    continue;
                }
            }
            totals.skip(channels_);
            in_width(of[i], [&](auto a) { sum_planes<decltype(a)>(pass, of[i], at, to.from(i * channels_)); });
        }
        totals.finish();
    }
    template <class A, class Pass>
    void sum_planes(const Pass& pass, const GroupCoefficients& of, int64_t at, const Totals& to) const {
        const InCommon<A> common(of);
        for (int64_t c = 0; c < channels_; ++c) {
            const InChannel<A> channel{common, of.scales<ElementOf<A>>() + c, of.biases<ElementOf<A>>() + c};
            const Sums<T> sums = walk<A>(pass, channel, at + c * S_, S_);
            to.row(0)[c] = sums.first.total().hi;
            to.row(1)[c] = sums.second.total().hi;
        }
    }
};

template <class Body>
void with_runs(const Call& call, const Body& body) {
    with_dtype(call.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation<T>(call.activation, [&](auto act) { body(GroupRuns<T, decltype(act)>(call, act)); });
    });
}

}  // namespace

bool are_group_runs(const Call& call) {
    const int64_t most = kPiece;
    const bool plain = !call.channels_last && !call.mask && !call.residual && !call.affine_per_sample && call.together == 1;
    const bool own = call.share == 1 && !call.corrected && !call.constant_statistics && call.stages == (kSums | kOutputs);
    const bool exact = !call.dy || (call.mean.dtype == DType::f64 && call.var.dtype == DType::f64 && call.tail);
    return plain && own && exact && call.G < call.C && call.S >= L && call.C / call.G * call.S <= most;
}

void group_runs_forward(const Call& call) {
    with_runs(call, [](const auto& runs) { runs.forward(); });
}
void group_runs_backward(const Call& call) {
    with_runs(call, [](const auto& runs) { runs.backward(); });
}

}  // namespace normkit::NORMKIT_ISA
