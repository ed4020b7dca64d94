// Norms by mixed statistics: switch norm and batch-instance norm. Compiled once per instruction set.
//
// The group family takes the moments of each sample's channels, and normalizes by what a rule makes of these, of those
// of the whole sample and of those of the batch. Backward it takes two sums for each channel of each sample; the rule
// leads them back to its shares and to the moments, and the group family leads these to x.
//
// All of a rule is f64, a row of C for each sample. What is summed over samples takes a range of channels at a time,
// the rest a row, in loops that the compiler makes vectors of; threads share ranges and rows.

#include <algorithm>
#include <cmath>

#include "coefficients.hpp"
#include "family.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

constexpr int64_t kRange = 256;  // channels: rows of so many are in the first-level cache together

// What a rule mixes, and what the loss changes with it.
class Samples {
   public:
    explicit Samples(const MixtureCall& mixture)
        : mixture(mixture),
          N(mixture.call.N),
          C(mixture.call.C),
          threads_(int(std::min<int64_t>(N, threads_for(8 * N * C)))),  // what is done to an element is that much work
          memory_((2 * N + (5 + threads_) * C + 2 * N * C) * int64_t(sizeof(double))) {
        count_ = memory_.as<double>();
        share_ = count_ + N;
        weight_ = share_ + N;
        dweight_ = weight_ + C, dbias_ = dweight_ + C;
        dbatch_mean = dbias_ + C, dbatch_var = dbatch_mean + C;
        terms_ = dbatch_var + C;
        upstream_ = terms_ + threads_ * C;
        total_ = count_positions();
    }

    const MixtureCall& mixture;
    const int64_t N, C;
    double *dbatch_mean, *dbatch_var;  // (C)

    double eps() const { return mixture.call.eps; }
    int64_t total() const { return total_; }  // values of a channel
    // Of sample n: moments, what of them is mixed, and the gradients of that, later those of the moments.
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

    // body(n, a row of room) for all samples.
    template <class Body>
    void rows(const Body& body) const {
        parallel(threads_, threads_, Order::forward, [&](int64_t t) {
            for (int64_t n = N * t / threads_; n < N * (t + 1) / threads_; ++n) body(n, terms_ + t * C);
        });
    }
    // body(c0, c1) for all channels.
    template <class Body>
    void ranges(const Body& body) const {
        parallel(ceil_div(C, kRange), threads_, Order::forward,
                 [&](int64_t i) { body(i * kRange, std::min(C, (i + 1) * kRange)); });
    }

    // The moments of all samples together, unless others stand in for them.
    void pool() const {
        double *together = batch_mean(), *spread = batch_var();
        if (mixture.known) {
            values(mixture.call.known_mean, 0, C, 0, together);
            return values(mixture.call.known_var, 0, C, 1, spread);
        }
        ranges([&](int64_t c0, int64_t c1) {
            // About the first, which costs a large mean no digits.
            const double* first = mean(0);
            std::copy(first + c0, first + c1, together + c0);
            std::fill(spread + c0, spread + c1, 0);
            for (int64_t n = 1; n < N; ++n) {
                const double *m = mean(n), share = share_[n];
#pragma GCC ivdep
                for (int64_t c = c0; c < c1; ++c) together[c] += share * (m[c] - first[c]);
            }
            for (int64_t n = 0; n < N; ++n) {
                const double *m = mean(n), *v = var(n), share = share_[n];
#pragma GCC ivdep
                for (int64_t c = c0; c < c1; ++c) {
                    const double apart = m[c] - together[c];
                    spread[c] += share * (v[c] + apart * apart);
                }
            }
        });
    }

