// Statistics per channel: batch norm and its relatives. Compiled once per instruction set.
//
// A call is cut into blocks of channels. A block is prepared, read once for its sums (first), its coefficients
// are made of them (finish), and its outputs are written while it is still in the cache (second). Where there
// are fewer channels than threads, or where channels lie side by side in memory, all threads share a block.

#include "family.hpp"

#include <numeric>

#include "coefficients.hpp"
#include "columns.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"
#include "planes.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

// Planes below this are taken as rows of columns, where no vector ends with a plane.
constexpr int64_t kSmallPlane = 32;

template <class T, class Layout>
class Channels {
   public:
    explicit Channels(const Call& call)
        : call_(call),
          layout_(call.N, call.C, call.S, call.mask, call.channels_last),
          group_(call.C / call.G),
          threads_(threads_for(call.N * call.C * call.S)),
          rows_(call.C, group_, layout_.copies, layout_.spread, std::is_same_v<Layout, Columns<T>>),
          memory_(call.C * (layout_.chunks * 4 + 2) * int64_t(sizeof(double))) {
        double* next = memory_.template as<double>() + call.C * 4 * layout_.chunks;
        dz_ = call.gradient_sums ? call.gradient_sums : next;
        dz_xhat_ = dz_ + (call.gradient_sums ? call.sums_stride : call.C);
    }

    // Stages: sums (moments), outputs (normalization with given statistics), or both.
    template <class Act>
    int64_t forward(Act act) const {
        const bool measured = call_.stages & kSums;
        const int64_t count = measured ? find_positions() : 0;
        run(
            1,
            [&](int64_t c0, int64_t c1) { measured ? set_shifts(c0, c1) : set_given(c0, c1); },
            MomentsPass<T>{x()}, [&](int64_t c0, int64_t c1) { return too_far(c0, c1, double(count)); },
            [&](int64_t c0, int64_t c1) {
                if (measured) finish_moments(c0, c1, double(count));
            },
            NormalizePass<T, Act>{x(), tensor(call_.residual), output(call_.y), act});
        return count;
    }

    // Stages: sums of the gradient, input gradient from given sums, or both.
    template <class Act>
    int64_t backward(Act act) const {
        const Upstream<T, Act> upstream{tensor(call_.dy), tensor(call_.residual), act};
        const Output<T> dx = output(call_.dx), dresidual = output(call_.dresidual);
        if constexpr (std::is_same_v<Act, Relu>) {
            // dz is dy or 0, and no rounding is lost where the first pass leaves it to the second, in the cache.
            if (call_.dresidual && !call_.mask && call_.stages == (kSums | kOutputs) && !dresidual.streamed) {
                const T* dz = tensor(call_.dresidual);
                return backward(GradientSumsPass<T, Act>{x(), upstream, {static_cast<T*>(call_.dresidual), false}},
                                InputGradientPass<T, None>{x(), {dz, nullptr, {}}, dx, {}});
            }
        }
        return backward(GradientSumsPass<T, Act>{x(), upstream, {}},
                        InputGradientPass<T, Act>{x(), upstream, dx, dresidual});
    }

   private:
    const Call& call_;
    const Layout layout_;
    const int64_t group_;  // channels that share a statistic
    const int threads_;
    const CoefficientRows<T> rows_;
    const Scratch memory_;   // sums of each chunk
    double *dz_, *dz_xhat_;  // Σ dz, Σ dz xhat; forward, the mean and the variance of a blend
    // Positions whose mean is the shift of the sums. In f64 the first that counts will do, in f32 sums want more.
    static constexpr int kMostSamples = is_half<T> ? 16 : 1;
    mutable int samples_ = 1;
    mutable int64_t sample_n_[kMostSamples] = {}, sample_s_[kMostSamples] = {};

    template <class SumsPass, class OutputPass>
    int64_t backward(const SumsPass& sums, const OutputPass& outputs) const {
        const bool measured = call_.stages & kSums;
        const double count = measured && !call_.constant_statistics ? double(find_positions()) : 0;
        run(
            2, [&](int64_t c0, int64_t c1) { set_given(c0, c1); }, sums, [](int64_t, int64_t) { return false; },
            [&](int64_t c0, int64_t c1) {
                if (measured) finish_sums(c0, c1);
                set_gradient(c0, c1, count);
            },
            outputs);
        return 0;
    }

