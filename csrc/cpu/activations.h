// The activations of gated MLPs, with the arithmetic of PyTorch's CPU operators.
//
// Each works on N vectors at once, step by step: a long chain of dependent operations alone leaves the processor idle.
#pragma once

#include "vectors.h"

namespace act {
namespace ACT_ISA {

// Lets NaN and -0 through.
static inline Floats at_least(Floats x, float bound) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x);
#else
    return x < bound ? all(bound) : x;
#endif
}

// x, or the nearest bound; NaN gives anything.
static inline Floats between(Floats x, float low, float high) {
#if defined(__AVX512F__)
    return (Floats)_mm512_min_ps(_mm512_set1_ps(high), (__m512)at_least(x, low));
#elif defined(__AVX2__)
    return (Floats)_mm256_min_ps(_mm256_set1_ps(high), (__m256)at_least(x, low));
#else
    x = at_least(x, low);
    return x > high ? all(high) : x;
#endif
}

// x, or `bound` with the sign of x where x lies beyond; NaN gives anything.
static inline Floats limited(Floats x, float bound) {
#if defined(__AVX512DQ__)
    return (Floats)_mm512_range_ps((__m512)x, _mm512_set1_ps(bound), 2);
#else
    return between(x, -bound, bound);
#endif
}

static inline Floats with_sign(Floats size, Floats sign) {
    return (Floats)(((Ints)size & MAGNITUDE_BITS) | ((Ints)sign & ~MAGNITUDE_BITS));
}

// The nearest whole number, ties to even, of |x| < 2^22.
static inline Floats nearest(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Floats)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    constexpr float ROUNDER = 12582912;  // 1.5 * 2^23: the last bit of the sum is 1
    return (x + ROUNDER) - ROUNDER;
#endif
}

// The largest whole number that is at most x, of |x| < 2^22.
static inline Floats whole(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Floats)_mm256_floor_ps((__m256)x);
#else
    const Floats near = nearest(x);
    return near > x ? near - 1 : near;
#endif
}

// For whole powers from -126 to 127.
static inline Floats power_of_two(Floats power) {
    return (Floats)((__builtin_convertvector(power, Ints) + 127) << 23);
}

// e^-x within 1 ulp, of numbers up to 80 (beyond, at least e^-80 is added to 1 all the same): Cody and Waite's reduction
// by ln 2 in two parts, then the minimax polynomial of SLEEF's expf in its order of evaluation. Where the processor fuses,
// these are the bits of PyTorch's vectorised exp.
template <int N>
static inline void decay(const Floats* from, Floats* to) {
    constexpr float ROUNDER = 12582912 + 126;  // 1.5 * 2^23, so that the sum ends in the exponent of half a power of two
    Floats x[N], power[N], square[N], u[N], half[N];
    each<N>([&](auto i) ACT_INLINE { x[i] = between(from[i], -89, 80); });  // e^89 is infinite
    each<N>([&](auto i) ACT_INLINE { power[i] = x[i] * -1.442695040888963407f + ROUNDER; });
    each<N>([&](auto i) ACT_INLINE { half[i] = (Floats)((Ints)power[i] << 23); });
    each<N>([&](auto i) ACT_INLINE { power[i] -= ROUNDER; });
    each<N>([&](auto i) ACT_INLINE { x[i] = fused(power[i], all(0.693145751953125f), x[i]); });
    each<N>([&](auto i) ACT_INLINE { x[i] = fused(power[i], all(1.428606765330187045e-06f), x[i]); });
    each<N>([&](auto i) ACT_INLINE {
        u[i] = fused(all(0.000198527617612853646278381f), x[i], all(-0.00139304355252534151077271f));
    });
    each<N>([&](auto i) ACT_INLINE { square[i] = x[i] * x[i]; });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(u[i], x[i], all(0.00833336077630519866943359f)); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(u[i], x[i], all(-0.0416664853692054748535156f)); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(u[i], x[i], all(0.166666671633720397949219f)); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(u[i], x[i], all(-0.5f)); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(square[i], u[i], x[i]); });
    each<N>([&](auto i) ACT_INLINE { to[i] = fused(u[i], all(-2), all(2)) * half[i]; });
}

