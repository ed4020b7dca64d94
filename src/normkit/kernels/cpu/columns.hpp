// How a pass walks over rows whose lanes belong to different channels; planes.hpp says what a walk offers.

#pragma once

#include <algorithm>

#include "memory.hpp"
#include "parallel.hpp"
#include "passes.hpp"

namespace normkit::NORMKIT_ISA {

// Rows of vectors whose lanes belong to different channels:
// - channels last: N * S rows of C columns; `copies` rows are taken as one where that fills the vectors;
// - small planes: N rows of C * S columns, where each channel has a `spread` of S columns.
template <class T>
class Columns {
   public:
    static constexpr int64_t unit = by_twos<T> ? 2 * L : L;
    const int64_t N, C, S;
    int64_t copies, spread;
    int64_t chunks;

    Columns(int64_t N, int64_t C, int64_t S, const uint8_t* mask, bool channels_last)
        : N(N), C(C), S(S), copies(1), spread(channels_last ? 1 : S), channels_last_(channels_last), mask_(mask) {
        if (channels_last && !mask && C < 256)
            while (copies * C % unit || copies * C < 8 * L) copies *= 2;
        columns_ = C * copies * spread;
        rows_ = N * S * C / columns_;
        rest_ = N * S * C % columns_;
        // A power of two of them, which threads share evenly; few, as the sums of each go from core to core.
        const int64_t most = 64, fewest_rows = 256, fewest = 4 * kGrain;  // elements
        chunks = 1;
        while (chunks < most && rows_ >= 2 * chunks * fewest_rows && rows_ * columns_ >= 2 * chunks * fewest) chunks *= 2;
        chunk_rows_ = std::max<int64_t>(1, ceil_div(ceil_div(rows_, chunks), kTile)) * kTile;
        chunks = std::max<int64_t>(1, ceil_div(rows_, chunk_rows_));
        tiles_ = rows_ <= kMostTiles * kTile ? kMostTiles
                                             : std::clamp<int64_t>(kNear / (kTile * columns_ * int64_t(sizeof(T))), 1, kMostTiles);
    }
    int64_t columns() const { return columns_; }
    int64_t offset(int64_t n, int64_t s, int64_t c) const {
        return channels_last_ ? (n * S + s) * C + c : (n * C + c) * S + s;
    }
    bool can_stream(const void* p) const {  // every vector is aligned, or none can be
        return columns_ % unit == 0 && reinterpret_cast<uintptr_t>(p) % (unit * sizeof(T)) == 0;
    }

    // Few rows: each thread takes channels of its own. Many: all take rows of all channels.
    int64_t block(int64_t bytes, int64_t arrays, int threads) const {
        if (copies > 1 || chunks > 1) return threads == 1 ? C : 0;
        const int64_t fits = bytes / (rows_ * spread * int64_t(sizeof(T)) * arrays);
        return std::clamp<int64_t>(fits, 1, ceil_div(C, threads));
    }
    int64_t group(int64_t, int64_t) const { return C; }
    bool joint() const { return false; }

    template <class Pass>
    void sums(const Pass& pass, const Coefficients& by, int64_t chunk, int64_t c0, int64_t c1, int64_t,
              Totals out) const {
        const int64_t j0 = c0 * spread, j1 = c1 == C ? columns_ : c1 * spread, stride = ceil_div(j1 - j0, L) * L;
        const int64_t bytes = (stride * 4 + L) * int64_t(sizeof(double));  // collected() reads whole vectors
        const Scratch memory(bytes);
        const Totals of{memory.as<double>(), stride};
        std::memset(of.rows, 0, bytes);
        walk(pass, by, chunk, j0, j1, of);
        collect(of, out, c1 - c0);
    }
    template <class Pass>
    void map(const Pass& pass, const Coefficients& by, int64_t chunk, int64_t c0, int64_t c1) const {
        walk(pass, by, chunk, c0 * spread, c1 == C ? columns_ : c1 * spread, {nullptr, 0});
    }

