// Vectors of L lanes: F in f32, D in f64 (as two halves), with loads from and stores to every dtype.
//
// This header is compiled once per instruction set, inside a namespace of its name. Arithmetic is written with
// the compiler's vector extensions; intrinsics appear only where the language has no word for an instruction:
// fused multiply-add, masked access, half conversion, streaming stores.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "call.hpp"

namespace normkit::NORMKIT_ISA {

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX2__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif

template <class E, int lanes>
struct VectorOf {
    typedef E type __attribute__((vector_size(sizeof(E) * lanes)));
};
template <class E, int lanes>
using Vector = typename VectorOf<E, lanes>::type;

using F = Vector<float, L>;
using I = Vector<int32_t, L>;  // also the truth values of F: -1 or 0
using U = Vector<uint32_t, L>;
using HalfF = Vector<float, L / 2>;
using HalfD = Vector<double, L / 2>;
using HalfJ = Vector<int64_t, L / 2>;
using Words = Vector<uint16_t, L>;

struct J {  // the truth values of D
    HalfJ low, high;
};

struct D {
    HalfD low, high;
    NORMKIT_INLINE D operator+(D v) const { return {low + v.low, high + v.high}; }
    NORMKIT_INLINE D operator-(D v) const { return {low - v.low, high - v.high}; }
    NORMKIT_INLINE D operator*(D v) const { return {low * v.low, high * v.high}; }
    NORMKIT_INLINE D operator/(D v) const { return {low / v.low, high / v.high}; }
    NORMKIT_INLINE D operator-() const { return {-low, -high}; }
    NORMKIT_INLINE J operator>(D v) const { return {low > v.low, high > v.high}; }
    NORMKIT_INLINE J operator<=(D v) const { return {low <= v.low, high <= v.high}; }
};

// Which lanes an operation touches. keep() sets the others to zero.
struct All {};
struct First {  // the tail of a run
    int n;
};
struct Masked {  // the lanes of a run, or of its tail, at positions that count
    int n;
    I kept;
};

// --- lanes and arithmetic -----------------------------------------------------------------------------------

template <int from, class V, size_t... i>
auto part(V v, std::index_sequence<i...>) {
    return __builtin_shufflevector(v, v, int(i) + from...);
}
template <class V, size_t... i>
auto join(V low, V high, std::index_sequence<i...>) {
    return __builtin_shufflevector(low, high, int(i)...);
}
using Half = std::make_index_sequence<L / 2>;
using Whole = std::make_index_sequence<L>;

// Conversions between element types. The compiler's own splits a 512-bit one into four.
#if defined(__AVX512F__)
NORMKIT_INLINE HalfD to_f64(HalfF v) { return _mm512_cvtps_pd(v); }
NORMKIT_INLINE HalfF to_f32(HalfD v) { return _mm512_cvtpd_ps(v); }
NORMKIT_INLINE HalfJ to_i64(Vector<int32_t, L / 2> v) { return (HalfJ)_mm512_cvtepi32_epi64((__m256i)v); }
NORMKIT_INLINE U to_u32(Words v) { return (U)_mm512_cvtepu16_epi32((__m256i)v); }
NORMKIT_INLINE Words to_u16(U v) { return (Words)_mm512_cvtepi32_epi16((__m512i)v); }
#elif defined(__AVX2__)
NORMKIT_INLINE HalfD to_f64(HalfF v) { return _mm256_cvtps_pd(v); }
NORMKIT_INLINE HalfF to_f32(HalfD v) { return _mm256_cvtpd_ps(v); }
NORMKIT_INLINE HalfJ to_i64(Vector<int32_t, L / 2> v) { return (HalfJ)_mm256_cvtepi32_epi64((__m128i)v); }
NORMKIT_INLINE U to_u32(Words v) { return (U)_mm256_cvtepu16_epi32((__m128i)v); }
NORMKIT_INLINE Words to_u16(U v) {
    const __m256i packed = _mm256_packus_epi32((__m256i)v & _mm256_set1_epi32(0xffff), _mm256_setzero_si256());
    return (Words)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0b1000));
}
#else
NORMKIT_INLINE HalfD to_f64(HalfF v) { return __builtin_convertvector(v, HalfD); }
NORMKIT_INLINE HalfF to_f32(HalfD v) { return __builtin_convertvector(v, HalfF); }
NORMKIT_INLINE HalfJ to_i64(Vector<int32_t, L / 2> v) { return __builtin_convertvector(v, HalfJ); }
NORMKIT_INLINE U to_u32(Words v) { return __builtin_convertvector(v, U); }
NORMKIT_INLINE Words to_u16(U v) { return __builtin_convertvector(v, Words); }
#endif

