// Loads of vectors from every dtype, and stores to it.

#pragma once

#include "half.hpp"

namespace normkit::NORMKIT_ISA {

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

// A is F or D; an F is never made from f64.
template <class A, class T>
NORMKIT_INLINE A load(const T* p, All) {
    if constexpr (std::is_same_v<A, FF>) {
        return from_twos(read<U>(p));
    } else if constexpr (std::is_same_v<T, double>) {
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
    if constexpr (std::is_same_v<A, FF>)
        return to_twos(v);
    else if constexpr (std::is_same_v<T, double>)
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
    static_assert(sizeof packed == L * sizeof(T) * (std::is_same_v<A, FF> ? 2 : 1));
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
    if constexpr (std::is_same_v<Packed, D>) return stream_packed(p, packed.low), stream_packed(p + L / 2, packed.high);
#if defined(__AVX512F__)
    if constexpr (sizeof packed == 64) return _mm512_stream_si512((__m512i*)p, bits<__m512i>(packed));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof packed == 32) return _mm256_stream_si256((__m256i*)p, bits<__m256i>(packed));
    if constexpr (sizeof packed == 16) return _mm_stream_si128((__m128i*)p, bits<__m128i>(packed));
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
