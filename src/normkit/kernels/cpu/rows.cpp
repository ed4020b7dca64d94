// Statistics per row, parameters per element: layer norm, and RMS norm, which does not centre.
// Compiled once per instruction set.
//
// Rows are taken in tiles, which stay in the cache. Forward, the rows of a tile are summed, their coefficients are
// made, and they are written. Backward likewise; dx is written column by column over a few rows at a time, which
// gives those rows' shares of dweight and dbias. The shares are added up in f64 for each chunk of tiles, and those of the
// chunks as a tree. Where rows are few and long, the threads share each row instead: the same pieces, the same tree,
// the same result.

#include "dispatch.hpp"
#include "family.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "row_passes.hpp"
#include "walk.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

// Two totals over a row: of its moments, or of its gradient.
struct RowTotals {
    Pair first{0, 0}, second{0, 0};
    void add(const RowTotals& other) {
        first = first + other.first;
        second = second + other.second;
    }
};

template <class T, bool centred>
class Rows {
    using E = ParameterOf<T>;
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    static constexpr int kTile = 8;  // most rows of a tile

   public:
    explicit Rows(const RowsCall& call)
        : call_(call),
          R_(call.R),
          M_(call.M),
          pieces_(ceil_div(call.M, kPiece)),
          threads_(threads_for(call.R * call.M)),
          shared_(threads_ > 1 && call.R < 4 * threads_ && pieces_ > 1),
          far_(are_far(call.R * call.M * int64_t(sizeof(T)))),
          tile_(rows_of_tile(call.M * int64_t(sizeof(T)))),
          parameters_(2 * M_ * int64_t(sizeof(E))),
          weight_(parameter(call.weight, 1, parameters_.template as<E>())),
          bias_(parameter(call.bias, 0, parameters_.template as<E>() + M_)) {}

    void forward() const {
        const bool streamed = streams(call_.y);
        const RowOutputPass<T> pass{x(), weight_, bias_, static_cast<T*>(call_.y), ahead()};
        if (shared_) {
            const Scratch memory(R_ * int64_t(sizeof(Row) + sizeof(RowTotals)));
            Row* rows = memory.as<Row>();
            measure(0, R_, rows, reinterpret_cast<RowTotals*>(rows + R_));
            parallel(pieces_, threads_, Order::backward, [&](int64_t piece) {
                write(pass, streamed, rows, 0, R_, piece * kPiece, std::min(M_, (piece + 1) * kPiece));
            });
            return;
        }
        parallel(ceil_div(R_, tile_), threads_, Order::forward, [&](int64_t tile) {
            Row rows[kTile];
            RowTotals totals[kTile];
            const int64_t r = tile * tile_, n = std::min(tile_, R_ - r);
            measure(r, n, rows, totals);
            write(pass, streamed, rows, r, n, 0, M_);
        });
    }

