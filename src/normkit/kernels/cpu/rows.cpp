// Statistics per row, parameters per element: layer norm, and RMS norm, which does not centre.
// Compiled once per instruction set.
//
// Forward, a row is summed and written while it is in the cache. Backward, a tile of rows is: each row is summed
// for its coefficients, dx is written row by row, then the tile is walked column by column for its share of
// dweight and dbias. Those are added up in f64 for each chunk of rows, and the chunks in their order. Where rows are
// few and long, the threads share each row instead: the same pieces, the same order, the same result.

#include "coefficients.hpp"
#include "dispatch.hpp"
#include "family.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "walk.hpp"

namespace normkit::NORMKIT_ISA {

namespace {

// The coefficients of a row. For y, 1 / deviation is rstd + rstd_lo.
struct Row {
    double hi, lo, rstd, rstd_lo, b, c;
    bool wide;
};
enum RowField { kRowShift = kShift, kRowHi, kRowLo, kRowRstd, kRowRstdLo, kRowB, kRowC };

// The fields of a row in the precision of A; mean and rstd as two numbers of it.
struct OneRow {
    const Row& row;
    template <class A>
    NORMKIT_INLINE A get(int field) const {
        using E = ElementOf<A>;
        switch (field) {
            case kRowShift: return splat<A>(row.hi);
            case kRowHi: return splat<A>(row.hi);
            case kRowLo: return splat<A>((row.hi - E(row.hi)) + row.lo);
            case kRowRstd: return splat<A>(row.rstd);
            case kRowB: return splat<A>(row.b);
            case kRowC: return splat<A>(row.c);
            default: return splat<A>((row.rstd - E(row.rstd)) + row.rstd_lo);
        }
    }
};

// y = xhat weight + bias
template <class T>
struct RowOutputPass {
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    using Result = NoSums;
    template <class A>
    using Addend = NoSums;
    using E = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const T* x;
    const E *weight, *bias;
    int64_t row;  // offset of the row in x
    Output<T> y;

    template <class A>
    struct Coefficient {
        A hi, lo, rstd, rstd_lo;
        template <class From>
        NORMKIT_INLINE explicit Coefficient(const From& from)
            : hi(from.template get<A>(kRowHi)),
              lo(from.template get<A>(kRowLo)),
              rstd(from.template get<A>(kRowRstd)),
              rstd_lo(from.template get<A>(kRowRstdLo)) {}
    };
    int64_t lead(int64_t at) const { return y.lead(at); }

    template <class A, class Lanes>
    NORMKIT_INLINE void apply(int64_t at, Lanes lanes, const Coefficient<A>& by, NoSums&) const {
        const A d = (load<A>(x + at, lanes) - by.hi) - by.lo;
        A v = fma(d, by.rstd, d * by.rstd_lo);
        if (weight) v = bias ? fma(v, load<A>(weight + (at - row), lanes), load<A>(bias + (at - row), lanes))
                             : v * load<A>(weight + (at - row), lanes);
        y.put(at, v, lanes);
    }
};

// Σ weight dy, Σ weight dy xhat
template <class T>
struct RowSumsPass {
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    using Result = Sums<T>;
    template <class A>
    using Addend = std::conditional_t<std::is_same_v<A, F>, ShortSums, Sums<T>>;
    using E = typename RowOutputPass<T>::E;
    const T *x, *dy;
    const E* weight;
    int64_t row = 0;
    RowSumsPass of_row(int64_t at) const { return {x, dy, weight, at}; }

    template <class A>
    struct Coefficient {
        A hi, lo, rstd;
        template <class From>
        NORMKIT_INLINE explicit Coefficient(const From& from)
            : hi(from.template get<A>(kRowHi)), lo(from.template get<A>(kRowLo)), rstd(from.template get<A>(kRowRstd)) {}
    };
    int64_t lead(int64_t) const { return 0; }

    template <class A, class Lanes>
    NORMKIT_INLINE void apply(int64_t at, Lanes lanes, const Coefficient<A>& by, Addend<A>& sums) const {
        A dz = load<A>(dy + at, lanes);
        if (weight) dz = dz * load<A>(weight + (at - row), lanes);
        add_gradient(sums, dz, ((load<A>(x + at, lanes) - by.hi) - by.lo) * by.rstd);
    }
};

// dx = rstd (weight dy + c + b xhat), with b = -mean(weight dy xhat) and c = -mean(weight dy): centred before it is
// scaled, so that what cancels does so at the size of dy, and the gradient of a row of one value is 0.
template <class T>
struct RowGradientPass {
    static constexpr bool f64_alone = std::is_same_v<T, double>;
    using Result = NoSums;
    template <class A>
    using Addend = NoSums;
    using E = typename RowOutputPass<T>::E;
    const T *x, *dy;
    const E* weight;
    int64_t row;
    Output<T> dx;