NORMKIT_INLINE D widen(F v) { return {to_f64(part<0>(v, Half{})), to_f64(part<L / 2>(v, Half{}))}; }
NORMKIT_INLINE J widen(I v) { return {to_i64(part<0>(v, Half{})), to_i64(part<L / 2>(v, Half{}))}; }
NORMKIT_INLINE D in_f64(F v) { return widen(v); }
NORMKIT_INLINE D in_f64(D v) { return v; }
NORMKIT_INLINE F narrow(D v) { return join(to_f32(v.low), to_f32(v.high), Whole{}); }

// The sum of n lanes, by halves.
template <class E, int n>
NORMKIT_INLINE E sum_of(Vector<E, n> v) {
    if constexpr (n == 2)
        return v[0] + v[1];
    else
        return sum_of<E, n / 2>(part<0>(v, std::make_index_sequence<n / 2>{}) +
                                part<n / 2>(v, std::make_index_sequence<n / 2>{}));
}

template <class A>
A splat(double v);
template <>
NORMKIT_INLINE F splat<F>(double v) {
    return float(v) - F{};
}
template <>
NORMKIT_INLINE D splat<D>(double v) {
    return {v - HalfD{}, v - HalfD{}};
}

NORMKIT_INLINE F select(I yes, F a, F b) { return yes ? a : b; }
NORMKIT_INLINE D select(J yes, D a, D b) { return {yes.low ? a.low : b.low, yes.high ? a.high : b.high}; }

// a * b + c, rounded once; in f64 only where the instruction set can.
NORMKIT_INLINE F fma(F a, F b, F c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return narrow(widen(a) * widen(b) + widen(c));  // the product is exact in f64
#endif
}
NORMKIT_INLINE HalfD fma(HalfD a, HalfD b, HalfD c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f64(c, a, b);
#else
    return a * b + c;
#endif
}
NORMKIT_INLINE D fma(D a, D b, D c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }

NORMKIT_INLINE I lane_numbers() {
    I index;
    for (int i = 0; i < L; ++i) index[i] = i;
    return index;
}
NORMKIT_INLINE I first_lanes(int n) { return lane_numbers() < n; }
NORMKIT_INLINE F keep(F v, All) { return v; }
NORMKIT_INLINE D keep(D v, All) { return v; }
NORMKIT_INLINE F keep(F v, First lanes) { return select(first_lanes(lanes.n), v, F{}); }
NORMKIT_INLINE D keep(D v, First lanes) { return select(widen(first_lanes(lanes.n)), v, D{}); }
NORMKIT_INLINE F keep(F v, Masked lanes) { return select(lanes.kept, v, F{}); }
NORMKIT_INLINE D keep(D v, Masked lanes) { return select(widen(lanes.kept), v, D{}); }

// --- half types ---------------------------------------------------------------------------------------------

template <class To, class From>
To bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &v, sizeof to);
    return to;
}

#if defined(__AVX512BW__)
// One shuffle: word i becomes the upper half of lane i.
NORMKIT_INLINE F from_half(bf16, Words h) {
    const __m512i words = _mm512_castsi256_si512(bits<__m256i>(h));
    return bits<F>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, bits<__m512i>(lane_numbers() << 16), words));
}
#else
NORMKIT_INLINE F from_half(bf16, Words h) { return bits<F>(to_u32(h) << 16); }
#endif

// Round to nearest even; every NaN becomes the quiet one, as in torch.
NORMKIT_INLINE Words to_half(bf16, F v) {
    const U b = bits<U>(v);
    const U rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return to_u16((v == v) ? rounded : U{} + 0x7fc0);
}

