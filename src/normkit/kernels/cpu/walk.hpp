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
[[gnu::noinline]] typename Pass::Result walk_masked(const Pass pass, const From from, int64_t at, int64_t n,
                                                    const uint8_t* mask) {
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

// Over several runs of n elements, `stride` apart. Two sets of sums hide the latency of an addition. They join the
// result when they are full. Inlined, as a run may be a plane of a few vectors.
template <class A, class Pass, class From>
NORMKIT_INLINE typename Pass::Result walk(const Pass& pass, const From& from, int64_t at, int64_t n, int64_t stride = 0,
                                          int64_t runs = 1) {
    using Addend = typename Pass::template Addend<A>;
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(pass.x)>>;
    constexpr bool writes = std::is_same_v<typename Pass::Result, NoSums>;
    constexpr bool in_twos = writes && by_twos<T> && std::is_same_v<A, F>;  // sums are no faster so
    const typename Pass::template Coefficient<A> by(from);
    const typename Pass::template Coefficient<std::conditional_t<in_twos, FF, A>> by_two(from);
    typename Pass::Result sums{};
    Addend even{}, odd{};
    int room = Addend::most / 2;  // in each
    const auto full = [&] {
        if (writes || --room > 0) return;
        even.join(odd);
        sums.join(even);
        even = odd = {};
        room = Addend::most / 2;
    };
    for (; runs > 0; --runs, at += stride) {
        int64_t i = std::min(n, pass.lead(at));
        if (in_twos && i > L) pass.template apply<A>(at, First{L}, by, even);  // not aligned
        if (i > 0) pass.template apply<A>(at + (i - 1) / L * L, First{int((i - 1) % L) + 1}, by, even);
        for (; i + 2 * L <= n; i += 2 * L) {
            if constexpr (writes) {
                constexpr int64_t size = sizeof(*pass.x), ahead = 1024 / size;
                pass.out().prefetch(at + i + ahead);
                if (size > 2) pass.out().prefetch(at + i + L + ahead);
                if constexpr (in_twos)
                    pass.template apply<FF>(at + i, All{}, by_two, even);
                else
                    pass.template apply_two<A>(at + i, at + i + L, by, even);
            } else {
                constexpr int64_t size = sizeof(*pass.x), ahead = kAhead / size;
                pass.prefetch(at + i + ahead);
                if (size > 2) pass.prefetch(at + i + L + ahead);
                pass.template apply<A>(at + i, All{}, by, even);
                pass.template apply<A>(at + i + L, All{}, by, odd);
                full();
            }
        }
        if (i == n) continue;
        // The lines of the rest too: one that is left out is waited for.
        constexpr int64_t ahead = (writes ? 1024 : kAhead) / int64_t(sizeof(*pass.x));
        if constexpr (writes)
            pass.out().prefetch(at + i + ahead), pass.out().prefetch(at + n - 1 + ahead);
        else
            pass.prefetch(at + i + ahead), pass.prefetch(at + n - 1 + ahead);
        if constexpr (writes) {
            if (n >= L && !pass.streamed()) {  // whole vectors again: stores of some lanes are slow
                const int64_t last = at + n - L;
                i + L < n ? pass.template apply_two<A>(at + i, last, by, even) : pass.template apply<A>(last, All{}, by, even);
                continue;
            }
        }
        if (i + L <= n) {
            pass.template apply<A>(at + i, All{}, by, even);
            i += L;
        }
        if (i < n) pass.template apply<A>(at + i, First{int(n - i)}, by, odd);
        full();
    }
    even.join(odd);
    sums.join(even);
    return sums;
}

}  // namespace normkit::NORMKIT_ISA
