// How a pass walks over a tensor: Planes for memory (N, C, S), Columns for memory (rows, C).
//
// Both cut the positions of a channel into chunks. The grid of chunks depends on the shape alone: each chunk is
// summed on its own and the sums are added in the order of the chunks, whoever computed them. Both offer
//   sums(pass, coefficients, chunk, c0, c1, totals)    sums of a chunk for the channels [c0, c1)
//   map(pass, coefficients, chunk, c0, c1)             outputs of a chunk for the channels [c0, c1)
// and, for coefficients, `copies` columns per channel.

#pragma once

#include <algorithm>

#include "memory.hpp"
#include "passes.hpp"

namespace normkit::NORMKIT_ISA {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline I positions(const uint8_t* mask, int n) {
    uint8_t padded[L] = {};
    std::memcpy(padded, mask, n);
    return __builtin_convertvector(read<Vector<uint8_t, L>>(padded), I) != 0;
}

// A run of n elements of one channel. Two sets of sums hide the latency of an addition.
template <class A, class Pass>
typename Pass::Result walk(const Pass& pass, const OneChannel& channel, int64_t at, int64_t n, const uint8_t* mask) {
    const typename Pass::template Coefficient<A> by(channel);
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
template <class T, class Pass>
typename Pass::Result walk_either(const Pass& pass, const OneChannel& channel, int64_t at, int64_t n,
                                  const uint8_t* mask) {
    if constexpr (!std::is_same_v<T, double>)
        if (!channel.of.wide[channel.c]) return walk<F>(pass, channel, at, n, mask);
    return walk<D>(pass, channel, at, n, mask);
}

template <class T>
class Planes {
   public:
    static constexpr int64_t kMostChannels = 32;  // whose sums are kept while a chunk is read in memory order
    static constexpr int64_t copies = 1;
    const int64_t N, C, S;
    int64_t chunks;

    Planes(int64_t N, int64_t C, int64_t S, const uint8_t* mask) : N(N), C(C), S(S), mask_(mask) {
        constexpr int64_t elements = 1 << 14;
        pieces_ = std::max<int64_t>(1, ceil_div(S, elements));
        piece_ = ceil_div(ceil_div(S, pieces_), 64) * 64;
        pieces_ = ceil_div(S, piece_);
        planes_ = std::max<int64_t>(1, elements / S);
        chunks = ceil_div(N, planes_) * pieces_;
    }
    int64_t columns() const { return C; }
    int64_t offset(int64_t n, int64_t s, int64_t c) const { return (n * C + c) * S + s; }

    bool can_stream(const void*) const { return true; }

    // Channels per block, for blocks that each fit the given bytes of cache and keep the threads busy; 0: share.
    int64_t block(int64_t bytes, int64_t arrays, int threads) const {
        if (threads > 1 && C < 4 * threads) return 0;
        const int64_t fair = threads > 1 ? C / (4 * threads) : C;
        return std::min(fair, group(bytes, arrays));
    }
    int64_t group(int64_t bytes, int64_t arrays) const {
        const int64_t each = N * S * int64_t(sizeof(T)) * arrays;
        return std::clamp<int64_t>(bytes / each, 1, std::min(C, kMostChannels));
    }

    template <class Pass>
    void sums(const Pass& pass, const Coefficients& by, int64_t chunk, int64_t c0, int64_t c1, Totals out) const {
        Sums<T> of[kMostChannels] = {};
        each_run(chunk, c0, c1, [&](int64_t c, int64_t at, int64_t n, const uint8_t* mask) {
            of[c - c0].join(walk_either<T>(pass, OneChannel{by, c}, at, n, mask));
        });
        for (int64_t c = c0; c < c1; ++c) {
            out.set(0, c - c0, of[c - c0].first.total());
            out.set(1, c - c0, of[c - c0].second.total());
        }
    }
    template <class Pass>
    void map(const Pass& pass, const Coefficients& by, int64_t chunk, int64_t c0, int64_t c1) const {
        each_run(chunk, c0, c1, [&](int64_t c, int64_t at, int64_t n, const uint8_t* mask) {
            walk_either<T>(pass, OneChannel{by, c}, at, n, mask);
        });
    }

   private:
    const uint8_t* mask_;
    int64_t planes_, pieces_, piece_;  // a chunk: so many planes, or one piece of a large plane

    template <class Body>
    void each_run(int64_t chunk, int64_t c0, int64_t c1, const Body& body) const {
        const int64_t n0 = chunk / pieces_ * planes_, s0 = chunk % pieces_ * piece_;
        const int64_t length = std::min(piece_, S - s0);
        for (int64_t n = n0; n < std::min(N, n0 + planes_); ++n)
            for (int64_t c = c0; c < c1; ++c)
                body(c, offset(n, s0, c), length, mask_ ? mask_ + n * S + s0 : nullptr);
    }
};

template <class T>
class Columns {
   public:
    const int64_t N, C, S;
    int64_t copies;  // so many rows are taken as one, so that narrow rows fill vectors
    int64_t chunks;

    Columns(int64_t N, int64_t C, int64_t S, const uint8_t* mask) : N(N), C(C), S(S), mask_(mask) {
        copies = 1;
        if (!mask && C < 256)
            while (copies * C % L) copies *= 2;
        rows_ = N * S / copies;
        rest_ = N * S % copies * C;
        const int64_t fewest = 256, most = 64;
        chunk_rows_ = std::max(fewest, ceil_div(ceil_div(rows_, most), kTile) * kTile);
        chunks = std::max<int64_t>(1, ceil_div(rows_, chunk_rows_));
    }
    int64_t columns() const { return copies * C; }
    int64_t offset(int64_t n, int64_t s, int64_t c) const { return (n * S + s) * C + c; }
    bool can_stream(const void* p) const {  // every vector is aligned, or none can be
        return columns() % L == 0 && reinterpret_cast<uintptr_t>(p) % (L * sizeof(T)) == 0;
    }

    // Few rows: each thread takes columns of its own. Many: all take rows of all columns.
    int64_t block(int64_t, int64_t, int threads) const {
        constexpr int64_t lines = 64;
        if (threads == 1 || copies > 1 || chunks > 1) return threads == 1 ? C : 0;
        return ceil_div(ceil_div(C, threads), lines) * lines;
    }
    int64_t group(int64_t, int64_t) const { return C; }

    template <class Pass>
    void sums(const Pass& pass, const Coefficients& by, int64_t chunk, int64_t c0, int64_t c1, Totals out) const {
        const int64_t j1 = copies == 1 ? c1 : columns();
        const Scratch memory(ceil_div(j1 - c0, L) * int64_t(sizeof(Sums<T>)));
        Sums<T>* of = memory.as<Sums<T>>();
        for (int64_t i = 0; i < ceil_div(j1 - c0, L); ++i) of[i] = {};
        each_tile(chunk, [&](int64_t r, int64_t rows, int64_t width) {
            walk_tile(pass, by, r, rows, c0, std::min(j1, width), of);
        });
        collect(of, c0, j1, out);
    }
    template <class Pass>
    void map(const Pass& pass, const Coefficients& by, int64_t chunk, int64_t c0, int64_t c1) const {
        const int64_t j1 = copies == 1 ? c1 : columns();
        NoSums none[1];
        each_tile(chunk, [&](int64_t r, int64_t rows, int64_t width) {
            walk_tile(pass, by, r, rows, c0, std::min(j1, width), none);
        });
    }

   private:
    static constexpr int kTile = 4;  // rows that share one load and store of the sums
    const uint8_t* mask_;
    int64_t rows_, rest_, chunk_rows_;  // rows of columns() elements, and a last one of rest_

    // body(first row, rows, width) over tiles; a row that the mask leaves out is a tile of its own.
    template <class Body>
    void each_tile(int64_t chunk, const Body& body) const {
        const int64_t r1 = std::min(rows_, (chunk + 1) * chunk_rows_);
        for (int64_t r = chunk * chunk_rows_; r < r1;) {
            const int64_t rows = mask_ ? 1 : std::min<int64_t>(kTile, r1 - r);
            body(r, rows, columns());
            r += rows;
        }
        if (chunk == chunks - 1 && rest_ > 0) body(rows_, 1, rest_);
    }

    template <class Pass, class Result>
    void walk_tile(const Pass& pass, const Coefficients& by, int64_t r, int64_t rows, int64_t c0, int64_t c1,
                   Result* of) const {
        const bool counts = !mask_ || mask_[r];
        if (std::is_same_v<Result, Sums<T>> && !counts) return;
        for (int64_t c = c0; c < c1; c += L) {
            Result& sums = of[std::is_same_v<Result, NoSums> ? 0 : (c - c0) / L];
            const int lanes = int(std::min<int64_t>(L, c1 - c));
            if (!counts)
                walk_vectors(pass, by, r, rows, c, Masked{lanes, I{}}, sums);
            else if (lanes < L)
                walk_vectors(pass, by, r, rows, c, First{lanes}, sums);
            else
                walk_vectors(pass, by, r, rows, c, All{}, sums);
        }
    }
    template <class Pass, class Lanes, class Result>
    void walk_vectors(const Pass& pass, const Coefficients& by, int64_t r, int64_t rows, int64_t c, Lanes lanes,
                      Result& of) const {
        if constexpr (!std::is_same_v<T, double>)
            if (!any(by.wide + c)) return walk_vectors_in<F>(pass, by, r, rows, c, lanes, of);
        walk_vectors_in<D>(pass, by, r, rows, c, lanes, of);
    }
    template <class A, class Pass, class Lanes, class Result>
    void walk_vectors_in(const Pass& pass, const Coefficients& by, int64_t r, int64_t rows, int64_t c, Lanes lanes,
                         Result& of) const {
        const typename Pass::template Coefficient<A> coefficient(ChannelPerLane{by, c});
        Result sums = of;
        if (rows == kTile)
            for (int i = 0; i < kTile; ++i)
                pass.template apply<A>((r + i) * columns() + c, lanes, coefficient, sums);
        else
            for (int64_t i = 0; i < rows; ++i)
                pass.template apply<A>((r + i) * columns() + c, lanes, coefficient, sums);
        of = sums;
    }
    static bool any(const uint8_t* flags) {
        uint32_t words[L / 4], found = 0;
        std::memcpy(words, flags, L);
        for (uint32_t word : words) found |= word;
        return found != 0;
    }

    // The sums of the columns c0.. of one chunk, those of the copies of a channel together.
    void collect(const Sums<T>* of, int64_t c0, int64_t c1, Totals out) const {
        for (int which : {0, 1})
            for (int64_t j = c0; j < c1; ++j) {
                const Sums<T>& sums = of[(j - c0) / L];
                const Pair v = (which ? sums.second : sums.first).lane(int((j - c0) % L));
                out.set(which, j % C - c0, j < C ? v : out.get(which, j % C - c0) + v);
            }
    }
};

}  // namespace normkit::NORMKIT_ISA
