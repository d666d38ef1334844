// Vectors of the instruction set this file is compiled for, and loads that widen any float type to float32.
//
// Every name lives in act::ACT_ISA, and nothing from the C++ library is instantiated here: an inline function shared
// between files built for different instruction sets could be merged by the linker into the one a CPU cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#include "../kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace act {
namespace ACT_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;  // SSE2, NEON
#endif
constexpr int LANES = VECTOR_BYTES / 4;

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t Longs __attribute__((vector_size(VECTOR_BYTES)));
typedef int16_t Shorts __attribute__((vector_size(VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(VECTOR_BYTES)));
typedef float HalfFloats __attribute__((vector_size(VECTOR_BYTES / 2)));

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

// Calls `f` with a value of the format that a matrix of `dtype` holds.
template <class F>
static void with_format(DType dtype, const F& f) {
    switch (dtype) {
        case DType::float32: return f(float());
        case DType::bfloat16: return f(bfloat16());
        case DType::float16: return f(float16());
        default: return;  // checks.h refuses every other
    }
}

constexpr int32_t INFINITY_BITS = 0x7f800000;
constexpr int32_t MAGNITUDE_BITS = 0x7fffffff;

template <class To, class From>
static inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class Vector>
static inline Vector load(const void* from) {
    Vector values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

template <class Vector>
static inline void store(void* to, Vector values) {
    std::memcpy(to, &values, sizeof values);
}

// a * b + c rounded once, where the processor can. Contraction by the compiler is off: bits do not hang on its taste.
static inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
    for (int lane = 0; lane < LANES; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return c;
#else
    return a * b + c;
#endif
}

static inline Floats all(float value) { return Floats{} + value; }

template <int I>
struct Index {
    constexpr operator int() const { return I; }
};

// body(0) to body(N - 1) with constant indices: arrays indexed by them alone stay in registers.
template <int N, class Body>
static inline __attribute__((always_inline)) void each(const Body& body) {
    if constexpr (N > 0) {
        each<N - 1>(body);
        body(Index<N - 1>{});
    }
}
#define ACT_INLINE __attribute__((always_inline))  // for lambdas given to `each`

// Stores an aligned vector past the caches: for output that is too large to be found there by its reader.
template <class Vector>
static inline void stream(void* to, Vector values) {
#if defined(__AVX512F__)
    _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)values);
#elif defined(__AVX2__)
    _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)values);
#elif defined(__SSE2__)
    _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)values);
#else
    store(to, values);
#endif
}

// Orders streamed stores before whatever tells other threads that they are done.
static inline void finish_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// to[lane] += values[lane], in explicit vectors: compilers leave this loop scalar.
static inline void accumulate(double* to, Floats values) {
    HalfFloats halves[2];
    std::memcpy(halves, &values, sizeof values);
    for (int h = 0; h < 2; ++h, to += LANES / 2) store(to, load<Doubles>(to) + __builtin_convertvector(halves[h], Doubles));
}

static inline void accumulate(int32_t* to, Ints values) { store(to, load<Ints>(to) + values); }

// Even lanes first, then odd ones.
static inline void accumulate(int32_t* to, Shorts values) {
    accumulate(to, ((Ints)values << 16) >> 16);
    accumulate(to + LANES, (Ints)values >> 16);
}

static inline int even_odd_slot(int channel) { return channel % 2 * LANES + channel / 2; }

// counts += bits > 0 per lane: true exactly for positive floats of the lane's width, NaN aside.
static inline void count_positive(Ints& counts, Ints bits) {
#if defined(__AVX512F__)
    const __mmask16 positive = _mm512_cmpgt_epi32_mask((__m512i)bits, _mm512_setzero_si512());
    counts = (Ints)_mm512_mask_sub_epi32((__m512i)counts, positive, (__m512i)counts, _mm512_set1_epi32(-1));
#else
    counts -= bits > 0;  // a comparison is -1 where true
#endif
}