    template <class A>
    struct Coefficient {
        A hi, lo, rstd, b, c;
        template <class From>
        NORMKIT_INLINE explicit Coefficient(const From& from)
            : hi(from.template get<A>(kRowHi)),
              lo(from.template get<A>(kRowLo)),
              rstd(from.template get<A>(kRowRstd)),
              b(from.template get<A>(kRowB)),
              c(from.template get<A>(kRowC)) {}
    };
    int64_t lead(int64_t at) const { return dx.lead(at); }

    template <class A, class Lanes>
    NORMKIT_INLINE void apply(int64_t at, Lanes lanes, const Coefficient<A>& by, NoSums&) const {
        A dz = load<A>(dy + at, lanes);
        if (weight) dz = dz * load<A>(weight + (at - row), lanes);
        const A xhat = ((load<A>(x + at, lanes) - by.hi) - by.lo) * by.rstd;
        dx.put(at, by.rstd * fma(by.b, xhat, dz + by.c), lanes);
    }
};

// Two totals over a row: of its moments, or of its gradient.
struct RowTotals {
    Pair first{0, 0}, second{0, 0};
    void add(const RowTotals& other) {
        first = first + other.first;
        second = second + other.second;
    }
};

template <class T>
class Rows {
    using E = typename RowOutputPass<T>::E;
    static constexpr int kTile = 8;

   public:
    explicit Rows(const RowsCall& call)
        : call_(call),
          R_(call.R),
          M_(call.M),
          pieces_(ceil_div(call.M, kPiece)),
          threads_(threads_for(call.R * call.M)),
          shared_(threads_ > 1 && call.R < 4 * threads_ && pieces_ > 1),
          tile_(M_ <= 4096 ? kTile : M_ <= kPiece ? 2 : 1),
          parameters_(2 * M_ * int64_t(sizeof(E))),
          weight_(converted(call.weight, parameters_.template as<E>())),
          bias_(converted(call.bias, parameters_.template as<E>() + M_)) {}

    void forward() const {
        const Output<T> y = output(call_.y);
        const MomentsPass<T> sums{x()};
        const auto about = [&](int64_t r) { return Row{shift(r), 0, 0, 0, 0, 0, true}; };
        const auto write = [&](int64_t r, const Row& row, int64_t j0, int64_t j1) {
            walk_row(RowOutputPass<T>{x(), weight_, bias_, r * M_, y}, row, r * M_ + j0, j1 - j0);
            if (y.streamed) stream_fence();
        };
        if (shared_) {
            const Scratch memory(R_ * int64_t(sizeof(Row)));
            Row* rows = memory.as<Row>();
            sum_together(sums, about, [&](int64_t r, const RowTotals& of) { rows[r] = measured(r, of); });
            parallel(R_ * pieces_, threads_, Order::backward, [&](int64_t task) {
                const int64_t r = task / pieces_, j = task % pieces_ * kPiece;
                write(r, rows[r], j, std::min(M_, j + kPiece));
            });
            return;
        }
        const int64_t rows = std::max<int64_t>(1, kGrain / M_);
        parallel(ceil_div(R_, rows), threads_, Order::forward, [&](int64_t task) {
            for (int64_t r = task * rows; r < std::min(R_, (task + 1) * rows); ++r)
                write(r, measured(r, sum_row(sums, about(r), r)), 0, M_);
        });
    }

