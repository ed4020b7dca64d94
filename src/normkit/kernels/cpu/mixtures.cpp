// Norms by mixed statistics: switch norm and batch-instance norm. Compiled once per instruction set.
//
// The group family takes the moments of each sample's channels, and normalizes by what a rule makes of these, of those
// of the whole sample and of those of the batch. Backward it takes two sums for each channel of each sample; the rule
// leads them back to its shares and to the moments, and the group family leads these to x. All of a rule is f64, a row
// of C for each sample, in loops that the compiler makes vectors of.

#include <algorithm>
#include <cmath>

#include "coefficients.hpp"
#include "family.hpp"
#include "memory.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

// What a rule mixes, and what the loss changes with it.
class Samples {
   public:
    explicit Samples(const MixtureCall& mixture)
        : mixture(mixture),
          N(mixture.call.N),
          C(mixture.call.C),
          memory_((2 * N + 6 * C + 2 * N * C) * int64_t(sizeof(double))) {
        count_ = memory_.as<double>();
        share_ = count_ + N;
        weight = share_ + N;
        dweight_ = weight + C, dbias_ = dweight_ + C;
        dbatch_mean = dbias_ + C, dbatch_var = dbatch_mean + C;
        terms = dbatch_var + C;
        upstream_ = terms + C;
        total_ = count_positions();
    }

    const MixtureCall& mixture;
    const int64_t N, C;
    double* weight;                    // (C)
    double *dbatch_mean, *dbatch_var;  // (C)
    double* terms;                     // (C), for who needs a row to sum

    double eps() const { return mixture.call.eps; }
    int64_t total() const { return total_; }  // values of a channel
    // Moments, what of them is mixed, and the gradients of that, of sample n.
    const double* mean(int64_t n) const { return mixture.call.stats + n * C; }
    const double* var(int64_t n) const { return mean(N + n); }
    const double* tail(int64_t n) const { return mean(2 * N + n); }
    double* mixed_mean(int64_t n) const { return mixture.mixed + n * C; }
    double* mixed_var(int64_t n) const { return mixed_mean(N + n); }
    double* mixed_tail(int64_t n) const { return mixed_mean(2 * N + n); }
    double* dmean(int64_t n) const { return upstream_ + n * C; }
    double* dvar(int64_t n) const { return dmean(N + n); }
    double* batch_mean() const { return mixture.batch; }
    double* batch_var() const { return mixture.batch + C; }

    // The moments of all samples together, unless others stand in for them.
    void pool() const {
        double *together = batch_mean(), *spread = batch_var();
        if (mixture.known) {
            values(mixture.call.known_mean, 0, C, 0, together);
            return values(mixture.call.known_var, 0, C, 1, spread);
        }
        // About the first, which costs a large mean no digits.
        std::copy(mean(0), mean(0) + C, together);
        std::fill_n(spread, C, 0);
        for (int64_t n = 1; n < N; ++n) {
            const double *m = mean(n), *first = mean(0), share = share_[n];
#pragma GCC ivdep
            for (int64_t c = 0; c < C; ++c) together[c] += share * (m[c] - first[c]);
        }
        for (int64_t n = 0; n < N; ++n) {
            const double *m = mean(n), *v = var(n), share = share_[n];
#pragma GCC ivdep
            for (int64_t c = 0; c < C; ++c) {
                const double apart = m[c] - together[c];
                spread[c] += share * (v[c] + apart * apart);
            }
        }
    }