static inline void count_positive(Shorts& counts, Shorts bits) {
#if defined(__AVX512BW__)
    const __mmask32 positive = _mm512_cmpgt_epi16_mask((__m512i)bits, _mm512_setzero_si512());
    counts = (Shorts)_mm512_mask_sub_epi16((__m512i)counts, positive, (__m512i)counts, _mm512_set1_epi16(-1));
#else
    counts -= bits > 0;
#endif
}

// The bits of |x|, which order like |x| itself, with infinity and then NaN above all numbers.
static inline Ints magnitude(Ints bits) { return bits & MAGNITUDE_BITS; }
static inline Shorts magnitude(Shorts bits) { return bits & int16_t(0x7fff); }

static inline Ints infinite(Floats x) { return magnitude((Ints)x) >= INFINITY_BITS; }  // or NaN

static inline bool any(Ints flags) {
    int32_t result = 0;
    for (int lane = 0; lane < LANES; ++lane) result |= flags[lane];
    return result != 0;
}

static inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }
static inline Shorts larger(Shorts a, Shorts b) { return a > b ? a : b; }

// How one full vector of values of type T becomes PARTS float vectors. Lane `slot(c)` of the parts laid end to end holds
// channel c of the vector: 16-bit types split into even and odd channels where that is cheaper than keeping the order.
// PRECISION masks the bits of a float32 that T can hold. `round` rounds to T, ties to even, and stays float32; `join`
// rounds and undoes `split`. Both expect NaN only as T holds it or as the processor makes it: no low bit set.
template <class T>
struct Format;

template <>
struct Format<float> {
    typedef Ints Bits;
    static constexpr int PARTS = 1, PRECISION = -1;
    static constexpr bool EVEN_ODD = false;  // whether the parts hold the even and the odd channels
    static void split(Bits bits, Floats parts[PARTS]) { parts[0] = (Floats)bits; }
    static Floats round(Floats x) { return x; }
    static Bits join(const Floats parts[PARTS]) { return (Bits)parts[0]; }
    static int slot(int channel) { return channel; }
};

template <>
struct Format<bfloat16> {
    typedef Shorts Bits;
    static constexpr int PARTS = 2, PRECISION = int32_t(0xffff0000);
    static constexpr bool EVEN_ODD = true;
    static void split(Bits bits, Floats parts[PARTS]) {
        parts[0] = (Floats)((Ints)bits << 16);
        parts[1] = (Floats)((Ints)bits & int32_t(0xffff0000));
    }
    static Floats round(Floats x) { return (Floats)(carried(x) & 0xffff0000); }
    static Bits join(const Floats parts[PARTS]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
        return (Bits)_mm256_blend_epi16((__m256i)(carried(parts[0]) >> 16), (__m256i)carried(parts[1]), 0xaa);
#else
        return (Bits)((carried(parts[0]) >> 16) | (carried(parts[1]) & 0xffff0000));
#endif
    }
    static int slot(int channel) { return even_odd_slot(channel); }

private:
    // With the upper half rounded.
    static Words carried(Floats x) {
#if defined(__AVX512F__)
        const __mmask16 odd = _mm512_test_epi32_mask((__m512i)x, _mm512_set1_epi32(0x10000));
        const __m512i bits = (__m512i)((Words)x + 0x7fff);
        return (Words)_mm512_mask_sub_epi32(bits, odd, bits, _mm512_set1_epi32(-1));
#else
        return (Words)x + 0x8000 + (Words)(((Words)x & 0x10000) == 0);  // a comparison is -1 where true
#endif
    }
};