    void backward() const {
        const RowSumsPass<T> sums{x(), dy(), weight_};
        const Output<T> dx = output(call_.dx);
        const int64_t fewest = 4 * kTile, most = 64, elements = 1 << 22;  // rows per chunk, chunks, sums in memory
        const int64_t few = std::clamp<int64_t>(elements / M_, 1, most);
        const int64_t chunk_rows = ceil_div(std::max(fewest, ceil_div(R_, few)), kTile) * kTile;
        const int64_t chunks = ceil_div(R_, chunk_rows);
        const bool parameters = call_.dweight.data || call_.dbias.data;
        const Scratch memory(parameters ? 2 * chunks * M_ * int64_t(sizeof(double)) : 0);
        double* partial = parameters ? memory.as<double>() : nullptr;

        const auto write = [&](int64_t chunk, int64_t r, const Row* rows, int64_t n, int64_t j0, int64_t j1) {
            for (int64_t i = 0; i < n; ++i)
                walk_row(RowGradientPass<T>{x(), dy(), weight_, (r + i) * M_, dx}, rows[i], (r + i) * M_ + j0,
                         j1 - j0);
            if (dx.streamed) stream_fence();
            if (!partial) return;
            double* of = partial + 2 * chunk * M_;
            const bool wide = std::any_of(rows, rows + n, [](const Row& row) { return row.wide; });
            if constexpr (!std::is_same_v<T, double>)
                if (!wide) return walk_tile<F>(r, rows, int(n), j0, j1, of);
            walk_tile<D>(r, rows, int(n), j0, j1, of);
        };
        const auto each_tile = [&](int64_t chunk, const auto& body) {
            const int64_t last = std::min(R_, (chunk + 1) * chunk_rows);
            for (int64_t r = chunk * chunk_rows; r < last; r += tile_) body(r, std::min(tile_, last - r));
        };
        const auto clear = [&](int64_t chunk, int64_t j0, int64_t j1) {
            for (int64_t row = 2 * chunk; partial && row < 2 * chunk + 2; ++row)
                std::memset(partial + row * M_ + j0, 0, (j1 - j0) * sizeof(double));
        };
        if (shared_) {
            const Scratch all(R_ * int64_t(sizeof(Row)));
            Row* rows = all.as<Row>();
            sum_together(
                sums, [&](int64_t r) { return given(r); },
                [&](int64_t r, const RowTotals& of) { rows[r] = with_gradient(given(r), of); });
            parallel(pieces_, threads_, Order::backward, [&](int64_t piece) {
                const int64_t j0 = piece * kPiece, j1 = std::min(M_, j0 + kPiece);
                for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                    clear(chunk, j0, j1);
                    each_tile(chunk, [&](int64_t r, int64_t n) { write(chunk, r, rows + r, n, j0, j1); });
                }
            });
        } else {
            parallel(chunks, threads_, Order::forward, [&](int64_t chunk) {
                clear(chunk, 0, M_);
                each_tile(chunk, [&](int64_t r, int64_t n) {
                    Row rows[kTile];
                    for (int64_t i = 0; i < n; ++i) {
                        rows[i] = given(r + i);
                        rows[i] = with_gradient(rows[i], sum_row(sums, rows[i], r + i));
                    }
                    write(chunk, r, rows, n, 0, M_);
                });
            });
        }
        if (partial) add_chunks(partial, chunks);
    }

   private:
    const RowsCall& call_;
    const int64_t R_, M_, pieces_;
    const int threads_;
    const bool shared_;   // by the threads: each row
    const int64_t tile_;  // rows, by their length: a tile stays in the cache
    const Scratch parameters_;
    const E *weight_, *bias_;

    const T* x() const { return static_cast<const T*>(call_.x); }
    const T* dy() const { return static_cast<const T*>(call_.dy); }
    Output<T> output(void* data) const {
        const int64_t bytes = R_ * M_ * int64_t(sizeof(T));
        return {static_cast<T*>(data), leaves_cache(bytes)};
    }
    // A parameter in E: as it is, or as a copy.
    const E* converted(const Parameter& p, E* copy) const {
        if (!p.data) return nullptr;
        return with_dtype(p.dtype, [&](auto of) -> const E* {
            using P = decltype(of);
            if constexpr (std::is_same_v<P, E>) return static_cast<const E*>(p.data);
            using A = std::conditional_t<std::is_same_v<P, double>, D, F>;
            const P* from = static_cast<const P*>(p.data);
            for (int64_t j = 0; j < M_; j += L) {
                const First lanes{int(std::min<int64_t>(L, M_ - j))};
                if constexpr (std::is_same_v<E, double>)
                    store(copy + j, load<D>(from + j, lanes), lanes);
                else
                    store(copy + j, load<A>(from + j, lanes), lanes);
            }
            return copy;
        });
    }

    // --- sums of rows ---------------------------------------------------------------------------------------

    template <class Pass>
    typename Pass::Result walk_row(const Pass& pass, const Row& row, int64_t at, int64_t n) const {
        if constexpr (!Pass::f64_alone)
            if (!row.wide) return walk<F>(pass, OneRow{row}, at, n, nullptr);
        return walk<D>(pass, OneRow{row}, at, n, nullptr);
    }
    template <class Pass>
    RowTotals sum_piece(const Pass& pass, const Row& row, int64_t r, int64_t piece) const {
        const int64_t j = piece * kPiece;
        const Sums<T> sums = walk_row(pass.of_row(r * M_), row, r * M_ + j, std::min(kPiece, M_ - j));
        return {sums.first.total(), sums.second.total()};
    }
    template <class Pass>
    RowTotals sum_row(const Pass& pass, const Row& row, int64_t r) const {
        RowTotals of = sum_piece(pass, row, r, 0);
        for (int64_t i = 1; i < pieces_; ++i) of.add(sum_piece(pass, row, r, i));
        return of;
    }
    template <class Pass, class Before, class Finish>
    void sum_together(const Pass& pass, const Before& before, const Finish& finish) const {
        const Scratch memory(R_ * pieces_ * int64_t(sizeof(RowTotals)));
        RowTotals* parts = memory.as<RowTotals>();
        parallel(R_ * pieces_, threads_, Order::forward, [&](int64_t task) {
            const int64_t r = task / pieces_;
            parts[task] = sum_piece(pass, before(r), r, task % pieces_);
        });
        for (int64_t r = 0; r < R_; ++r) {
            RowTotals of = parts[r * pieces_];
            for (int64_t i = 1; i < pieces_; ++i) of.add(parts[r * pieces_ + i]);
            finish(r, of);
        }
    }