    // The call that takes the sums of the gradient, to where `start` finds them.
    Call sums() const {
        Call call = given();
        call.stages = kSums, call.constant_statistics = true;
        call.gradient_sums = upstream_, call.sums_stride = N * C;
        call.dweight.data = call.dbias.data = nullptr;
        return call;
    }
    // Before the rule's first sample.
    void begin() const {
        values(mixture.call.weight, 0, C, 1, weight);
        std::fill_n(dweight_, 4 * C, 0);  // and what follows it
    }
    // From sums of dz and dz xhat to the gradients of the mean and the variance that normalize,
    //     d mean = -weight / deviation Σ dz,  d var = -weight / (2 deviation²) Σ dz xhat.
    void start(int64_t n) const {
        double *dm = dmean(n), *dv = dvar(n);
        const double *v = mixed_var(n), e = eps();
#pragma GCC ivdep
        for (int64_t c = 0; c < C; ++c) {
            dbias_[c] += dm[c], dweight_[c] += dv[c];
            const double inverse = 1 / std::sqrt(v[c] + e), scale = weight[c] * inverse;
            dm[c] *= -scale;
            dv[c] *= -0.5 * scale * inverse;
        }
    }
    // From the gradients of the moments of all samples and of the batch to slopes in x,
    //     dx = scale dz + slopes[0] xhat + slopes[1] = scale dz + (d mean + 2 d var (x - mean)) / count.
    void finish() const {
        for (int64_t n = 0; n < N; ++n) {
            double *dm = dmean(n), *dv = dvar(n);
            const double *m = mean(n), *used = mixed_mean(n), *v = mixed_var(n), *together = batch_mean();
            const double share = mixture.known ? 0 : share_[n], of_one = 1 / std::max(1.0, count_[n]), e = eps();
#pragma GCC ivdep
            for (int64_t c = 0; c < C; ++c) {
                const double by_mean = dm[c] + share * (dbatch_mean[c] + 2 * dbatch_var[c] * (m[c] - together[c]));
                const double by_var = 2 * (dv[c] + share * dbatch_var[c]);
                dm[c] = by_var * std::sqrt(v[c] + e) * of_one;
                dv[c] = (by_mean + by_var * (used[c] - m[c])) * of_one;
            }
        }
        assign(mixture.call.dweight, 0, C, dweight_);
        assign(mixture.call.dbias, 0, C, dbias_);
    }
    Call outputs() const {
        Call call = given();
        call.stages = kOutputs, call.slopes = upstream_, call.sums_stride = N * C;
        call.dweight.data = call.dbias.data = nullptr;
        return call;
    }
    // With the mixed statistics as those that normalize.
    Call given() const {
        Call call = mixture.call;
        call.mean = {mixed_mean(0), DType::f64}, call.var = {mixed_var(0), DType::f64}, call.tail = mixed_tail(0);
        return call;
    }

   private:
    const Scratch memory_;
    double *count_, *share_;  // (N): valid positions of a sample; the part of all that they are
    double *dweight_, *dbias_, *upstream_;
    int64_t total_;

    int64_t count_positions() const {
        const int64_t S = mixture.call.S;
        int64_t total = 0;
        for (int64_t n = 0; n < N; ++n) {
            const uint8_t* mask = mixture.call.mask ? mixture.call.mask + n * S : nullptr;
            const int64_t found = mask ? S - std::count(mask, mask + S, 0) : S;
            count_[n] = double(found), total += found;
        }
        for (int64_t n = 0; n < N; ++n) share_[n] = count_[n] / std::max(1.0, double(total));
        return total;
    }
};

// Three shares that are a softmax of logits; where the first is left out, of the other two.
struct Softmax {
    double share[3] = {}, gradient[3] = {};

    Softmax(const Parameter& logits, int first) : first_(first) {
        double of[3], most = -INFINITY, sum = 0;
        for (int k = first; k < 3; ++k) of[k] = value(logits, k, 0), most = std::max(most, of[k]);
        for (int k = first; k < 3; ++k) sum += share[k] = std::exp(of[k] - most);
        for (int k = first; k < 3; ++k) share[k] /= sum;
    }
    void assign_gradient(const Parameter& to) const {
        double mean = 0;
        for (int k = first_; k < 3; ++k) mean += share[k] * gradient[k];
        for (int k = 0; k < 3; ++k) assign(to, k, k < first_ ? 0 : share[k] * (gradient[k] - mean));
    }

   private:
    const int first_;
};

// Switch norm: means and variances of the sample's channel, the whole sample and the batch, by two sets of shares.
// A sample with one value per channel has no statistics of its channels.
class Switch {
   public:
    explicit Switch(const Samples& of)
        : of_(of),
          channels_(of.mixture.call.S > 1),
          a_(of.mixture.share[0], channels_ ? 0 : 1),
          b_(of.mixture.share[1], channels_ ? 0 : 1) {}

