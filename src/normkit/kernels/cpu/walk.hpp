// A pass over a run of elements that share their coefficients.

#pragma once

#include <algorithm>

#include "passes.hpp"

namespace normkit::NORMKIT_ISA {

constexpr int64_t kAhead = 4096;  // bytes

// Runs longer than this are summed in pieces of it, so that sums never depend on who computes them.
constexpr int64_t kPiece = 1 << 14;

inline I positions(const uint8_t* mask, int n) {
    uint8_t padded[L] = {};
    std::memcpy(padded, mask, n);
    return __builtin_convertvector(read<Vector<uint8_t, L>>(padded), I) != 0;
}

template <class A, class Pass, class From>
[[gnu::noinline]] typename Pass::Result walk_masked(const Pass pass, const From from, int64_t at, int64_t n, const uint8_t* mask) {
    const typename Pass::template Coefficient<A> by(from);
    typename Pass::Result sums{};
    for (int64_t i = 0; i < n; i += L) {
        const int lanes = int(std::min<int64_t>(L, n - i));
        typename Pass::template Addend<A> addend{};
        pass.template apply<A>(at + i, Masked{lanes, positions(mask + i, lanes)}, by, addend);
        sums.join(addend);
    }
    return sums;
}

// Two sets of sums hide the latency of an addition. They join the result before the last room in them is taken, which
// the end of the run may need. Inlined, as the run may be a plane of a few vectors.
template <class A, class Pass, class From>
NORMKIT_INLINE typename Pass::Result walk(const Pass& pass, const From& from, int64_t at, int64_t n,
                                          const uint8_t* mask) {
    using Addend = typename Pass::template Addend<A>;
    if (mask) return walk_masked<A>(pass, from, at, n, mask);
    const typename Pass::template Coefficient<A> by(from);
    typename Pass::Result sums{};
    Addend even{}, odd{};
    int64_t i = std::min(n, pass.lead(at));
    if (i > 0) pass.template apply<A>(at, First{int(i)}, by, even);
    for (int room = Addend::most / 2; i + 2 * L <= n; i += 2 * L) {
        if constexpr (!std::is_same_v<typename Pass::Result, NoSums>) {
            constexpr int64_t size = sizeof(*pass.x), ahead = kAhead / size;
            pass.prefetch(at + i + ahead);
            if (size > 2) pass.prefetch(at + i + L + ahead);
        }
        if constexpr (std::is_same_v<typename Pass::Result, NoSums>) {
            pass.template apply_two<A>(at + i, at + i + L, by, even);
            continue;
        }
        pass.template apply<A>(at + i, All{}, by, even);
        pass.template apply<A>(at + i + L, All{}, by, odd);
        if (--room > 0) continue;
        even.join(odd);
        sums.join(even);
        even = odd = {};
        room = Addend::most / 2;
    }
    if (i + L <= n) {
        pass.template apply<A>(at + i, All{}, by, even);
        i += L;
    }
    if (i < n) pass.template apply<A>(at + i, First{int(n - i)}, by, odd);
    even.join(odd);
    sums.join(even);
    return sums;
}

}  // namespace normkit::NORMKIT_ISA