struct Silu {
    template <int N>
    static void apply(Floats* x) {
        Floats e[N];
        decay<N>(x, e);
        each<N>([&](auto i) ACT_INLINE { x[i] /= e[i] + 1; });
    }
};

// e^-x within 20 ulp, of x from 0 on: what PyTorch takes for the exponential in erf, in its order of evaluation.
template <int N>
static inline void rough_decay(const Floats* from, Floats* to) {
    Floats x[N], power[N], u[N];
    each<N>([&](auto i) ACT_INLINE { x[i] = -limited(from[i], 87); });
    each<N>([&](auto i) ACT_INLINE { power[i] = whole(fused(x[i], all(1.44269502f), all(0.5f))); });
    each<N>([&](auto i) ACT_INLINE { x[i] = fused(-power[i], all(0.693147182f), x[i]); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(x[i], all(0.00828929059f), all(0.0418978221f)); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(x[i], u[i], all(0.166676521f)); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(x[i], u[i], all(0.499991506f)); });
    each<N>([&](auto i) ACT_INLINE { u[i] = fused(x[i], u[i], all(0.999999701f)); });
    each<N>([&](auto i) ACT_INLINE { to[i] = fused(x[i], u[i], all(1)) * power_of_two(power[i]); });
}

// x / 2 * (1 + erf(x / sqrt 2)), erf by formula 7.1.26 of Abramowitz and Stegun, as PyTorch's operator evaluates it.
struct Gelu {
    template <int N>
    static void apply(Floats* x) {
        Floats a[N], e[N], t[N], r[N];
        each<N>([&](auto i) ACT_INLINE { a[i] = x[i] * 0.70710678118654752440f; });
        each<N>([&](auto i) ACT_INLINE { e[i] = a[i] * a[i]; });
        rough_decay<N>(e, e);
        each<N>([&](auto i) ACT_INLINE { t[i] = 1 / fused(all(0.3275911f), (Floats)magnitude((Ints)a[i]), all(1)); });
        each<N>([&](auto i) ACT_INLINE { r[i] = fused(all(1.061405429f), t[i], all(-1.453152027f)); });
        each<N>([&](auto i) ACT_INLINE { r[i] = fused(r[i], t[i], all(1.421413741f)); });
        each<N>([&](auto i) ACT_INLINE { r[i] = fused(r[i], t[i], all(-0.284496736f)); });
        each<N>([&](auto i) ACT_INLINE { r[i] = fused(r[i], t[i], all(0.254829592f)); });
        each<N>([&](auto i) ACT_INLINE { r[i] = fused(-e[i] * t[i], r[i], all(1)); });
        each<N>([&](auto i) ACT_INLINE { r[i] = (Floats)((Ints)r[i] ^ ((Ints)a[i] & ~MAGNITUDE_BITS)); });
        each<N>([&](auto i) ACT_INLINE { x[i] *= 0.5f; });
        each<N>([&](auto i) ACT_INLINE { x[i] = fused(x[i], r[i], x[i]); });
    }
};

// A float and what it leaves out, with the arithmetic of SLEEF's double floats.
struct Wide {
    Floats head, tail;
};