template <>
struct Format<float16> {
    typedef Shorts Bits;
    static constexpr int PARTS = 2, PRECISION = int32_t(0xffffe000);
#if defined(__AVX512F__) || defined(__F16C__)
    static constexpr bool EVEN_ODD = false;
    static void split(Bits bits, Floats parts[PARTS]) {
#if defined(__AVX512F__)
        parts[0] = (Floats)_mm512_cvtph_ps(_mm512_castsi512_si256((__m512i)bits));
        parts[1] = (Floats)_mm512_cvtph_ps(_mm512_extracti64x4_epi64((__m512i)bits, 1));
#else
        parts[0] = (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128((__m256i)bits));
        parts[1] = (Floats)_mm256_cvtph_ps(_mm256_extracti128_si256((__m256i)bits, 1));
#endif
    }
    static Floats round(Floats x) {
#if defined(__AVX512F__)
        return (Floats)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#else
        return (Floats)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#endif
    }
    static Bits join(const Floats parts[PARTS]) {
#if defined(__AVX512F__)
        const __m256i low = _mm512_cvtps_ph((__m512)parts[0], _MM_FROUND_TO_NEAREST_INT);
        return (Bits)_mm512_inserti64x4(_mm512_castsi256_si512(low),
                                        _mm512_cvtps_ph((__m512)parts[1], _MM_FROUND_TO_NEAREST_INT), 1);
#else
        return (Bits)_mm256_set_m128i(_mm256_cvtps_ph((__m256)parts[1], _MM_FROUND_TO_NEAREST_INT),
                                      _mm256_cvtps_ph((__m256)parts[0], _MM_FROUND_TO_NEAREST_INT));
#endif
    }
    static int slot(int channel) { return channel; }
#else
    static constexpr bool EVEN_ODD = true;
    static void split(Bits bits, Floats parts[PARTS]) {
        parts[0] = expand((Ints)bits << 16);
        parts[1] = expand((Ints)bits & int32_t(0xffff0000));
    }
    static Floats round(Floats x) { return expand((Ints)shrink(x)); }
    static Bits join(const Floats parts[PARTS]) { return (Bits)((shrink(parts[0]) >> 16) | shrink(parts[1])); }
    static int slot(int channel) { return even_odd_slot(channel); }

private:
    // From the upper half of a lane: shift the exponent into place and rescale by 2^112; exact, subnormals included.
    static Floats expand(Ints upper) {
        const Ints magnitude = (upper & 0x7fff0000) >> 3;
        const Ints finite = (Ints)((Floats)magnitude * bit_cast<float>(0x77800000));
        const Ints special = magnitude | INFINITY_BITS;
        return (Floats)((upper & int32_t(0x80000000)) | (magnitude >= (0x7c00 << 13) ? special : finite));
    }
    // Into the upper half of a lane; see narrow() below.
    static Words shrink(Floats x) {
        const Ints size = magnitude((Ints)x);
        const Ints normal = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
        const Ints subnormal = (Ints)((Floats)size + 0.5f) - 0x3f000000;
        Ints half = size < 0x38800000 ? subnormal : normal;
        half = size >= 0x477ff000 ? Ints{} + 0x7c00 : half;
        half = size > INFINITY_BITS ? Ints{} + 0x7e00 : half;
        return ((Words)x & 0x80000000) | ((Words)half << 16);
    }
#endif
};

static inline float widen(float x) { return x; }
static inline float widen(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
static inline float widen(float16 x) {
    const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
    const uint32_t bits = magnitude >= (0x7c00u << 13)
                              ? magnitude | uint32_t(INFINITY_BITS)
                              : bit_cast<uint32_t>(bit_cast<float>(magnitude) * bit_cast<float>(0x77800000u));
    return bit_cast<float>(bits | uint32_t(x.bits & 0x8000) << 16);
}

// Round to nearest, ties to even.
static inline void narrow(float x, float& to) { to = x; }
static inline void narrow(float x, bfloat16& to) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const bool is_nan = (bits & MAGNITUDE_BITS) > uint32_t(INFINITY_BITS);
    to.bits = uint16_t(is_nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline void narrow(float x, float16& to) {
    const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & MAGNITUDE_BITS;
    uint32_t half;
    if (magnitude > uint32_t(INFINITY_BITS)) half = 0x7e00;       // NaN
    else if (magnitude >= 0x477ff000) half = 0x7c00;              // rounds to 65536 or more
    else if (magnitude < 0x38800000)                              // subnormal: adding 0.5 aligns the last bit
        half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
    else half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    to.bits = uint16_t(half | (bits >> 16 & 0x8000));
}

}  // namespace ACT_ISA
}  // namespace act
