// Conversions between f32 and the half types, a vector or two at a time. They round to nearest even.

#pragma once

#include "lanes.hpp"

namespace normkit::NORMKIT_ISA {

template <class T>
constexpr bool is_half = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

#if defined(__AVX512BW__)
// One shuffle: word i becomes the upper half of lane i.
NORMKIT_INLINE F from_half(bf16, Words h) {
    const __m512i words = _mm512_castsi256_si512(bits<__m256i>(h));
    return bits<F>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, bits<__m512i>(lane_numbers() << 16), words));
}
#else
NORMKIT_INLINE F from_half(bf16, Words h) { return bits<F>(to_u32(h) << 16); }
#endif

// In the upper halves. Every NaN becomes the quiet one.
NORMKIT_INLINE U rounded_to_bf16(F v) {
    const U b = bits<U>(v);
    return (v == v) ? b + 0x7fff + ((b >> 16) & 1) : U{} + 0x7fc00000;
}
NORMKIT_INLINE Words to_half(bf16, F v) { return to_u16(rounded_to_bf16(v) >> 16); }

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
WordPairs round_pairs(F a, F b, std::index_sequence<i...>) {
    const WordPairs first = bits<WordPairs>(a), second = bits<WordPairs>(b);
    const WordPairs upper = __builtin_shufflevector(first, second, int(2 * i + 1)...);
    const WordPairs lower = __builtin_shufflevector(first, second, int(2 * i)...);
    const WordPairs half = (upper & 1) | 0x7ffe;  // one less than what rounds up, as the average adds one
    const WordPairs carry = bits<WordPairs>(_mm512_avg_epu16(bits<__m512i>(lower), bits<__m512i>(half))) >> 15;
    const WordPairs sum = bits<WordPairs>(_mm512_adds_epu16(bits<__m512i>(upper | 0x8000), bits<__m512i>(carry)));
    return (sum & 0x7fff) | (upper & 0x8000);
}
[[gnu::noinline, gnu::cold]] inline WordPairs round_pairs(F a, F b) {
    return round_pairs(a, b, std::make_index_sequence<2 * L>{});
}

// The processor's own rounding, where it has one, is a sixth of that, but takes subnormal numbers for zero: it is for
// vectors without any. In assembly, because the compiler would want all of this file to be for such processors.
inline const int without_rounding = !__builtin_cpu_supports("avx512bf16");

NORMKIT_INLINE WordPairs to_half(bf16, F a, F b) {
    constexpr int subnormal = 0x20;
    if (__builtin_expect(without_rounding, 0)) return round_pairs(a, b, std::make_index_sequence<2 * L>{});
    const __mmask16 in_a = _mm512_fpclass_ps_mask(a, subnormal), in_b = _mm512_fpclass_ps_mask(b, subnormal);
    if (__builtin_expect(!_mm512_kortestz(in_a, in_b), 0)) return round_pairs(a, b);
    __m512i rounded;
    asm volatile("vcvtne2ps2bf16 %1, %2, %0" : "=v"(rounded) : "v"(a), "v"(b));  // not ahead of the question
    return bits<WordPairs>(rounded);
}
#endif

// bf16 comes apart by twos: the halves of a 32-bit word, without a shuffle.
template <class T>
constexpr bool by_twos = std::is_same_v<T, bf16>;

NORMKIT_INLINE FF from_twos(U words) { return {bits<F>(words << 16), bits<F>(words & 0xffff0000)}; }
#if defined(__AVX512BW__)
template <size_t... i>
NORMKIT_INLINE U to_twos(FF v, std::index_sequence<i...>) {
    const WordPairs packed = to_half(bf16{}, v.first, v.second);
    return bits<U>(__builtin_shufflevector(packed, packed, int(i / 2 + i % 2 * L)...));
}
NORMKIT_INLINE U to_twos(FF v) { return to_twos(v, std::make_index_sequence<2 * L>{}); }
#else
NORMKIT_INLINE U to_twos(FF v) { return rounded_to_bf16(v.first) >> 16 | (rounded_to_bf16(v.second) & 0xffff0000); }
#endif

}  // namespace normkit::NORMKIT_ISA