   private:
    static constexpr int kTile = 8;  // rows that are summed together, and then join the sums of their columns
    // Rows that are written together, and share a load of the coefficients: of more, wide ones miss the cache of
    // addresses (2048 channels: 8 rows took half as long again).
    static constexpr int kWritten = 4;
    static constexpr int64_t kPage = 4096;
    static constexpr int64_t kAheadOfWrites = 8192;  // bytes
    // Tiles that share one load of the coefficients, one load and store of the sums: of few rows all, of many as many
    // as stay in the nearest cache while it goes over their columns.
    static constexpr int64_t kMostTiles = 8, kNear = 16 << 10;
    template <class Pass>
    static constexpr bool writes = std::is_same_v<typename Pass::Result, NoSums>;
    template <int rows>
    using Rows = std::integral_constant<int, rows>;
    int64_t tiles_;
    const bool channels_last_;
    const uint8_t* mask_;                         // of rows; small planes with a mask are left to Planes
    int64_t columns_, rows_, rest_, chunk_rows_;  // rows of columns_ elements, and a last one of rest_

    template <class Pass>
    void walk(const Pass& pass, const Coefficients& by, int64_t chunk, int64_t j0, int64_t j1, Totals of) const {
        bool wide = Pass::f64_alone;
        for (int64_t j = j0; j < j1; ++j) wide |= by.wide[j] != 0;
        const int64_t r0 = chunk * chunk_rows_, r1 = std::min(rows_, r0 + chunk_rows_);
        if (mask_) {
            for (int64_t r = r0; r < r1; ++r) {
                if (mask_[r])
                    walk_mixed<1>(pass, by, r, 1, 1, j0, j1, of, All{});
                else if (writes<Pass>)
                    walk_mixed<1>(pass, by, r, 1, 1, j0, j1, of, Masked{L, I{}});
            }
            return;
        }
        const bool last = chunk == chunks - 1;
        if constexpr (!Pass::f64_alone) {
            const auto in_f32 = [&](const auto& settled) {
                each_tile<Pass>(r0, r1, j1, last, [&](auto rows, int64_t r, int64_t tiles, int64_t apart, int64_t j1) {
                    walk_tiles<decltype(rows)::value, F>(settled, by, r, tiles, apart, j0, j1, of, All{});
                });
            };
            if constexpr (writes<Pass>) {
                if (!wide) return pass.settled(in_f32);
            } else {
                if (!wide) return in_f32(pass);
            }
        }
        each_tile<Pass>(r0, r1, j1, last, [&](auto rows, int64_t r, int64_t tiles, int64_t apart, int64_t j1) {
            walk_mixed<decltype(rows)::value>(pass, by, r, tiles, apart, j0, j1, of, All{});
        });
    }

    // body(rows, r, tiles, apart, j1) for so many tiles of `rows` rows that are `apart`, from row r, up to column j1:
    // all of the rows [r, r1), and of what remains after the last.
    template <class Pass, class Body>
    NORMKIT_INLINE void each_tile(int64_t r, int64_t r1, int64_t j1, bool last, const Body& body) const {
        if constexpr (writes<Pass>) {
            // Beyond the cache, rows shorter than a page are written as so many runs through memory side by side, each in
            // order, which the processor foresees. An odd number apart: runs that begin at one place of a page share its
            // cache lines.
            const int64_t bytes = N * C * S * int64_t(sizeof(T));
            const bool side_by_side = columns_ * int64_t(sizeof(T)) < kPage && r1 - r > 2 * kWritten && leaves_cache(4 * bytes);
            const int64_t runs = side_by_side ? ((r1 - r) / kWritten - 1) | 1 : (r1 - r) / kWritten;
            const int64_t apart = side_by_side ? runs : 1, step = side_by_side ? 1 : kWritten;
            for (int64_t i = 0; i < runs; ++i) body(Rows<kWritten>{}, r + i * step, 1, apart, j1);
            r += kWritten * runs;
        } else {
            while (r + kTile <= r1) {
                const int64_t tiles = std::min(tiles_, (r1 - r) / kTile);
                body(Rows<kTile>{}, r, tiles, 1, j1);
                r += tiles * kTile;
            }
        }
        if (r < r1) body(Rows<1>{}, r, r1 - r, 1, j1);
        if (last && rest_ > 0) body(Rows<1>{}, rows_, 1, 1, rest_);
    }

