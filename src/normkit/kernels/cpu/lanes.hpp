// Vectors of L lanes: F in f32, D in f64 (as two halves), and their arithmetic.
//
// This header and those that it is included by are compiled once per instruction set, inside a namespace of its
// name. Arithmetic is written with the compiler's vector extensions; intrinsics appear only where the language has
// no word for an instruction: fused multiply-add, masked access, half conversion, streaming stores.

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

// 2 L lanes of f32: neighbours in memory that come apart by twos, the even ones first.
struct FF {
    F first, second;
    NORMKIT_INLINE FF operator+(FF v) const { return {first + v.first, second + v.second}; }
    NORMKIT_INLINE FF operator-(FF v) const { return {first - v.first, second - v.second}; }
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
template <>
NORMKIT_INLINE FF splat<FF>(double v) {
    return {splat<F>(v), splat<F>(v)};
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
NORMKIT_INLINE FF fma(FF a, FF b, FF c) { return {fma(a.first, b.first, c.first), fma(a.second, b.second, c.second)}; }
NORMKIT_INLINE D fma(D a, D b, D c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }

// The lanes in the order of memory.
template <size_t... i>
FF in_order(FF v, std::index_sequence<i...>) {
    return {__builtin_shufflevector(v.first, v.second, int(i / 2 + i % 2 * L)...),
            __builtin_shufflevector(v.first, v.second, int(L / 2 + i / 2 + i % 2 * L)...)};
}
NORMKIT_INLINE FF in_order(FF v) { return in_order(v, Whole{}); }

NORMKIT_INLINE I lane_numbers() {
    I index;
    for (int i = 0; i < L; ++i) index[i] = i;
    return index;
}
NORMKIT_INLINE I first_lanes(int n) { return lane_numbers() < n; }
NORMKIT_INLINE F keep(F v, All) { return v; }
NORMKIT_INLINE D keep(D v, All) { return v; }
NORMKIT_INLINE FF keep(FF v, All) { return v; }
NORMKIT_INLINE F keep(F v, First lanes) { return select(first_lanes(lanes.n), v, F{}); }
NORMKIT_INLINE D keep(D v, First lanes) { return select(widen(first_lanes(lanes.n)), v, D{}); }
NORMKIT_INLINE F keep(F v, Masked lanes) { return select(lanes.kept, v, F{}); }
NORMKIT_INLINE D keep(D v, Masked lanes) { return select(widen(lanes.kept), v, D{}); }

template <class To, class From>
To bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &v, sizeof to);
    return to;
}

}  // namespace normkit::NORMKIT_ISA