    static const T* tensor(const void* data) { return static_cast<const T*>(data); }
    const T* x() const { return tensor(call_.x); }

    Output<T> output(void* data) const {
        const int64_t bytes = call_.of_samples * call_.C * call_.S * int64_t(sizeof(T));
        const bool alone = call_.stages == kOutputs && !call_.dy;  // in training there are gradients, and x stays
        return {static_cast<T*>(data), leaves_cache(alone ? bytes * 3 / 2 : bytes * 4) && layout_.can_stream(data)};
    }

    // --- blocks of channels ---------------------------------------------------------------------------------

    template <class Prepare, class SumsPass, class Again, class Finish, class OutputPass>
    void run(int64_t arrays, const Prepare& prepare, const SumsPass& sums_pass, const Again& again,
             const Finish& finish, const OutputPass& output_pass) const {
        const int64_t C = call_.C, chunks = layout_.chunks;
        constexpr bool moments = std::is_same_v<SumsPass, MomentsPass<T>>;  // gradients are summed per channel
        const int64_t together = moments ? group_ : 1;
        const bool summed = call_.stages & kSums, written = call_.stages & kOutputs;
        const auto first = [&](int64_t chunk, int64_t c0, int64_t c1) {
            layout_.sums(sums_pass, rows_.columns(), chunk, c0, c1, together, partial(chunk).from(c0));
        };
        const auto second = [&](int64_t chunk, int64_t c0, int64_t c1) {
            layout_.map(output_pass, rows_.columns(), chunk, c0, c1);
            if (output_pass.streamed()) stream_fence();
        };
        const int64_t unit = std::lcm(group_, Layout::unit);  // a block ends where a group and a vector end
        // A tensor that the last cache holds may as well be read in the order of memory. What is read once need not fit.
        const int64_t bytes = call_.N * C * call_.S * int64_t(sizeof(T)) * arrays;
        const int64_t fits = layout_.block(bytes <= caches().last / 2 ? bytes : caches().l2 / 2, arrays, threads_);
        const int64_t block = summed && written ? fits : std::max(fits, ceil_div(C, 2 * threads_));
        const int64_t width = fits > 0 ? ceil_div(block, unit) * unit : 0;
        if (width > 0) {
            // Outputs alone begin with the end, which whoever came before, sums of ours above all, has left in the cache.
            const Order order = summed ? Order::forward : Order::backward;
            parallel(ceil_div(C, width), threads_, order, [&](int64_t block) {
                const int64_t c0 = block * width, c1 = std::min(C, c0 + width);
                prepare(c0, c1);
                const auto sum = [&] {
                    for (int64_t i = 0; i < chunks; ++i) first(i, c0, c1);
                    add_chunks(c0, c1);
                };
                if (summed) sum();
                if (summed && again(c0, c1)) sum();
                finish(c0, c1);
                for (int64_t i = chunks - 1; written && i >= 0; --i) second(i, c0, c1);
            });
            return;
        }
        const int64_t shared = ceil_div(layout_.group(caches().last / 2, arrays), unit) * unit;
        for (int64_t c0 = 0; c0 < C; c0 += shared) {
            const int64_t c1 = std::min(C, c0 + shared);
            prepare(c0, c1);
            const auto sum = [&] {
                parallel(chunks, threads_, Order::forward, [&](int64_t i) { first(i, c0, c1); });
                add_chunks(c0, c1);
            };
            if (summed) sum();
            if (summed && again(c0, c1)) sum();
            finish(c0, c1);
            if (written) parallel(chunks, threads_, Order::backward, [&](int64_t i) { second(i, c0, c1); });
        }
    }
    Totals partial(int64_t chunk) const {
        return {memory_.template as<double>() + chunk * 4 * call_.C, call_.C};
    }
    // To the sums of the first chunk.
    void add_chunks(int64_t c0, int64_t c1) const {
        for (int64_t i = 1; i < layout_.chunks; ++i) partial(0).from(c0).template add<T>(partial(i).from(c0), c1 - c0);
    }
    Totals total() const { return partial(0); }