    // In f64 where it has to be, vector by vector, the same ones whoever asks.
    template <int rows, class Pass, class Lanes>
    void walk_mixed(const Pass& pass, const Coefficients& by, int64_t r, int64_t tiles, int64_t apart, int64_t j0,
                    int64_t j1, Totals of, Lanes lanes) const {
        if constexpr (Pass::f64_alone) {
            walk_tiles<rows, D>(pass, by, r, tiles, apart, j0, j1, of, lanes);
        } else {
            for (int64_t j = j0; j < j1; j += L) {
                const int64_t end = std::min(j1, j + L);
                const Totals there = of.rows ? of.from(j - j0) : of;
                if (std::any_of(by.wide + j, by.wide + end, [](uint8_t flag) { return flag != 0; }))
                    walk_tiles<rows, D>(pass, by, r, tiles, apart, j, end, there, lanes);
                else
                    walk_tiles<rows, F>(pass, by, r, tiles, apart, j, end, there, lanes);
            }
        }
    }

    template <int rows, class A, class Pass, class Lanes>
    void walk_tiles(const Pass pass, const Coefficients by, int64_t r, int64_t tiles, int64_t apart, int64_t j0, int64_t j1,
                    Totals of, Lanes lanes) const {
        const int64_t width = apart * columns_, at = r * columns_;
        int64_t j = j0;
        if constexpr (by_twos<T> && std::is_same_v<A, F> && std::is_same_v<Lanes, All>)
            for (; j + 2 * L <= j1; j += 2 * L)
                walk_vectors<rows, FF>(pass, by, at + j, width, tiles, j, of, j - j0, lanes);
        for (; j + L <= j1; j += L) walk_vectors<rows, A>(pass, by, at + j, width, tiles, j, of, j - j0, lanes);
        if (j == j1) return;
        if constexpr (std::is_same_v<Lanes, All>)
            walk_vectors<rows, A>(pass, by, at + j, width, tiles, j, of, j - j0, First{int(j1 - j)});
        else
            walk_vectors<rows, A>(pass, by, at + j, width, tiles, j, of, j - j0, Masked{int(j1 - j), I{}});
    }
    template <int rows, class A, class Pass, class Lanes>
    NORMKIT_INLINE static void walk_vectors(const Pass& pass, const Coefficients& by, int64_t at, int64_t width,
                                            int64_t tiles, int64_t j, Totals of, int64_t i, Lanes lanes) {
        const typename Pass::template Coefficient<A> coefficient(ChannelPerLane{by, j});
        constexpr bool writes = Columns::writes<Pass>;
        const int64_t ahead = writes ? kAheadOfWrites / int64_t(sizeof(T)) : std::max<int64_t>(2, tiles) * rows * width;
        std::conditional_t<std::is_same_v<A, FF> && !writes, TwoSums<T>, typename Pass::Result> sums;
        sums.read(of, i);
        // Of what is written, rows that lie together are one tile, and the compiler is told so.
        for (int64_t tile = 0; tile < (writes && rows > 1 ? 1 : tiles); ++tile, at += rows * width) {
            typename Pass::template Addend<A> addend{};
            for (int row = 0; row < rows; ++row)
                if (rows > 1) pass.prefetch(at + row * width + ahead);
            if constexpr (rows > 1 && writes && std::is_same_v<Lanes, All> && !std::is_same_v<A, FF>) {
                for (int row = 0; row < rows; row += 2)
                    pass.template apply_two<A>(at + row * width, at + (row + 1) * width, coefficient, addend);
            } else {
                for (int row = 0; row < rows; ++row)
                    pass.template apply<A>(at + row * width, lanes, coefficient, addend);
            }
            sums.join(addend);
        }
        sums.write(of, i);
    }

    // The sums over the columns of each of n channels.
    void collect(Totals of, Totals out, int64_t n) const {
        for (int which : {0, 1}) {
            if (spread > 1) {
                for (int64_t c = 0; c < n; ++c) out.template set<T>(which, c, collected(of, which, c));
                continue;
            }
            for (int64_t c = 0; c < n; c += L) {
                SumOf<T> sum, part;
                sum.read(of, which, c);
                for (int64_t i = 1; i < copies; ++i) {
                    part.read(of, which, c + i * C);
                    sum.join(part);
                }
                c + L <= n ? sum.write(out, which, c, All{}) : sum.write(out, which, c, First{int(n - c)});
            }
        }
    }
    Pair collected(Totals of, int which, int64_t c) const {
        SumOf<T> sum, part;
        int64_t i = 0;
        for (; i + L <= spread; i += L) {
            part.read(of, which, c * spread + i);
            sum.join(part);
        }
        if (i < spread) {
            part.read(of, which, c * spread + i);
            part.keep(First{int(spread - i)});
            sum.join(part);
        }
        return sum.total();
    }
};

}  // namespace normkit::NORMKIT_ISA
