// Running statistics: r + factor (b - r) in f64 over all batches of the call, rounded once to where they are kept.

#include <cmath>
#include <vector>

#include "coefficients.hpp"
#include "family.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

bool finite_where_kept(const Parameter& running, double v) {
    double room;
    const Parameter kept{&room, running.dtype};
    assign(kept, 0, v);
    return std::isfinite(value(kept, 0, 0));
}

}  // namespace

void update_running(const RunningCall& call) {
    const double *means = call.stats, *vars = means + call.sets * call.C;
    const auto unbiased = [&](int64_t set) { return double(call.counts[set]) / double(call.counts[set] - 1); };
    const auto finite = [&](int64_t set) {
        for (int64_t c = 0; c < call.C; ++c) {
            const int64_t i = set * call.C + c;
            if (!finite_where_kept(call.mean, means[i]) || !finite_where_kept(call.var, vars[i] * unbiased(set)))
                return false;
        }
        return true;
    };
    std::vector<double> factors(call.sets);  // zero: the batch moves nothing
    for (int64_t set = 0; set < call.sets; ++set) {
        if (call.counts[set] < 2) continue;
        if (call.skipped && !finite(set)) {
            ++*call.skipped;
            continue;
        }
        const int64_t batches = call.batches ? ++*call.batches : 1;
        factors[set] = call.cumulative ? 1 / double(batches) : call.momentum;
    }
    std::vector<double> now(call.C);
    const auto move = [&](const Parameter& running, const double* batches, const auto& scale) {
        for (int64_t c = 0; c < call.C; ++c) now[c] = value(running, c, 0);
        for (int64_t set = 0; set < call.sets; ++set) {
            if (factors[set] == 0) continue;
            const double factor = factors[set], by = scale(set), *batch = batches + set * call.C;
            for (int64_t c = 0; c < call.C; ++c) now[c] += factor * (batch[c] * by - now[c]);
        }
        for (int64_t c = 0; c < call.C; ++c) assign(running, c, now[c]);
    };
    move(call.mean, means, [](int64_t) { return 1.0; });
    move(call.var, vars, unbiased);
}

}  // namespace normkit::NORMKIT_ISA