    void backward() const {
        const bool streamed = streams(call_.dx);
        const int64_t fewest = 4 * kTile, elements = 1 << 22;  // rows per chunk, sums in memory
        const int64_t few = std::clamp<int64_t>(elements / M_, 1, SumTree::kMost);
        const int64_t chunk_rows = ceil_div(std::max(fewest, ceil_div(R_, few)), kTile) * kTile;
        const int64_t chunks = ceil_div(R_, chunk_rows);
        const Scratch memory(2 * chunks * M_ * int64_t(sizeof(double)));
        double* partial = memory.as<double>();
        // The outputs of a chunk in the columns [j0, j1); prepared(r, n) gives the coefficients of a tile.
        const auto write_chunk = [&](int64_t chunk, int64_t j0, int64_t j1, const auto& prepared) {
            RowGradientPass<T> pass{x(), dy(), weight_, static_cast<T*>(call_.dx), ahead(), nullptr, nullptr};
            if (call_.dweight.data) pass.dweight = cleared(partial + 2 * chunk * M_, j0, j1);
            if (call_.dbias.data) pass.dbias = cleared(partial + (2 * chunk + 1) * M_, j0, j1);
            const int64_t last = std::min(R_, (chunk + 1) * chunk_rows);
            for (int64_t r = chunk * chunk_rows; r < last; r += tile_) {
                const int64_t n = std::min(tile_, last - r);
                write(pass, streamed, prepared(r, n), r, n, j0, j1);
            }
        };
        const auto add_chunk = [&](SumTree& tree, int64_t chunk, int64_t j0, int64_t j1) {
            tree.ready(chunk, [&](int64_t left, int64_t right) {
                if (call_.dweight.data) add(partial + 2 * left * M_, partial + 2 * right * M_, j0, j1);
                if (call_.dbias.data) add(partial + (2 * left + 1) * M_, partial + (2 * right + 1) * M_, j0, j1);
            });
        };
        if (shared_) {
            const Scratch all(R_ * int64_t(sizeof(Row) + sizeof(RowTotals)));
            Row* rows = all.as<Row>();
            prepare(0, R_, rows, reinterpret_cast<RowTotals*>(rows + R_));
            parallel(pieces_, threads_, Order::backward, [&](int64_t piece) {
                const int64_t j0 = piece * kPiece, j1 = std::min(M_, (piece + 1) * kPiece);
                SumTree tree(chunks);
                for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                    write_chunk(chunk, j0, j1, [&](int64_t r, int64_t) { return rows + r; });
                    add_chunk(tree, chunk, j0, j1);
                }
            });
        } else {
            SumTree tree(chunks);
            parallel(chunks, threads_, Order::forward, [&](int64_t chunk) {
                Row rows[kTile];
                RowTotals totals[kTile];
                write_chunk(chunk, 0, M_, [&](int64_t r, int64_t n) {
                    prepare(r, n, rows, totals);
                    return rows;
                });
                add_chunk(tree, chunk, 0, M_);
            });
        }
        assign(call_.dweight, partial);
        assign(call_.dbias, partial + M_);
    }

   private:
    const RowsCall& call_;
    const int64_t R_, M_, pieces_;
    const int threads_;
    const bool shared_;   // by the threads: each row
    const bool far_;      // beyond the cache of a core
    const int64_t tile_;  // rows
    const Scratch parameters_;
    const E *weight_, *bias_;

    const T* x() const { return static_cast<const T*>(call_.x); }
    const T* dy() const { return static_cast<const T*>(call_.dy); }

    static bool are_far(int64_t bytes) {
#if defined(NORMKIT_STD_THREADS)
        return bytes > 1 << 13;  // small tensors take this path too
#else
        return bytes > caches().l2;
#endif
    }
    // In the cache, eight rows hide the latency of their coefficients, and the sums of columns are written once for
    // several. Beyond it, reading and writing take turns often: tiles of 6 KB forward; of 12 KB backward, as the sums
    // of columns want four rows.
    int64_t rows_of_tile(int64_t bytes) const {
        if (far_) return std::clamp<int64_t>((call_.dx ? 12288 : 6144) / bytes, 1, kTile);
        return bytes <= 4096 ? kTile : kTile / 2;
    }
    int64_t ahead() const { return far_ ? tile_ * M_ : 0; }

    // Whether an output is streamed: every vector of it is aligned, or none.
    bool streams(void* data) const {
        const int64_t bytes = R_ * M_ * int64_t(sizeof(T));
        return leaves_cache(4 * bytes) && M_ % L == 0 && reinterpret_cast<uintptr_t>(data) % (L * sizeof(T)) == 0;
    }
    // A parameter in E: as it is, or as a copy; an absent one as its neutral value.
    const E* parameter(const Parameter& p, E neutral, E* copy) const {
        if (!p.data) {
            std::fill_n(copy, M_, neutral);
            return copy;
        }
        return with_dtype(p.dtype, [&](auto of) -> const E* {
            using P = decltype(of);
            if constexpr (std::is_same_v<P, E>) return static_cast<const E*>(p.data);
            using A = std::conditional_t<std::is_same_v<P, double> || f64_alone, D, F>;
            const P* from = static_cast<const P*>(p.data);
            for (int64_t j = 0; j < M_; j += L) {
                const First lanes{int(std::min<int64_t>(L, M_ - j))};
                store(copy + j, load<A>(from + j, lanes), lanes);
            }
            return copy;
        });
    }

    static double* cleared(double* sums, int64_t j0, int64_t j1) {
        std::fill(sums + j0, sums + j1, 0);
        return sums;
    }

    // --- outputs of rows ------------------------------------------------------------------------------------

    // The columns [j0, j1) of n rows, a block at a time. A wide row is written alone: its neighbours stay in f32.
    template <class Pass>
    void write(const Pass& pass, bool streamed, const Row* rows, int64_t r, int64_t n, int64_t j0, int64_t j1) const {
        const auto write_block = [&](auto a, auto count, int64_t i) {
            using A = decltype(a);
            streamed ? write_rows<T, A, count, true>(pass, rows + i, r + i, M_, j0, j1)
                     : write_rows<T, A, count, false>(pass, rows + i, r + i, M_, j0, j1);
            return int64_t(count);
        };
        const std::integral_constant<int, Pass::block> several;
        const std::integral_constant<int, 1> one;
        const auto wide = [](const Row& row) { return row.wide; };
        for (int64_t i = 0; i < n;) {
            if constexpr (f64_alone) {
                i += write_block(D{}, one, i);
            } else {
                const bool whole = i + Pass::block <= n && std::none_of(rows + i, rows + i + Pass::block, wide);
                i += whole ? write_block(F{}, several, i) : rows[i].wide ? write_block(D{}, one, i) : write_block(F{}, one, i);
            }
        }
        if (streamed) stream_fence();
    }

    // --- sums of rows ---------------------------------------------------------------------------------------

    template <class Pass>
    RowTotals sum_piece(const Pass& pass, const Row& row, int64_t r, int64_t piece) const {
        const int64_t j = piece * kPiece, at = r * M_ + j, n = std::min(kPiece, M_ - j);
        const auto totals = [](const Sums<T>& sums) { return RowTotals{sums.first.total(), sums.second.total()}; };
        if constexpr (!f64_alone)
            if (!row.wide) return totals(sum_run<T, F>(pass, row, at, j, n));
        return totals(sum_run<T, D>(pass, row, at, j, n));
    }
    // One by one, or together where the threads share the rows.
    template <class Pass>
    void sum(const Pass& pass, int64_t r, int64_t n, const Row* rows, RowTotals* of) const {
        if (!shared_) {
            for (int64_t i = 0; i < n; ++i) {
                of[i] = sum_piece(pass, rows[i], r + i, 0);
                for (int64_t piece = 1; piece < pieces_; ++piece) of[i].add(sum_piece(pass, rows[i], r + i, piece));
            }
            return;
        }
        const Scratch memory(n * pieces_ * int64_t(sizeof(RowTotals)));
        RowTotals* parts = memory.as<RowTotals>();
        parallel(n * pieces_, threads_, Order::forward, [&](int64_t task) {
            const int64_t i = task / pieces_;
            parts[task] = sum_piece(pass, rows[i], r + i, task % pieces_);
        });
        for (int64_t i = 0; i < n; ++i) {
            of[i] = parts[i * pieces_];
            for (int64_t piece = 1; piece < pieces_; ++piece) of[i].add(parts[i * pieces_ + piece]);
        }
    }

    // --- statistics and coefficients ------------------------------------------------------------------------

    // The statistics of n rows, from their totals.
    void measure(int64_t r, int64_t n, Row* rows, RowTotals* of) const {
        const RowMomentsPass<T, centred> pass{x()};
        for (int64_t i = 0; i < n; ++i) rows[i] = {shift(r + i), 0, 0, 0, 0, !is_half<T>};
        sum(pass, r, n, rows, of);
        if constexpr (is_half<T>) {
            for (int64_t i = 0; i < n; ++i) {
                if (short_sums_hold(of[i].first.hi, of[i].second.hi, double(M_))) continue;
                rows[i].hi = first(r + i);
                rows[i].wide = true;
                sum(pass, r + i, 1, rows + i, of + i);
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            const double inverse = 1 / double(M_);
            const Moments m = centred ? moments_about(rows[i].hi, of[i].first, of[i].second, double(M_))
                                      : Moments{{0, 0}, of[i].second.hi * inverse};
            const int64_t at = r + i;
            call_.stats[at] = m.mean.hi, call_.stats[R_ + at] = m.var, call_.stats[2 * R_ + at] = m.mean.lo;
            rows[i] = row_of(m.mean, m.var);
        }
    }
    double first(int64_t r) const {
        return centred ? value({const_cast<void*>(call_.x), call_.dtype}, r * M_, 0) : 0;
    }
    double shift(int64_t r) const {
        if constexpr (is_half<T> && centred) {
            const int n = int(std::min<int64_t>(L, M_));
            return sum_of<float, L>(load<F>(x() + r * M_, First{n})) / float(n);
        }
        return first(r);
    }
    static Row row_of(Pair mean, double var, double eps) {
        const double rstd = double(inverse_deviation<T>(var, eps));
        const bool wide = f64_alone || !(fits_f32(mean.hi) && fits_f32(rstd)) || (var != 0 && var < 0x1p-200);
        const double hi = wide ? mean.hi : float(mean.hi);
        return {hi, (mean.hi - hi) + mean.lo, rstd, 0, 0, wide};
    }
    Row row_of(Pair mean, double var) const { return row_of(mean, var, call_.eps); }
    // The coefficients of the gradient of n rows.
    void prepare(int64_t r, int64_t n, Row* rows, RowTotals* of) const {
        const RowSumsPass<T> pass{x(), dy(), weight_};
        for (int64_t i = 0; i < n; ++i)
            rows[i] = row_of({call_.stats[r + i], call_.stats[2 * R_ + r + i]}, call_.stats[R_ + r + i]);
        sum(pass, r, n, rows, of);
        for (int64_t i = 0; i < n; ++i) {
            Row& row = rows[i];
            const double g = of[i].first.hi, g_xhat = row.rstd * (of[i].second.hi - row.lo * g);
            row.b = -g_xhat / double(M_);
            row.c = centred ? -g / double(M_) : 0;
            row.wide = row.wide || !(fits_f32(row.b) && fits_f32(row.c));
        }
    }

    static void add(double* to, const double* from, int64_t j0, int64_t j1) {
        for (int64_t j = j0; j < j1; ++j) to[j] += from[j];
    }
    void assign(const Parameter& to, const double* sums) const {
        if (!to.data) return;
        with_dtype(to.dtype, [&](auto of) {
            for (int64_t j = 0; j < M_; j += L) {
                const First lanes{int(std::min<int64_t>(L, M_ - j))};
                store(static_cast<decltype(of)*>(to.data) + j, load<D>(sums + j, lanes), lanes);
            }
        });
    }
};

template <class Body>
void with_rows(const RowsCall& call, const Body& body) {
    with_dtype(call.dtype, [&](auto t) {
        using T = decltype(t);
        call.centred ? body(Rows<T, true>(call)) : body(Rows<T, false>(call));
    });
}

}  // namespace

void rows_forward(const RowsCall& call) {
    with_rows(call, [](const auto& rows) { rows.forward(); });
}
void rows_backward(const RowsCall& call) {
    with_rows(call, [](const auto& rows) { rows.backward(); });
}

}  // namespace normkit::NORMKIT_ISA
