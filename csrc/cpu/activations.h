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

// x, or `bound` with the sign of x where x lies beyond; NaN gives anything.
static inline Floats limited(Floats x, float bound) {
#if defined(__AVX512DQ__)
    return (Floats)_mm512_range_ps((__m512)x, _mm512_set1_ps(bound), 2);
#elif defined(__AVX2__)
    return (Floats)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)at_least(x, -bound));
#else
    x = at_least(x, -bound);
    return x > bound ? all(bound) : x;
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

// x * 2^power for whole powers from -152 to 152, rounded once.
static inline Floats scaled(Floats x, Floats power) {
#if defined(__AVX512F__)
    return (Floats)_mm512_scalef_ps((__m512)x, (__m512)power);
#else
    const Ints whole = __builtin_convertvector(power, Ints), half = whole >> 1;
    return x * (Floats)((half + 127) << 23) * (Floats)((whole - half + 127) << 23);
#endif
}

// e^-x within 1 ulp, of numbers: Cody and Waite's reduction by ln 2 in two parts, then the minimax polynomial of SLEEF's
// expf in its order of evaluation. Where the processor fuses, these are the bits of PyTorch's vectorised exp.
template <int N>
static inline void decay(const Floats* from, Floats* to) {
    Floats x[N], power[N], square[N], u[N];
    each<N>([&](auto i) ACT_INLINE { x[i] = limited(from[i], 104); });  // beyond, e^-x is 0 or infinite
    each<N>([&](auto i) ACT_INLINE { power[i] = nearest(x[i] * -1.442695040888963407f); });
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
    each<N>([&](auto i) ACT_INLINE { to[i] = scaled(1 - u[i], power[i]); });
}

struct Silu {
    template <int N>
    static void apply(Floats* x) {
        Floats e[N];
        decay<N>(x, e);
        each<N>([&](auto i) ACT_INLINE { x[i] /= e[i] + 1; });
    }
};

// x / 2 * (1 + erf(x / sqrt 2)), erf within 1 ulp: near 0 a polynomial, elsewhere 1 - e^polynomial (N. Juffa's fits).
struct Gelu {
    template <int N>
    static void apply(Floats* x) {
        Floats a[N], t[N], s[N], u[N], far[N], near[N];
        each<N>([&](auto i) ACT_INLINE {
            a[i] = x[i] * 0.70710678118654752440f;
            t[i] = (Floats)magnitude((Ints)a[i]);
            s[i] = a[i] * a[i];
        });
        each<N>([&](auto i) ACT_INLINE {
            far[i] = fused(all(1.72853470e-5f), t[i], all(-3.83197126e-4f));
            u[i] = fused(all(3.88396438e-3f), t[i], all(-2.42546219e-2f));
            near[i] = fused(all(-5.96761703e-4f), s[i], all(4.99119423e-3f));
        });
        each<N>([&](auto i) ACT_INLINE { far[i] = fused(far[i], s[i], u[i]); });
        each<N>([&](auto i) ACT_INLINE { near[i] = fused(near[i], s[i], all(-2.67681349e-2f)); });
        each<N>([&](auto i) ACT_INLINE { far[i] = fused(far[i], t[i], all(1.06777877e-1f)); });
        each<N>([&](auto i) ACT_INLINE { near[i] = fused(near[i], s[i], all(1.12819925e-1f)); });
        each<N>([&](auto i) ACT_INLINE { far[i] = fused(far[i], t[i], all(6.34846687e-1f)); });
        each<N>([&](auto i) ACT_INLINE { near[i] = fused(near[i], s[i], all(-3.76125336e-1f)); });
        each<N>([&](auto i) ACT_INLINE { far[i] = fused(far[i], t[i], all(1.28717512e-1f)); });
        each<N>([&](auto i) ACT_INLINE { near[i] = fused(near[i], s[i], all(1.28379166e-1f)); });
        each<N>([&](auto i) ACT_INLINE { far[i] = t[i] > 10 ? all(104) : fused(far[i], t[i], t[i]); });
        decay<N>(far, u);
        each<N>([&](auto i) ACT_INLINE {
            const Floats erf = t[i] > 0.927734375f ? with_sign(1 - u[i], a[i]) : fused(near[i], a[i], a[i]);
            x[i] = x[i] * 0.5f * (erf + 1);
        });
    }
};

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), tanh |u| as 1 - 2 / (e^(2 |u|) + 1).
struct GeluTanh {
    template <int N>
    static void apply(Floats* x) {
        Floats u[N], e[N];
        each<N>([&](auto i) ACT_INLINE { u[i] = (x[i] + x[i] * x[i] * x[i] * 0.044715f) * 0.79788456080286535588f; });
        each<N>([&](auto i) ACT_INLINE { e[i] = (Floats)magnitude((Ints)u[i]) * 2; });
        decay<N>(e, e);
        each<N>([&](auto i) ACT_INLINE { x[i] = x[i] * 0.5f * (with_sign(1 - 2 * e[i] / (e[i] + 1), u[i]) + 1); });
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