    void mix(int64_t n) const {
        const double *m = of_.mean(n), *v = of_.var(n), *t = of_.tail(n);
        const double *batch_mean = of_.batch_mean(), *batch_var = of_.batch_var();
        double *mean = of_.mixed_mean(n), *var = of_.mixed_var(n), *tail = of_.mixed_tail(n);
        const Whole whole = of_whole(n);
        const double *a = a_.share, *b = b_.share;
        // From one of them towards the others: where all agree, no rounding moves the mean.
#pragma GCC ivdep
        for (int64_t c = 0; c < of_.C; ++c) {
            const double from = channels_ ? m[c] : whole.mean;
            mean[c] = from + a[1] * (whole.mean - from) + a[2] * (batch_mean[c] - from);
            var[c] = b[0] * v[c] + b[1] * whole.var + b[2] * batch_var[c];
            tail[c] = mean[c] == m[c] ? t[c] : 0;
        }
    }
    void unmix(int64_t n) {
        of_.start(n);
        const int64_t C = of_.C;
        const double *m = of_.mean(n), *v = of_.var(n), *batch_mean = of_.batch_mean(), *batch_var = of_.batch_var();
        double *dm = of_.dmean(n), *dv = of_.dvar(n), *terms = of_.terms;
        const Whole whole = of_whole(n);
        const double *a = a_.share, *b = b_.share, of_dm = sum(dm, C), of_dv = sum(dv, C);
        const auto total = [&](const auto& term) {
#pragma GCC ivdep
            for (int64_t c = 0; c < C; ++c) terms[c] = term(c);
            return sum(terms, C);
        };
        const auto from = [&](int64_t c) { return channels_ ? m[c] : whole.mean; };
        a_.gradient[1] += total([&](int64_t c) { return dm[c] * (whole.mean - from(c)); });
        a_.gradient[2] += total([&](int64_t c) { return dm[c] * (batch_mean[c] - from(c)); });
        b_.gradient[0] += total([&](int64_t c) { return dv[c] * v[c]; });
        b_.gradient[1] += of_dv * whole.var;
        b_.gradient[2] += total([&](int64_t c) { return dv[c] * batch_var[c]; });
        const double by_mean = a[1] * of_dm / double(C), by_var = b[1] * of_dv / double(C);
#pragma GCC ivdep
        for (int64_t c = 0; c < C; ++c) {
            of_.dbatch_mean[c] += a[2] * dm[c], of_.dbatch_var[c] += b[2] * dv[c];
            dm[c] = a[0] * dm[c] + by_mean + 2 * by_var * (m[c] - whole.mean);
            dv[c] = b[0] * dv[c] + by_var;
        }
    }
    void settle() const {
        a_.assign_gradient(of_.mixture.dshare[0]);
        b_.assign_gradient(of_.mixture.dshare[1]);
    }

   private:
    const Samples& of_;
    const bool channels_;
    Softmax a_, b_;

    struct Whole {
        double mean, var;
    };
    // The channels of a sample are equally large sets.
    Whole of_whole(int64_t n) const {
        const double *m = of_.mean(n), *v = of_.var(n), first = m[0], C = double(of_.C);
        double* terms = of_.terms;
#pragma GCC ivdep
        for (int64_t c = 0; c < of_.C; ++c) terms[c] = m[c] - first;
        const double mean = first + sum(terms, of_.C) / C;
#pragma GCC ivdep
        for (int64_t c = 0; c < of_.C; ++c) terms[c] = v[c] + (m[c] - mean) * (m[c] - mean);
        return {mean, sum(terms, of_.C) / C};
    }
};

// Batch-instance norm: a gate rho, clipped to [0, 1], between the outputs of batch norm and instance norm. Both are
// lines in x, and so is what is between them: of the slope s = rho s_B + (1 - rho) s_I, and zero at the mean of both
// means with the weights of their slopes.
class Interpolation {
   public:
    explicit Interpolation(const Samples& of) : of_(of), memory_(3 * of.C * int64_t(sizeof(double))) {
        gate_ = memory_.as<double>(), batch_slope_ = gate_ + of.C, dgate_ = batch_slope_ + of.C;
        values(of.mixture.share[0], 0, of.C, 0, gate_);
        const double *var = of.batch_var(), eps = of.eps();
#pragma GCC ivdep
        for (int64_t c = 0; c < of.C; ++c) {
            gate_[c] = gate_[c] < 0 ? 0 : gate_[c] > 1 ? 1 : gate_[c];
            batch_slope_[c] = 1 / std::sqrt(var[c] + eps);
            dgate_[c] = 0;
        }
    }

