// The activations of gated MLPs on float32 vectors, with the arithmetic of PyTorch's CPU operators.
#pragma once

#include "vectors.h"

namespace act {
namespace ACT_ISA {

// Bounds that let NaN through.
static inline Floats at_least(Floats x, float bound) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x);
#else
    return x < bound ? all(bound) : x;
#endif
}

static inline Floats at_most(Floats x, float bound) {
#if defined(__AVX512F__)
    return (Floats)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x);
#else
    return x > bound ? all(bound) : x;
#endif
}

// x * 2^power for whole powers from -152 to 152, rounded once.
static inline Floats scale(Floats x, Floats power) {
#if defined(__AVX512F__)
    return (Floats)_mm512_scalef_ps((__m512)x, (__m512)power);
#else
    const Ints whole = __builtin_convertvector(power, Ints), half = whole >> 1;
    return x * (Floats)((half + 127) << 23) * (Floats)((whole - half + 127) << 23);
#endif
}

// e^x within 1 ulp: Cody and Waite's reduction by ln 2 in two parts, then the minimax polynomial that SLEEF's expf
// uses, evaluated in its order; where the processor fuses, the bits are SLEEF's, hence PyTorch's.
static inline Floats exponential(Floats x) {
    constexpr float ROUNDER = 12582912;  // 1.5 * 2^23: adding it rounds to a whole number
    x = at_most(at_least(x, -105), 101);  // beyond, the result is 0 or infinite anyhow
    const Floats power = (x * 1.442695040888963407f + ROUNDER) - ROUNDER;
    Floats s = fused(power, all(-0.693145751953125f), x);
    s = fused(power, all(-1.428606765330187045e-06f), s);
    Floats u = all(0.000198527617612853646278381f);
    u = fused(u, s, all(0.00139304355252534151077271f));
    u = fused(u, s, all(0.00833336077630519866943359f));
    u = fused(u, s, all(0.0416664853692054748535156f));
    u = fused(u, s, all(0.166666671633720397949219f));
    u = fused(u, s, all(0.5f));
    return scale(fused(s * s, u, s) + 1, power);
}

struct Silu {
    static Floats of(Floats x) { return x / (exponential(-x) + 1); }
};

struct Relu {
    static Floats of(Floats x) { return at_least(x, 0); }  // keeps -0, as PyTorch does
};

struct Relu2 {
    static Floats of(Floats x) {
        const Floats positive = at_least(x, 0);
        return positive * positive;
    }
};

}  // namespace ACT_ISA
}  // namespace act
