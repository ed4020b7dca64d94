// Moments of several sets of values, merged into those of all: Chan, Golub and LeVeque 1983, in the order given. And the
// way back, by the gradients of mean and variance, which the sets add up.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace normkit {

// rows[j * stride + ...]: the means of C channels of set j, then their biased variances. To stats (3, C): mean, biased
// variance, tail of the mean.
inline void merge_moments(const std::vector<double>& counts, int64_t C, const double* rows, int64_t stride,
                          double* stats) {
    const double all = std::max(1.0, std::accumulate(counts.begin(), counts.end(), 0.0));
    // About the mean of the largest set, so that a large mean costs no digits.
    const double* first = rows + stride * (std::max_element(counts.begin(), counts.end()) - counts.begin());
    for (int64_t c = 0; c < C; ++c) {
        double shift = 0, var = 0;
        for (size_t j = 0; j < counts.size(); ++j)
            if (counts[j] > 0) shift += counts[j] / all * (rows[j * stride + c] - first[c]);
        const double mean = first[c] + shift, back = mean - first[c];
        for (size_t j = 0; j < counts.size(); ++j) {
            if (counts[j] == 0) continue;
            const double* row = rows + j * stride;
            const double distance = row[c] - mean;
            var += counts[j] / all * (row[C + c] + distance * distance);
        }
        stats[c] = mean, stats[C + c] = var;
        stats[2 * C + c] = (first[c] - (mean - back)) + (shift - back);
    }
}

// From sums (2, C) of dz and of dz xhat to the gradients (2, C) of mean and variance; weight may be null.
template <class W>
void statistic_gradients(int64_t C, const double* sums, const double* var, const W* weight, double eps, double* gradients) {
    for (int64_t c = 0; c < C; ++c) {
        const double deviation = std::sqrt(var[c] + eps), scale = (weight ? weight[c] : 1) / deviation;
        gradients[c] = -scale * sums[c], gradients[C + c] = -scale * sums[C + c] / (2 * deviation);
    }
}

// From these over `count` values per channel to the slopes (2, C) of the input gradient.
inline void slopes(int64_t C, const double* gradients, const double* var, double eps, double count, double* slopes) {
    for (int64_t c = 0; c < C; ++c) {
        slopes[c] = 2 * gradients[C + c] * std::sqrt(var[c] + eps) / count;
        slopes[C + c] = gradients[c] / count;
    }
}

}  // namespace normkit
