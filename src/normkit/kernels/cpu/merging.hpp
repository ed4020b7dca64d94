// Moments of several sets of values, merged into those of all: Chan, Golub and LeVeque 1983, in the order given.

#pragma once

#include <algorithm>
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

}  // namespace normkit