    void mix(int64_t n) const {
        const double *m = of_.mean(n), *v = of_.var(n), *t = of_.tail(n), *batch_mean = of_.batch_mean();
        double *mean = of_.mixed_mean(n), *var = of_.mixed_var(n), *tail = of_.mixed_tail(n);
        const double eps = of_.eps();
#pragma GCC ivdep
        for (int64_t c = 0; c < of_.C; ++c) {
            const double by_batch = gate_[c] * batch_slope_[c];
            const double slope = by_batch + (1 - gate_[c]) / std::sqrt(v[c] + eps);
            mean[c] = m[c] + by_batch / slope * (batch_mean[c] - m[c]);
            var[c] = 1 / (slope * slope) - eps;
            tail[c] = mean[c] == m[c] ? t[c] : 0;
        }
    }
    void unmix(int64_t n) {
        of_.start(n);
        const double *m = of_.mean(n), *v = of_.var(n), *batch_mean = of_.batch_mean(), eps = of_.eps();
        double *dm = of_.dmean(n), *dv = of_.dvar(n);
#pragma GCC ivdep
        for (int64_t c = 0; c < of_.C; ++c) {
            const double gate = gate_[c], batch_slope = batch_slope_[c], own_slope = 1 / std::sqrt(v[c] + eps);
            const double by_batch = gate * batch_slope, slope = by_batch + (1 - gate) * own_slope;
            const double way = by_batch / slope, along = dm[c] * (batch_mean[c] - m[c]) / slope;
            const double dslope = -2 * dv[c] / (slope * slope * slope) - along * way;
            const double dby_batch = dslope + along;
            dgate_[c] += dby_batch * batch_slope - dslope * own_slope;
            of_.dbatch_mean[c] += dm[c] * way;
            of_.dbatch_var[c] -= 0.5 * batch_slope * batch_slope * batch_slope * gate * dby_batch;
            dm[c] *= 1 - way;
            dv[c] = -0.5 * own_slope * own_slope * own_slope * (1 - gate) * dslope;
        }
    }
    // A gradient that would push a gate further out is zero.
    void settle() const {
        for (int64_t c = 0; c < of_.C; ++c) {
            const double gate = value(of_.mixture.share[0], c, 0);
            if ((gate >= 1 && dgate_[c] < 0) || (gate <= 0 && dgate_[c] > 0)) dgate_[c] = 0;
        }
        assign(of_.mixture.dshare[0], 0, of_.C, dgate_);
    }

   private:
    const Samples& of_;
    const Scratch memory_;
    double *gate_, *batch_slope_, *dgate_;  // (C)
};

template <class Rule>
void forward(const Samples& samples) {
    const Rule rule(samples);
    for (int64_t n = 0; n < samples.N; ++n) rule.mix(n);
}
template <class Rule>
void backward(const Samples& samples) {
    Rule rule(samples);
    for (int64_t n = 0; n < samples.N; ++n) rule.unmix(n);
    rule.settle();
}

}  // namespace

int64_t mixture_forward(const MixtureCall& mixture) {
    Call moments = mixture.call;
    moments.stages = kSums;
    groups_forward(moments);
    const Samples samples(mixture);
    samples.pool();
    mixture.kind == Mixture::switched ? forward<Switch>(samples) : forward<Interpolation>(samples);
    Call outputs = samples.given();
    outputs.stages = kOutputs;
    groups_forward(outputs);
    return samples.total();
}

void mixture_backward(const MixtureCall& mixture) {
    const Samples samples(mixture);
    groups_backward(samples.sums());
    samples.begin();
    mixture.kind == Mixture::switched ? backward<Switch>(samples) : backward<Interpolation>(samples);
    samples.finish();
    if (mixture.call.dx) groups_backward(samples.outputs());
}

}  // namespace normkit::NORMKIT_ISA