static inline Wide plus(Wide a, Floats b) {
    const Floats sum = a.head + b, part = sum - a.head;
    return {sum, ((a.head - (sum - part)) + (b - part)) + a.tail};
}
// Of a second that is no larger than the first: three operations less for the same bits.
static inline Wide plus_smaller(Floats a, Wide b) {
    const Floats sum = a + b.head;
    return {sum, ((a - sum) + b.head) + b.tail};
}
static inline Wide plus_smaller(Wide a, Wide b) {
    const Floats sum = a.head + b.head;
    return {sum, ((a.head - sum) + b.head) + (a.tail + b.tail)};
}
static inline Wide plus_smaller_in_turn(Wide a, Wide b) {  // the tails one after the other
    const Floats sum = a.head + b.head;
    return {sum, ((a.head - sum) + b.head + a.tail) + b.tail};
}
static inline Wide times(Wide a, Floats b) {
    const Floats product = a.head * b;
    return {product, fused(a.tail, b, fused(a.head, b, -product))};
}
static inline Wide times(Wide a, Wide b) {
    const Floats product = a.head * b.head;
    return {product, fused(a.head, b.tail, fused(a.tail, b.head, fused(a.head, b.head, -product)))};
}
static inline Wide squared(Wide a) {
    const Floats square = a.head * a.head;
    return {square, fused(a.head + a.head, a.tail, fused(a.head, a.head, -square))};
}
static inline Wide over(Wide a, Wide b) {
    const Floats inverse = 1 / b.head, quotient = a.head * inverse, rest = fused(inverse, a.head, -quotient);
    const Floats correction = fused(-b.tail, inverse, fused(-b.head, inverse, all(1)));
    return {quotient, fused(quotient, correction, fused(a.tail, inverse, rest))};
}
static inline Wide inverse(Wide a) {
    const Floats head = 1 / a.head;
    return {head, head * fused(-a.tail, head, fused(-a.head, head, all(1)))};
}

// e^x for x from 0 to 10 by the polynomial of SLEEF's expk2f, with its bits.
static inline Wide wide_exp(Floats x) {
    const Floats power = nearest(x * 1.442695040888963407f);
    const Wide s = plus(Wide{x - power * 0.693145751953125f, Floats{}}, power * -1.428606765330187045e-06f);
    Floats u = fused(all(0.1980960224e-3f), s.head, all(0.1394256484e-2f));
    u = fused(u, s.head, all(0.8333456703e-2f));
    u = fused(u, s.head, all(0.4166637361e-1f));
    Wide t = plus_smaller(all(0.166666659414234244790680580464f), times(s, u));
    t = plus_smaller(all(0.5f), times(s, t));
    t = plus_smaller(all(1), plus_smaller(s, times(squared(s), t)));
    const Floats scale = power_of_two(power);
    return {t.head * scale, t.tail * scale};
}

// Within 1 ulp, for |x| up to 8.66, beyond which it is 1: where the processor fuses, the bits of PyTorch's vectorised tanh.
static inline Floats tanh(Floats x) {
    const Floats size = (Floats)magnitude((Ints)x);
    const Wide e = wide_exp(limited(size, 10)), rest = inverse(e);
    const Wide result = over(plus_smaller_in_turn(e, Wide{-rest.head, -rest.tail}), plus_smaller_in_turn(e, rest));
    return with_sign(size > 8.664339742f ? all(1) : result.head + result.tail, x);
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
struct GeluTanh {
    template <int N>
    static void apply(Floats* x) {
        Floats u[N];
        each<N>([&](auto i) ACT_INLINE { u[i] = fused(all(0.044715f), x[i] * x[i] * x[i], x[i]) * 0.79788456080286535588f; });
        each<N>([&](auto i) ACT_INLINE { u[i] = tanh(u[i]); });
        each<N>([&](auto i) ACT_INLINE { x[i] = x[i] * 0.5f * (u[i] + 1); });
    }
};

struct Relu {
    template <int N>
    static void apply(Floats* x) {
        each<N>([&](auto i) ACT_INLINE { x[i] = at_least(x[i], 0); });
    }
};

struct Relu2 {
    template <int N>
    static void apply(Floats* x) {
        Relu::apply<N>(x);
        each<N>([&](auto i) ACT_INLINE { x[i] *= x[i]; });
    }
};

}  // namespace ACT_ISA
}  // namespace act