    // --- statistics and coefficients ------------------------------------------------------------------------

    double shift(int64_t r) const {
        return call_.centred ? value({const_cast<void*>(call_.x), call_.dtype}, r * M_, 0) : 0;
    }
    Row row_of(Pair mean, double var) const {
        const Inverse<T> exact = inverse_deviation<T>(var, call_.eps);
        const double rstd = double(exact);
        const bool wide = !(fits_f32(mean.hi) && fits_f32(rstd)) || (var != 0 && var < 0x1p-200);
        return {mean.hi, mean.lo, rstd, double(exact - rstd), 0, 0, wide};
    }
    Row measured(int64_t r, const RowTotals& of) const {
        const Moments m = call_.centred ? moments_about(shift(r), of.first, of.second, double(M_))
                                        : Moments{{0, 0}, of.second.hi / double(M_)};
        call_.stats[r] = m.mean.hi, call_.stats[R_ + r] = m.var, call_.stats[2 * R_ + r] = m.mean.lo;
        return row_of(m.mean, m.var);
    }
    Row given(int64_t r) const {
        return row_of({call_.stats[r], call_.stats[2 * R_ + r]}, call_.stats[R_ + r]);
    }
    Row with_gradient(Row row, const RowTotals& of) const {
        row.b = -of.second.hi / double(M_);
        row.c = call_.centred ? -of.first.hi / double(M_) : 0;
        row.wide = row.wide || !(fits_f32(row.b) && fits_f32(row.c));
        return row;
    }

    // --- a tile, column by column ---------------------------------------------------------------------------

    // Σ dy xhat and Σ dy over the rows of a tile, added to those of its chunk.
    template <class A>
    void walk_tile(int64_t r, const Row* rows, int n, int64_t j0, int64_t j1, double* of) const {
        A by[kTile][3];
        for (int i = 0; i < n; ++i) {
            const OneRow row{rows[i]};
            by[i][0] = row.get<A>(kRowHi), by[i][1] = row.get<A>(kRowLo), by[i][2] = row.get<A>(kRowRstd);
        }
        int64_t j = j0;
        for (; j + L <= j1; j += L) walk_column<A>(r, by, n, j, of, All{});
        if (j < j1) walk_column<A>(r, by, n, j, of, First{int(j1 - j)});
    }
    template <class A, class Lanes>
    NORMKIT_INLINE void walk_column(int64_t r, const A (*by)[3], int n, int64_t j, double* of, Lanes lanes) const {
        A dweight{}, dbias{};
        for (int i = 0; i < n; ++i) {
            const int64_t at = (r + i) * M_ + j;
            const A v = load<A>(dy() + at, lanes);
            dweight = fma(v, ((load<A>(x() + at, lanes) - by[i][0]) - by[i][1]) * by[i][2], dweight);
            dbias = dbias + v;
        }
        store(of + j, load<D>(of + j, lanes) + in_f64(dweight), lanes);
        store(of + M_ + j, load<D>(of + M_ + j, lanes) + in_f64(dbias), lanes);
    }
    void add_chunks(const double* partial, int64_t chunks) const {
        const int64_t block = 1024;
        parallel(ceil_div(M_, block), threads_for(chunks * M_), Order::forward, [&](int64_t task) {
            for (int64_t j = task * block; j < std::min(M_, (task + 1) * block); ++j) {
                double dweight = 0, dbias = 0;
                for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                    dweight += partial[2 * chunk * M_ + j];
                    dbias += partial[(2 * chunk + 1) * M_ + j];
                }
                assign(call_.dweight, j, dweight);
                assign(call_.dbias, j, dbias);
            }
        });
    }
};

}  // namespace

void rows_forward(const RowsCall& call) {
    with_dtype(call.dtype, [&](auto t) { Rows<decltype(t)>(call).forward(); });
}
void rows_backward(const RowsCall& call) {
    with_dtype(call.dtype, [&](auto t) { Rows<decltype(t)>(call).backward(); });
}

}  // namespace normkit::NORMKIT_ISA