    // The call that takes the sums of the gradient, to where `begin` finds them.
    Call sums() const {
        Call call = given();
        call.stages = kSums, call.constant_statistics = true;
        call.gradient_sums = upstream_, call.sums_stride = N * C;
        return call;
    }
    // Before the rule: the gradients of weight and bias.
    void begin() const {
        values(mixture.call.weight, 0, C, 1, weight_);
        std::fill_n(dweight_, 4 * C, 0);  // and what follows it
    }
    // From sums of dz and dz xhat to the gradients of the mean and the variance that normalize,
    //     d mean = -weight / deviation Σ dz,  d var = -weight / (2 deviation²) Σ dz xhat.
    void start(int64_t n, int64_t c0, int64_t c1) const {
        double *dm = dmean(n), *dv = dvar(n);
        const double *v = mixed_var(n), e = eps();
#pragma GCC ivdep
        for (int64_t c = c0; c < c1; ++c) {
            dbias_[c] += dm[c], dweight_[c] += dv[c];
            const double inverse = 1 / std::sqrt(v[c] + e), scale = weight_[c] * inverse;
            dm[c] *= -scale;
            dv[c] *= -0.5 * scale * inverse;
        }
    }
    // From the gradients of the moments of a sample and of the batch to slopes in x,
    //     dx = scale dz + slopes[0] xhat + slopes[1] = scale dz + (d mean + 2 d var (x - mean)) / count.
    void finish(int64_t n) const {
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
    void end() const {
        assign(mixture.call.dweight, 0, C, dweight_);
        assign(mixture.call.dbias, 0, C, dbias_);
    }
    // The call that normalizes, or that takes the gradient on to x.
    Call outputs() const {
        Call call = given();
        call.stages = kOutputs, call.slopes = upstream_, call.sums_stride = N * C;
        return call;
    }

   private:
    const int threads_;
    const Scratch memory_;
    double *count_, *share_;  // (N): valid positions of a sample; the part of all that they are
    double *weight_, *dweight_, *dbias_, *terms_, *upstream_;
    int64_t total_;

    Call given() const {
        Call call = mixture.call;
        call.mean = {mixed_mean(0), DType::f64}, call.var = {mixed_var(0), DType::f64}, call.tail = mixed_tail(0);
        call.dweight.data = call.dbias.data = nullptr;
        return call;
    }
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
class Softmax {
   public:
    Softmax(const Parameter& logits, int first) : first_(first) {
        double of[3], most = -INFINITY, sum = 0;
        for (int k = first; k < 3; ++k) of[k] = value(logits, k, 0), most = std::max(most, of[k]);
        for (int k = first; k < 3; ++k) sum += share[k] = std::exp(of[k] - most);
        for (int k = first; k < 3; ++k) share[k] /= sum;
    }
    double share[3] = {};

    // From the gradients of the shares, a row for each sample.
    void assign_gradient(const Parameter& to, const double* rows, int64_t N) const {
        double gradient[3] = {}, mean = 0;
        for (int64_t n = 0; n < N; ++n)
            for (int k = first_; k < 3; ++k) gradient[k] += rows[3 * n + k];
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
          b_(of.mixture.share[1], channels_ ? 0 : 1),
          memory_(6 * of.N * int64_t(sizeof(double))),
          da_(memory_.as<double>()),
          db_(da_ + 3 * of.N) {}

    void mix(int64_t n, double* room) const {
        const double *m = of_.mean(n), *v = of_.var(n), *t = of_.tail(n);
        const double *batch_mean = of_.batch_mean(), *batch_var = of_.batch_var();
        double *mean = of_.mixed_mean(n), *var = of_.mixed_var(n), *tail = of_.mixed_tail(n);
        const Whole whole = of_whole(n, room);
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
    // The gradients of the batch's moments.
    void unmix(int64_t c0, int64_t c1) const {
        for (int64_t n = 0; n < of_.N; ++n) {
            of_.start(n, c0, c1);
            const double *dm = of_.dmean(n), *dv = of_.dvar(n);
            double *dbatch_mean = of_.dbatch_mean, *dbatch_var = of_.dbatch_var;
#pragma GCC ivdep
            for (int64_t c = c0; c < c1; ++c)
                dbatch_mean[c] += a_.share[2] * dm[c], dbatch_var[c] += b_.share[2] * dv[c];
        }
    }
    // Those of the sample's own, and of the shares.
    void unmix(int64_t n, double* room) const {
        const int64_t C = of_.C;
        const double *m = of_.mean(n), *v = of_.var(n), *batch_mean = of_.batch_mean(), *batch_var = of_.batch_var();
        double *dm = of_.dmean(n), *dv = of_.dvar(n), *da = da_ + 3 * n, *db = db_ + 3 * n;
        const Whole whole = of_whole(n, room);
        const double *a = a_.share, *b = b_.share, of_dm = sum(dm, C), of_dv = sum(dv, C);
        const auto total = [&](const auto& term) {
#pragma GCC ivdep
            for (int64_t c = 0; c < C; ++c) room[c] = term(c);
            return sum(room, C);
        };
        const auto from = [&](int64_t c) { return channels_ ? m[c] : whole.mean; };
        da[0] = 0;
        da[1] = total([&](int64_t c) { return dm[c] * (whole.mean - from(c)); });
        da[2] = total([&](int64_t c) { return dm[c] * (batch_mean[c] - from(c)); });
        db[0] = total([&](int64_t c) { return dv[c] * v[c]; });
        db[1] = of_dv * whole.var;
        db[2] = total([&](int64_t c) { return dv[c] * batch_var[c]; });
        const double by_mean = a[1] * of_dm / double(C), by_var = b[1] * of_dv / double(C);
#pragma GCC ivdep
        for (int64_t c = 0; c < C; ++c) {
            dm[c] = a[0] * dm[c] + by_mean + 2 * by_var * (m[c] - whole.mean);
            dv[c] = b[0] * dv[c] + by_var;
        }
    }
    void end() const {
        a_.assign_gradient(of_.mixture.dshare[0], da_, of_.N);
        b_.assign_gradient(of_.mixture.dshare[1], db_, of_.N);
    }

   private:
    const Samples& of_;
    const bool channels_;
    const Softmax a_, b_;
    const Scratch memory_;
    double *da_, *db_;  // (N, 3): the gradients of the shares

    struct Whole {
        double mean, var;
    };
    // The channels of a sample are equally large sets.
    Whole of_whole(int64_t n, double* room) const {
        const double *m = of_.mean(n), *v = of_.var(n), first = m[0], C = double(of_.C);
#pragma GCC ivdep
        for (int64_t c = 0; c < of_.C; ++c) room[c] = m[c] - first;
        const double mean = first + sum(room, of_.C) / C;
#pragma GCC ivdep
        for (int64_t c = 0; c < of_.C; ++c) room[c] = v[c] + (m[c] - mean) * (m[c] - mean);
        return {mean, sum(room, of_.C) / C};
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

    void mix(int64_t n, double*) const {
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
    void unmix(int64_t c0, int64_t c1) const {
        for (int64_t n = 0; n < of_.N; ++n) {
            of_.start(n, c0, c1);
            unmix(n, c0, c1);
        }
    }
    void unmix(int64_t, double*) const {}  // all of it was channel by channel
    // A gradient that would push a gate further out is zero.
    void end() const {
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

    void unmix(int64_t n, int64_t c0, int64_t c1) const {
        const double *m = of_.mean(n), *v = of_.var(n), *batch_mean = of_.batch_mean(), eps = of_.eps();
        double *dm = of_.dmean(n), *dv = of_.dvar(n), *dbatch_mean = of_.dbatch_mean, *dbatch_var = of_.dbatch_var;
#pragma GCC ivdep
        for (int64_t c = c0; c < c1; ++c) {
            const double gate = gate_[c], batch_slope = batch_slope_[c], own_slope = 1 / std::sqrt(v[c] + eps);
            const double by_batch = gate * batch_slope, slope = by_batch + (1 - gate) * own_slope;
            const double way = by_batch / slope, along = dm[c] * (batch_mean[c] - m[c]) / slope;
            const double dslope = -2 * dv[c] / (slope * slope * slope) - along * way;
            const double dby_batch = dslope + along;
            dgate_[c] += dby_batch * batch_slope - dslope * own_slope;
            dbatch_mean[c] += dm[c] * way;
            dbatch_var[c] -= 0.5 * batch_slope * batch_slope * batch_slope * gate * dby_batch;
            dm[c] *= 1 - way;
            dv[c] = -0.5 * own_slope * own_slope * own_slope * (1 - gate) * dslope;
        }
    }
};

template <class Rule>
void mix(const Samples& samples) {
    const Rule rule(samples);
    samples.rows([&](int64_t n, double* room) { rule.mix(n, room); });
}
template <class Rule>
void unmix(const Samples& samples) {
    const Rule rule(samples);
    samples.begin();
    samples.ranges([&](int64_t c0, int64_t c1) { rule.unmix(c0, c1); });
    samples.rows([&](int64_t n, double* room) {
        rule.unmix(n, room);
        samples.finish(n);
    });
    samples.end();
    rule.end();
}

}  // namespace

int64_t mixture_forward(const MixtureCall& mixture) {
    Call moments = mixture.call;
    moments.stages = kSums;
    groups_forward(moments);
    const Samples samples(mixture);
    samples.pool();
    mixture.kind == Mixture::switched ? mix<Switch>(samples) : mix<Interpolation>(samples);
    groups_forward(samples.outputs());
    return samples.total();
}

void mixture_backward(const MixtureCall& mixture) {
    const Samples samples(mixture);
    groups_backward(samples.sums());
    mixture.kind == Mixture::switched ? unmix<Switch>(samples) : unmix<Interpolation>(samples);
    if (mixture.call.dx) groups_backward(samples.outputs());
}

}  // namespace normkit::NORMKIT_ISA
