// The activations of gated MLPs, with the formulas and the functions of PyTorch's CUDA operators.
#pragma once

#include <cmath>

#include "device.h"

namespace act {
namespace cuda {

__host__ __device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

__host__ __device__ inline float gelu(float x) { return x * 0.5f * (1.0f + erff(x * 0.70710678118654752440f)); }

__host__ __device__ inline float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.79788456080286535588f * (x + 0.044715f * (x * x * x))));
}

// NaN stays NaN.
__host__ __device__ inline float relu(float x) { return x < 0 ? 0.0f : x; }

// Chosen at run time, outside the loop: an instantiation each would multiply the time of the build.
template <int N>
__host__ __device__ void activate(Activation activation, float (&x)[N]) {
    switch (activation) {
        case Activation::silu:
#pragma unroll
            for (int j = 0; j < N; ++j) x[j] = silu(x[j]);
            break;
        case Activation::gelu:
#pragma unroll
            for (int j = 0; j < N; ++j) x[j] = gelu(x[j]);
            break;
        case Activation::gelu_tanh:
#pragma unroll
            for (int j = 0; j < N; ++j) x[j] = gelu_tanh(x[j]);
            break;
        case Activation::relu:
#pragma unroll
            for (int j = 0; j < N; ++j) x[j] = relu(x[j]);
            break;
        case Activation::relu2:
#pragma unroll
            for (int j = 0; j < N; ++j) x[j] = relu(x[j]) * relu(x[j]);
            break;
    }
}

}  // namespace cuda
}  // namespace act
