// Running statistics: r + factor (b - r) in f64, rounded once to where they are kept.

#include "coefficients.hpp"
#include "family.hpp"

namespace normkit::NORMKIT_ISA {

void update_running(const RunningCall& call) {
    const int64_t batches = call.batches ? ++*call.batches : 1;
    const double factor = call.cumulative ? 1 / double(batches) : call.momentum;
    const double unbiased = double(call.count) / double(call.count - 1);
    const auto move = [&](const Parameter& running, int64_t c, double batch) {
        const double old = value(running, c, 0);
        assign(running, c, old + factor * (batch - old));
    };
    for (int64_t c = 0; c < call.C; ++c) {
        move(call.mean, c, call.stats[c]);
        move(call.var, c, call.stats[call.C + c] * unbiased);
    }
}

}  // namespace normkit::NORMKIT_ISA
