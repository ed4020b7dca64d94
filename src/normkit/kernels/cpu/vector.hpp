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
    D operator+(D v) const { return {low + v.low, high + v.high}; }
    D operator-(D v) const { return {low - v.low, high - v.high}; }
    D operator*(D v) const { return {low * v.low, high * v.high}; }
    D operator/(D v) const { return {low / v.low, high / v.high}; }
    D operator-() const { return {-low, -high}; }
    J operator>(D v) const { return {low > v.low, high > v.high}; }
    J operator<=(D v) const { return {low <= v.low, high <= v.high}; }
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

inline D widen(F v) {
    return {__builtin_convertvector(part<0>(v, Half{}), HalfD), __builtin_convertvector(part<L / 2>(v, Half{}), HalfD)};
}
inline J widen(I v) {
    return {__builtin_convertvector(part<0>(v, Half{}), HalfJ), __builtin_convertvector(part<L / 2>(v, Half{}), HalfJ)};
}
inline F narrow(D v) {
    return join(__builtin_convertvector(v.low, HalfF), __builtin_convertvector(v.high, HalfF), Whole{});
}

template <class A>
A splat(double v);
template <>
inline F splat<F>(double v) {
    return float(v) - F{};
}
template <>
inline D splat<D>(double v) {
    return {v - HalfD{}, v - HalfD{}};
}

inline F select(I yes, F a, F b) { return yes ? a : b; }
inline D select(J yes, D a, D b) { return {yes.low ? a.low : b.low, yes.high ? a.high : b.high}; }

// a * b + c, rounded once where the instruction set can.
inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}
inline HalfD fma(HalfD a, HalfD b, HalfD c) {
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
inline D fma(D a, D b, D c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }

inline I first_lanes(int n) {
    I index;
    for (int i = 0; i < L; ++i) index[i] = i;
    return index < n;
}
inline F keep(F v, All) { return v; }
inline D keep(D v, All) { return v; }
inline F keep(F v, First lanes) { return select(first_lanes(lanes.n), v, F{}); }
inline D keep(D v, First lanes) { return select(widen(first_lanes(lanes.n)), v, D{}); }
inline F keep(F v, Masked lanes) { return select(lanes.kept, v, F{}); }
inline D keep(D v, Masked lanes) { return select(widen(lanes.kept), v, D{}); }

// --- half types ---------------------------------------------------------------------------------------------

template <class To, class From>
To bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &v, sizeof to);
    return to;
}

inline F from_half(bf16, Words h) { return bits<F>(__builtin_convertvector(h, U) << 16); }

// Round to nearest even; every NaN becomes the quiet one, as in torch.
inline Words to_half(bf16, F v) {
    const U b = bits<U>(v);
    const U rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return __builtin_convertvector((v == v) ? rounded : U{} + 0x7fc0, Words);
}

#if defined(__AVX512F__)
inline F from_half(f16, Words h) { return _mm512_cvtph_ps(bits<__m256i>(h)); }
inline Words to_half(f16, F v) { return bits<Words>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__F16C__)
inline F from_half(f16, Words h) { return _mm256_cvtph_ps(bits<__m128i>(h)); }
inline Words to_half(f16, F v) { return bits<Words>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
inline F from_half(f16, Words h) { return vcvt_f32_f16(bits<float16x4_t>(h)); }
inline Words to_half(f16, F v) { return bits<Words>(vcvt_f16_f32(v)); }
#else
// The exponent is moved by a multiplication with 2^112, which normalizes subnormal halves as well.
inline F from_half(f16, Words h) {
    const U wide = __builtin_convertvector(h, U);
    const U magnitude = (wide & 0x7fff) << 13;
    const U finite = bits<U>(bits<F>(magnitude) * 0x1p112f);
    const U value = ((wide & 0x7c00) == 0x7c00) ? (magnitude | 0x7f800000) : finite;
    return bits<F>(value | ((wide & 0x8000) << 16));
}
// Results below 2^-14 are rounded by adding 0.5, whose last place is that of a subnormal half; others by the carry.
inline Words to_half(f16, F v) {
    const U b = bits<U>(v), magnitude = b & 0x7fffffff;
    const U small = bits<U>(bits<F>(magnitude) + 0.5f) - 0x3f000000;
    const U normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const U large = (magnitude > 0x7f800000) ? U{} + 0x7e00 : U{} + 0x7c00;
    const U value = (magnitude >= 0x47800000) ? large : ((magnitude < 0x38800000) ? small : normal);
    return __builtin_convertvector(value | ((b >> 16) & 0x8000), Words);
}
#endif

// --- memory -------------------------------------------------------------------------------------------------

template <class V, class E>
V read(const E* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class E>
V read(const E* p, int n) {
    V v{};
    std::memcpy(&v, p, n * sizeof(E));
    return v;
}
#if defined(__AVX512BW__) && defined(__AVX512VL__)
template <>
inline F read<F>(const float* p, int n) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
template <class H>
inline Words read_words(const H* p, int n) {
    return bits<Words>(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
}
#else
template <class H>
inline Words read_words(const H* p, int n) {
    return read<Words>(p, n);
}
#endif

template <class T>
constexpr bool is_half = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

// A is F or D; an F is never made from f64.
template <class A, class T>
A load(const T* p, All) {
    if constexpr (std::is_same_v<T, double>) {
        return D{read<HalfD>(p), read<HalfD>(p + L / 2)};
    } else if constexpr (std::is_same_v<A, D> && std::is_same_v<T, float>) {
        return D{__builtin_convertvector(read<HalfF>(p), HalfD),
                 __builtin_convertvector(read<HalfF>(p + L / 2), HalfD)};
    } else if constexpr (std::is_same_v<A, D>) {
        return widen(load<F>(p, All{}));
    } else if constexpr (is_half<T>) {
        return from_half(T{}, read<Words>(p));
    } else {
        return read<F>(p);
    }
}
template <class A, class T>
A load(const T* p, First lanes) {
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
A load(const T* p, Masked lanes) {
    const A v = lanes.n == L ? load<A>(p, All{}) : load<A>(p, First{lanes.n});
    return keep(v, lanes);
}

template <class T, class A>
auto pack(A v) {
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
void store(T* p, A v, All) {
    const auto packed = pack<T>(v);
    static_assert(sizeof packed == L * sizeof(T));
    std::memcpy(p, &packed, sizeof packed);
}
template <class T, class A>
void store(T* p, A v, First lanes) {
    const auto packed = pack<T>(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 mask = __mmask16((1u << lanes.n) - 1);
    if constexpr (is_half<T>) return _mm256_mask_storeu_epi16(p, mask, bits<__m256i>(packed));
    if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, mask, packed);
#endif
    std::memcpy(p, &packed, lanes.n * sizeof(T));
}
template <class T, class A>
void store(T* p, A v, Masked lanes) {
    lanes.n == L ? store(p, v, All{}) : store(p, v, First{lanes.n});
}

// A store that does not pass through the cache; p is aligned to the L lanes.
template <class T, class A>
void stream(T* p, A v) {
    const auto packed = pack<T>(v);
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

// Streamed data are in memory before anything that follows.
inline void stream_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

}  // namespace normkit::NORMKIT_ISA