#if defined(__AVX512F__)
NORMKIT_INLINE F from_half(f16, Words h) { return _mm512_cvtph_ps(bits<__m256i>(h)); }
NORMKIT_INLINE Words to_half(f16, F v) { return bits<Words>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__F16C__)
NORMKIT_INLINE F from_half(f16, Words h) { return _mm256_cvtph_ps(bits<__m128i>(h)); }
NORMKIT_INLINE Words to_half(f16, F v) { return bits<Words>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
NORMKIT_INLINE F from_half(f16, Words h) { return vcvt_f32_f16(bits<float16x4_t>(h)); }
NORMKIT_INLINE Words to_half(f16, F v) { return bits<Words>(vcvt_f16_f32(v)); }
#else
// The exponent is moved by a multiplication with 2^112, which normalizes subnormal halves as well.
NORMKIT_INLINE F from_half(f16, Words h) {
    const U wide = to_u32(h);
    const U magnitude = (wide & 0x7fff) << 13;
    const U finite = bits<U>(bits<F>(magnitude) * 0x1p112f);
    const U value = ((wide & 0x7c00) == 0x7c00) ? (magnitude | 0x7f800000) : finite;
    return bits<F>(value | ((wide & 0x8000) << 16));
}
// Results below 2^-14 are rounded by adding 0.5, whose last place is that of a subnormal half; others by the carry.
NORMKIT_INLINE Words to_half(f16, F v) {
    const U b = bits<U>(v), magnitude = b & 0x7fffffff;
    const U small = bits<U>(bits<F>(magnitude) + 0.5f) - 0x3f000000;
    const U normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const U large = (magnitude > 0x7f800000) ? U{} + 0x7e00 : U{} + 0x7c00;
    const U value = (magnitude >= 0x47800000) ? large : ((magnitude < 0x38800000) ? small : normal);
    return to_u16(value | ((b >> 16) & 0x8000));
}
#endif

// Two vectors, the words of a before those of b.
using WordPairs = Vector<uint16_t, 2 * L>;
template <class T>
NORMKIT_INLINE WordPairs to_half(T, F a, F b) {
    return join(to_half(T{}, a), to_half(T{}, b), std::make_index_sequence<2 * L>{});
}
#if defined(__AVX512BW__)
// bf16 in arithmetic on words, a third of the instructions: the carry out of the lower half is the top bit of an
// average. It saturates, so that a NaN stays one. No comparison: those with a mask for a result are slow.
template <size_t... i>
NORMKIT_INLINE WordPairs round_pairs(F a, F b, std::index_sequence<i...>) {
    const WordPairs first = bits<WordPairs>(a), second = bits<WordPairs>(b);
    const WordPairs upper = __builtin_shufflevector(first, second, int(2 * i + 1)...);
    const WordPairs lower = __builtin_shufflevector(first, second, int(2 * i)...);
    const WordPairs half = (upper & 1) | 0x7ffe;  // one less than what rounds up, as the average adds one
    const WordPairs carry = bits<WordPairs>(_mm512_avg_epu16(bits<__m512i>(lower), bits<__m512i>(half))) >> 15;
    const WordPairs sum = bits<WordPairs>(_mm512_adds_epu16(bits<__m512i>(upper | 0x8000), bits<__m512i>(carry)));
    return (sum & 0x7fff) | (upper & 0x8000);
}
NORMKIT_INLINE WordPairs to_half(bf16, F a, F b) { return round_pairs(a, b, std::make_index_sequence<2 * L>{}); }
#endif

// --- memory -------------------------------------------------------------------------------------------------

template <class V, class E>
NORMKIT_INLINE V read(const E* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class E>
NORMKIT_INLINE V read(const E* p, int n) {
    V v{};
    std::memcpy(&v, p, n * sizeof(E));
    return v;
}
#if defined(__AVX512BW__) && defined(__AVX512VL__)
template <>
NORMKIT_INLINE F read<F>(const float* p, int n) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
template <class H>
NORMKIT_INLINE Words read_words(const H* p, int n) {
    return bits<Words>(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
}
#else
template <class H>
NORMKIT_INLINE Words read_words(const H* p, int n) {
    return read<Words>(p, n);
}
#endif

template <class T>
constexpr bool is_half = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

// A is F or D; an F is never made from f64.
template <class A, class T>
NORMKIT_INLINE A load(const T* p, All) {
    if constexpr (std::is_same_v<T, double>) {
        return D{read<HalfD>(p), read<HalfD>(p + L / 2)};
    } else if constexpr (std::is_same_v<A, D> && std::is_same_v<T, float>) {
        return D{to_f64(read<HalfF>(p)), to_f64(read<HalfF>(p + L / 2))};
    } else if constexpr (std::is_same_v<A, D>) {
        return widen(load<F>(p, All{}));
    } else if constexpr (is_half<T>) {
        return from_half(T{}, read<Words>(p));
    } else {
        return read<F>(p);
    }
}
template <class A, class T>
NORMKIT_INLINE A load(const T* p, First lanes) {
    if constexpr (std::is_same_v<T, double>) {
        double padded[L] = {};
        std::memcpy(padded, p, lanes.n * sizeof(double));
        return load<D>(padded, All{});
    } else if constexpr (std::is_same_v<A, D>) {
        return widen(load<F>(p, lanes));
    } else if constexpr (is_half<T>) {
        return from_half(T{}, read_words(p, lanes.n));
    } else {
        return read<F>(p, lanes.n);
    }
}
// Positions that do not count are read as zero, whatever lies there.
template <class A, class T>
NORMKIT_INLINE A load(const T* p, Masked lanes) {
    const A v = lanes.n == L ? load<A>(p, All{}) : load<A>(p, First{lanes.n});
    return keep(v, lanes);
}

template <class T, class A>
NORMKIT_INLINE auto pack(A v) {
    if constexpr (std::is_same_v<T, double>)
        return v;
    else if constexpr (std::is_same_v<A, D>)
        return pack<T>(narrow(v));
    else if constexpr (is_half<T>)
        return to_half(T{}, v);
    else
        return v;
}

template <class T, class A>
NORMKIT_INLINE void store(T* p, A v, All) {
    const auto packed = pack<T>(v);
    static_assert(sizeof packed == L * sizeof(T));
    if constexpr (std::is_same_v<T, double>) {  // by halves: the whole would pass through the stack
        std::memcpy(p, &packed.low, sizeof packed.low);
        std::memcpy(p + L / 2, &packed.high, sizeof packed.high);
    } else {
        std::memcpy(p, &packed, sizeof packed);
    }
}
template <class T, class A>
NORMKIT_INLINE void store(T* p, A v, First lanes) {
    const auto packed = pack<T>(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 mask = __mmask16((1u << lanes.n) - 1);
    if constexpr (is_half<T>) return _mm256_mask_storeu_epi16(p, mask, bits<__m256i>(packed));
    if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, mask, packed);
#endif
    std::memcpy(p, &packed, lanes.n * sizeof(T));
}
template <class T, class A>
NORMKIT_INLINE void store(T* p, A v, Masked lanes) {
    lanes.n == L ? store(p, v, All{}) : store(p, v, First{lanes.n});
}

// Two vectors to two places: half types are rounded in one.
template <class T, class A>
NORMKIT_INLINE void store(T* p, A v, T* q, A w) {
    if constexpr (is_half<T> && std::is_same_v<A, F>) {
        const WordPairs packed = to_half(T{}, v, w);
        const Words first = part<0>(packed, Whole{}), second = part<L>(packed, Whole{});
        std::memcpy(p, &first, sizeof first);
        std::memcpy(q, &second, sizeof second);
    } else {
        store(p, v, All{});
        store(q, w, All{});
    }
}

// A store of what is packed that does not pass through the cache; p is aligned to it.
template <class T, class Packed>
NORMKIT_INLINE void stream_packed(T* p, Packed packed) {
#if defined(__AVX512F__)
    if constexpr (is_half<T>) return _mm256_stream_si256((__m256i*)p, bits<__m256i>(packed));
    if constexpr (std::is_same_v<T, float>) return _mm512_stream_ps(p, packed);
    if constexpr (std::is_same_v<T, double>)
        return _mm512_stream_pd(p, packed.low), _mm512_stream_pd(p + L / 2, packed.high);
#elif defined(__AVX2__)
    if constexpr (is_half<T>) return _mm_stream_si128((__m128i*)p, bits<__m128i>(packed));
    if constexpr (std::is_same_v<T, float>) return _mm256_stream_ps(p, packed);
    if constexpr (std::is_same_v<T, double>)
        return _mm256_stream_pd(p, packed.low), _mm256_stream_pd(p + L / 2, packed.high);
#endif
    std::memcpy(p, &packed, sizeof packed);
}
template <class T, class A>
NORMKIT_INLINE void stream(T* p, A v) {
    stream_packed(p, pack<T>(v));
}
template <class T, class A>
NORMKIT_INLINE void stream(T* p, A v, T* q, A w) {
    if constexpr (is_half<T> && std::is_same_v<A, F>) {
        const WordPairs packed = to_half(T{}, v, w);
        stream_packed(p, part<0>(packed, Whole{}));
        stream_packed(q, part<L>(packed, Whole{}));
    } else {
        stream(p, v);
        stream(q, w);
    }
}

// Streamed data are in memory before anything that follows.
inline void stream_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

}  // namespace normkit::NORMKIT_ISA