    // --- statistics and coefficients ------------------------------------------------------------------------

    // Counts the positions that the mask leaves, and chooses the samples.
    int64_t find_positions() const {
        const int64_t all = call_.N * call_.S;
        if (!call_.mask) {
            samples_ = int(std::min<int64_t>(kMostSamples, all));
            for (int64_t i = 0; i < samples_; ++i) {
                sample_n_[i] = all * i / samples_ / call_.S;
                sample_s_[i] = all * i / samples_ % call_.S;
            }
            return all;
        }
        int64_t count = 0;
        for (int64_t i = all - 1; i >= 0; --i)
            if (call_.mask[i]) ++count, sample_n_[0] = i / call_.S, sample_s_[0] = i % call_.S;
        samples_ = count > 0;
        return count;
    }
    // The mean of the samples of a group's first channel.
    void set_shifts(int64_t c0, int64_t c1) const {
        double* k = rows_.row(kShift) + c0;
        const int64_t groups = (c1 - c0) / group_;
        std::fill_n(k, groups, 0);
        for (int i = 0; i < samples_; ++i) {
            const T* at = x() + layout_.offset(sample_n_[i], sample_s_[i], c0);
            const int64_t stride = layout_.offset(0, 0, group_);
            for (int64_t g = 0; g < groups; ++g) k[g] += element(at[g * stride]);
        }
        for (int64_t g = 0; g < groups; ++g) k[g] = is_half<T> ? float(k[g] / std::max(1, samples_)) : k[g];
        rows_.repeat(k, groups);
        rows_.shift(c0, c1, call_.mask != nullptr);
    }
    // Half types are summed in f32 first. Where that was not enough, the channel is summed again in f64.
    bool too_far(int64_t c0, int64_t c1, double count) const {
        if (!is_half<T> || call_.mask) return false;
        const Totals sums = total();
        const int64_t terms = layout_.joint() ? 1 : group_;
        bool found = false;
        for (int64_t first = c0; first < c1; first += group_) {
            double sum = 0, squares = 0;
            for (int64_t c = first; c < first + terms; ++c) sum += sums.row(0)[c], squares += sums.row(1)[c];
            if (short_sums_hold(sum, squares, count * double(group_))) continue;
            rows_.shift(first, first + group_, true);
            found = true;
        }
        return found;
    }
    void set_given(int64_t c0, int64_t c1) const {
        rows_.affine(c0, c1, call_.mean, call_.var, call_.tail, call_.weight, call_.bias, call_.eps);
    }
    // The parameters that moments lead to, of batch renorm others than those of the call.
    Parameter weight() const {
        return call_.corrected ? Parameter{call_.corrected + 2 * call_.C, DType::f64} : call_.weight;
    }
    Parameter bias() const {
        return call_.corrected ? Parameter{call_.corrected + 3 * call_.C, DType::f64} : call_.bias;
    }
    void correct(int64_t c0, int64_t c1) const {
        const double *mean = call_.stats, *var = mean + call_.stats_stride;
        double *rs = call_.corrected, *ds = rs + call_.C, *gammas = ds + call_.C, *betas = gammas + call_.C;
        for (int64_t c = c0; c < c1; ++c) {
            const double deviation = std::sqrt(value(call_.known_var, c, 1) + call_.eps);
            const double r = std::sqrt(var[c] + call_.eps) / deviation;
            const double d = (mean[c] - value(call_.known_mean, c, 0)) / deviation;
            rs[c] = std::clamp(r, 1 / call_.r_max, call_.r_max);
            ds[c] = std::clamp(d, -call_.d_max, call_.d_max);
            const double gamma = value(call_.weight, c, 1);
            gammas[c] = gamma * rs[c], betas[c] = value(call_.bias, c, 0) + gamma * ds[c];
        }
    }
    // The gradient of the weight that r and d have a part in.
    void uncorrect(int64_t c0, int64_t c1) const {
        const double *r = call_.corrected, *d = r + call_.C;
        for (int64_t c = c0; c < c1; ++c) assign(call_.dweight, c, r[c] * dz_xhat_[c] + d[c] * dz_[c]);
    }
    void blend(int64_t c0, int64_t c1) const {
        const double *mean = call_.stats, *var = mean + call_.stats_stride;
        values(call_.known_mean, c0, c1 - c0, 0, dz_ + c0);
        values(call_.known_var, c0, c1 - c0, 1, dz_xhat_ + c0);
        for (int64_t c = c0; c < c1; ++c) {
            dz_[c] += call_.share * (mean[c] - dz_[c]);
            dz_xhat_[c] += call_.share * (var[c] - dz_xhat_[c]);
        }
        rows_.affine(c0, c1, {dz_, DType::f64}, {dz_xhat_, DType::f64}, nullptr, call_.weight, call_.bias, call_.eps);
    }
    void finish_moments(int64_t c0, int64_t c1, double count) const {
        const Totals sums = total().from(c0);
        const int64_t groups = (c1 - c0) / group_;
        if (group_ > 1) add_groups(sums, groups);
        double *mean = call_.stats + c0 / group_, *var = mean + call_.stats_stride, *tail = var + call_.stats_stride;
        const double* k = rows_.row(kShift) + c0;
        const double n = count * double(group_);
#pragma GCC ivdep
        for (int64_t g = 0; g < groups; ++g) {
            const Moments m = moments_about(k[g * group_], sums.template get<T>(0, g), sums.template get<T>(1, g), n);
            mean[g] = m.mean.hi, var[g] = m.var, tail[g] = m.mean.lo;
        }
        for (int64_t g = 0; call_.uncentred && g < groups; ++g) var[g] += mean[g] * mean[g], mean[g] = tail[g] = 0;
        if (call_.corrected) correct(c0, c1);
        if (call_.share < 1) {
            blend(c0, c1);
        } else if (call_.stages & kOutputs) {
            double* all = call_.stats;
            rows_.affine(c0, c1, {all, DType::f64}, {all + call_.stats_stride, DType::f64},
                         all + 2 * call_.stats_stride, weight(), bias(), call_.eps);
        }
    }
    // The sums of group g, to the place of channel g.
    void add_groups(const Totals& sums, int64_t groups) const {
        const int64_t terms = layout_.joint() ? 1 : group_;
        for (int which : {0, 1}) {
            for (int64_t g = 0; g < groups; ++g) {
                Pair sum = sums.template get<T>(which, g * group_);
                for (int64_t i = 1; i < terms; ++i) sum = plus<T>(sum, sums.template get<T>(which, g * group_ + i));
                sums.template set<T>(which, g, sum);
            }
        }
    }
    void finish_sums(int64_t c0, int64_t c1) const {
        const Totals sums = total();
        std::copy(sums.row(0) + c0, sums.row(0) + c1, dz_ + c0);
        std::copy(sums.row(1) + c0, sums.row(1) + c1, dz_xhat_ + c0);
        assign(call_.dbias, c0, c1 - c0, dz_ + c0);
        if (call_.corrected) return uncorrect(c0, c1);
        assign(call_.dweight, c0, c1 - c0, dz_xhat_ + c0);
    }
    void set_gradient(int64_t c0, int64_t c1, double count) const {
        if (count > 0)
            rows_.gradient(c0, c1, dz_, dz_xhat_, count, !call_.uncentred);
        else
            rows_.slopes(c0, c1, call_.slopes, call_.slopes ? call_.slopes + call_.sums_stride : nullptr);
    }
};

// body(channels, activation) for the dtype, the layout and the activation of a call.
template <class Body>
int64_t with(const Call& call, const Body& body) {
    return with_dtype(call.dtype, [&](auto t) {
        using T = decltype(t);
        return with_activation<T>(call.activation, [&](auto act) {
            const bool small = call.S == 1 || (call.N > 1 && call.S < kSmallPlane && !call.mask);
            if (call.channels_last || small) return body(Channels<T, Columns<T>>(call), act);
            return body(Channels<T, Planes<T>>(call), act);
        });
    });
}

}  // namespace

int64_t channels_forward(const Call& call) {
    return with(call, [](const auto& channels, auto act) { return channels.forward(act); });
}
void channels_backward(const Call& call) {
    with(call, [](const auto& channels, auto act) { return channels.backward(act); });
}

}  // namespace normkit::NORMKIT_ISA
