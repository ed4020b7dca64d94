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
    const typename Pass::template Coefficient<A> by(from);
    typename Pass::Result even{}, odd{};
    int64_t i = 0;
    if (mask) {
        for (; i < n; i += L) {
            const int lanes = int(std::min<int64_t>(L, n - i));
            pass.template apply<A>(at + i, Masked{lanes, positions(mask + i, lanes)}, by, even);
        }
        return even;
    }
    if ((i = std::min(n, pass.lead(at))) > 0) pass.template apply<A>(at, First{int(i)}, by, odd);
    for (; i + 2 * L <= n; i += 2 * L) {
        pass.template apply<A>(at + i, All{}, by, even);
        pass.template apply<A>(at + i + L, All{}, by, odd);
    }
    if (i + L <= n) {
        pass.template apply<A>(at + i, All{}, by, even);
        i += L;
    }
    if (i < n) pass.template apply<A>(at + i, First{int(n - i)}, by, odd);
    even.join(odd);
    return even;
}

}  // namespace normkit::NORMKIT_ISA
