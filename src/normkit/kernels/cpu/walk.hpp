// A pass over a run of elements that share their coefficients.

#pragma once

#include <algorithm>

#include "passes.hpp"

namespace normkit::NORMKIT_ISA {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs longer than this are summed in pieces of it, so that sums never depend on who computes them.
constexpr int64_t kPiece = 1 << 14;

inline I positions(const uint8_t* mask, int n) {
    uint8_t padded[L] = {};
    std::memcpy(padded, mask, n);
    return __builtin_convertvector(read<Vector<uint8_t, L>>(padded), I) != 0;
}

// Two sets of sums hide the latency of an addition.
template <class A, class Pass, class From>
typename Pass::Result walk(const Pass pass, const From& from, int64_t at, int64_t n, const uint8_t* mask) {
    using Addend = typename Pass::template Addend<A>;
    const typename Pass::template Coefficient<A> by(from);
    typename Pass::Result sums{};
    int64_t i = std::min(n, pass.lead(at));
    if (mask) {
        for (i = 0; i < n; i += L) {
            const int lanes = int(std::min<int64_t>(L, n - i));
            Addend addend{};
            pass.template apply<A>(at + i, Masked{lanes, positions(mask + i, lanes)}, by, addend);
            sums.join(addend);
        }
        return sums;
    }
    Addend ends{};
    if (i > 0) pass.template apply<A>(at, First{int(i)}, by, ends);
    while (i + 2 * L <= n) {
        Addend even{}, odd{};
        for (int most = Addend::most; most > 0 && i + 2 * L <= n; --most, i += 2 * L) {
            pass.template apply<A>(at + i, All{}, by, even);
            pass.template apply<A>(at + i + L, All{}, by, odd);
        }
        sums.join(even);
        sums.join(odd);
    }
    if (i + L <= n) {
        pass.template apply<A>(at + i, All{}, by, ends);
        i += L;
    }
    if (i < n) pass.template apply<A>(at + i, First{int(n - i)}, by, ends);
    sums.join(ends);
    return sums;
}

}  // namespace normkit::NORMKIT_ISA
