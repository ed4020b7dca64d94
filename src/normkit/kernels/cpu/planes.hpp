// How a pass walks over a tensor: Planes, here, for memory (N, C, S); Columns for memory (N, S, C) and small planes.
//
// Both cut the positions of a channel into chunks. The grid of chunks depends on the shape alone: each chunk is
// summed on its own and the sums are added in the order of the chunks, whoever computed them. Both offer
//   sums(pass, coefficients, chunk, c0, c1, group, totals)    sums of a chunk for the channels [c0, c1), of which
//                                                             `group` may be taken together
//   map(pass, coefficients, chunk, c0, c1)                    outputs of a chunk for the channels [c0, c1)
// and has columns() coefficients: those of channel c at the columns c * spread + [0, spread), and the whole again
// `copies` times.

#pragma once

#include <algorithm>

#include "memory.hpp"
#include "walk.hpp"

namespace normkit::NORMKIT_ISA {

template <class T>
class Planes {
   public:
    static constexpr int64_t unit = 1;  // blocks of channels are cut at multiples of it
    static constexpr int64_t copies = 1, spread = 1;
    const int64_t N, C, S;
    int64_t chunks;

    Planes(int64_t N, int64_t C, int64_t S, const uint8_t* mask, bool) : N(N), C(C), S(S), mask_(mask) {
        piece_ = kPiece;
        pieces_ = ceil_div(S, kPiece);
        planes_ = std::max<int64_t>(1, kPiece / S);
        chunks = ceil_div(N, planes_) * pieces_;
    }
    int64_t columns() const { return C; }
    int64_t offset(int64_t n, int64_t s, int64_t c) const { return (n * C + c) * S + s; }

    // Where most lines are whole: the ends of planes share theirs. Of short planes those are many, and it pays later.
    bool can_stream(const void*) const {
        const int64_t plane = S * int64_t(sizeof(T));
        return plane >= 1024 || (plane >= 512 && leaves_cache(2 * N * C * plane));
    }

    // Channels per block, for blocks that each fit the given bytes of cache and keep the threads busy; 0: share.
    int64_t block(int64_t bytes, int64_t arrays, int threads) const {
        if (threads > 1 && C < 4 * threads) return 0;
        const int64_t fair = threads > 1 ? C / (4 * threads) : C;
        return std::min(fair, group(bytes, arrays));
    }
    int64_t group(int64_t bytes, int64_t arrays) const {
        const int64_t each = N * S * int64_t(sizeof(T)) * arrays;
        return std::clamp<int64_t>(bytes / each, 1, C);
    }

    // The channels of one sample that share a statistic are one run: their sums stand in the first of them.
    bool joint() const { return N == 1 && chunks == 1 && !mask_; }
    template <class Pass>
    void group_sums(const Pass pass, const Coefficients& by, int64_t c0, int64_t c1, int64_t group, Totals out) const {
        for (int64_t c = c0; c < c1; c += group) put(out, c - c0, walk_channel(pass, by, c, c * S, group * S, 0, 1));
    }
    // Channel by channel: the sums of one stay in registers.
    template <class Pass>
    void sums(const Pass pass, const Coefficients by, int64_t chunk, int64_t c0, int64_t c1, int64_t group,
              Totals out) const {
        if (group > 1 && joint()) return group_sums(pass, by, c0, c1, group, out);
        const Run run = run_of(chunk);
        for (int64_t c = c0; c < c1; ++c) {
            if (!mask_) {
                put(out, c - c0, walk_channel(pass, by, c, offset(run.n0, run.s0, c), run.length, C * S, run.n1 - run.n0));
                continue;
            }
            Sums<T> sums{};
            for (int64_t n = run.n0; n < run.n1; ++n)
                sums.join(walk_channel_masked(pass, by, c, offset(n, run.s0, c), run.length, mask(n, run.s0)));
            put(out, c - c0, sums);
        }
    }
    // In the order of memory.
    template <class Pass>
    void map(const Pass pass, const Coefficients by, int64_t chunk, int64_t c0, int64_t c1) const {
        const Run run = run_of(chunk);
        for (int64_t n = run.n0; n < run.n1; ++n) {
            for (int64_t c = c0; c < c1; ++c) {
                const int64_t at = offset(n, run.s0, c);
                if (mask_)
                    walk_channel_masked(pass, by, c, at, run.length, mask(n, run.s0));
                else
                    walk_channel(pass, by, c, at, run.length, 0, 1);
            }
        }
    }

   private:
    static void put(const Totals& out, int64_t c, const Sums<T>& sums) {
        out.template set<T>(0, c, sums.first.total());
        out.template set<T>(1, c, sums.second.total());
    }
    template <class Pass>
    NORMKIT_INLINE static typename Pass::Result walk_channel(const Pass& pass, const Coefficients& by, int64_t c,
                                                             int64_t at, int64_t n, int64_t stride, int64_t runs) {
        if constexpr (!Pass::f64_alone)
            if (!by.wide[c]) return walk<F>(pass, OneChannel{by, c}, at, n, stride, runs);
        return walk_wide(pass, by, c, at, n, stride, runs);
    }
    template <class Pass>
    [[gnu::noinline]] static typename Pass::Result walk_wide(const Pass pass, const Coefficients by, int64_t c, int64_t at,
                                                             int64_t n, int64_t stride, int64_t runs) {
        return walk<D>(pass, OneChannel{by, c}, at, n, stride, runs);
    }
    template <class Pass>
    static typename Pass::Result walk_channel_masked(const Pass& pass, const Coefficients& by, int64_t c, int64_t at,
                                                     int64_t n, const uint8_t* mask) {
        if constexpr (!Pass::f64_alone)
            if (!by.wide[c]) return walk_masked<F>(pass, OneChannel{by, c}, at, n, mask);
        return walk_masked<D>(pass, OneChannel{by, c}, at, n, mask);
    }

    const uint8_t* mask_;
    int64_t planes_, pieces_, piece_;  // a chunk: so many planes, or one piece of a large plane

    struct Run {  // the part of each plane that a chunk has
        int64_t n0, n1, s0, length;
    };
    Run run_of(int64_t chunk) const {
        const int64_t n0 = chunk / pieces_ * planes_, s0 = chunk % pieces_ * piece_;
        return {n0, std::min(N, n0 + planes_), s0, std::min(piece_, S - s0)};
    }
    const uint8_t* mask(int64_t n, int64_t s) const { return mask_ ? mask_ + n * S + s : nullptr; }
};

}  // namespace normkit::NORMKIT_ISA
