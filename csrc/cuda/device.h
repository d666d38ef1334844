// What the CUDA kernels share: values of three types in packs of 16 bytes, warps, and launches that report errors.
//
// Host compilers read this too: the tests compile every kernel against an emulated <cuda_runtime.h> and run it on a CPU.
#pragma once

#include <cuda_runtime.h>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace act {
namespace cuda {

constexpr int WARP = 32, WARPS = 4, THREADS = WARP * WARPS;
constexpr unsigned ALL_LANES = 0xffffffffu;

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

// Calls `f` with a value of the format that a matrix of `dtype` holds.
template <class F>
inline void with_format(DType dtype, const F& f) {
    switch (dtype) {
        case DType::float32: return f(float());
        case DType::bfloat16: return f(bfloat16());
        case DType::float16: return f(float16());
        default: return;  // checks.h refuses every other
    }
}

__host__ __device__ inline float as_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

__host__ __device__ inline uint32_t as_bits(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

// Float32 of a value's bits, and the bits of the nearest value (ties to even) of a float32, by type.
template <class T>
struct Format;

template <>
struct Format<float> {
    typedef uint32_t Bits;
    __host__ __device__ static float widen(uint32_t bits) { return as_float(bits); }
    __host__ __device__ static uint32_t narrow(float value) { return as_bits(value); }
};

template <>
struct Format<bfloat16> {
    typedef uint16_t Bits;
    __host__ __device__ static float widen(uint32_t bits) { return as_float(bits << 16); }
    __host__ __device__ static uint32_t narrow(float value) {
#ifdef __CUDA_ARCH__
        return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
        const uint32_t bits = as_bits(value);
        if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
        return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#endif
    }
};

template <>
struct Format<float16> {
    typedef uint16_t Bits;
    __host__ __device__ static float widen(uint32_t bits) {
#ifdef __CUDA_ARCH__
        return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
        const uint32_t sign = (bits & 0x8000) << 16, size = bits & 0x7fff;
        if (size >= 0x7c00) return as_float(sign | 0x7f800000 | (size & 0x3ff) << 13);
        return as_float(sign | as_bits(as_float(size << 13) * 0x1p112f));
#endif
    }
    __host__ __device__ static uint32_t narrow(float value) {
#ifdef __CUDA_ARCH__
        return __half_as_ushort(__float2half_rn(value));
#else
        const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
        if (size > 0x7f800000) return 0x7fff;
        if (size >= 0x477ff000) return sign | 0x7c00;  // rounds past 65504
        if (size < 0x38800000)  // subnormal: the addition rounds at 2^-24, the smallest step
            return sign | (as_bits(as_float(size) + 0.5f) - as_bits(0.5f));
        return sign | ((size + 0xfff + ((size >> 13) & 1)) - 0x38000000) >> 13;
#endif
    }
};

template <class T>
struct Name;
template <>
struct Name<float> { static constexpr DType type = DType::float32; };
template <>
struct Name<bfloat16> { static constexpr DType type = DType::bfloat16; };
template <>
struct Name<float16> { static constexpr DType type = DType::float16; };

template <class T>
__host__ __device__ inline float widen(T value) {
    typename Format<T>::Bits bits;
    memcpy(&bits, &value, sizeof bits);
    return Format<T>::widen(bits);
}

template <class T>
__host__ __device__ inline float rounded(float value) {
    return Format<T>::widen(Format<T>::narrow(value));
}

// N neighbouring values as they lie in memory, loaded and stored by as few instructions as their alignment allows.
template <class T, int N>
struct Pack {
    static constexpr int WORDS = N * int(sizeof(T)) / 4, BYTES = 4 * WORDS;
    static_assert(WORDS == 1 || WORDS == 2 || WORDS == 4, "a pack is 4, 8 or 16 bytes");
    uint32_t word[WORDS];

    __device__ void clear() {
#pragma unroll
        for (int w = 0; w < WORDS; ++w) word[w] = 0;
    }
    __device__ float operator[](int j) const {
        if (sizeof(T) == 4) return as_float(word[j]);
        return Format<T>::widen(j % 2 ? word[j / 2] >> 16 : word[j / 2] & 0xffff);
    }
    // The values of `from`, rounded to T.
    __device__ void round(const float (&from)[N]) {
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            if (sizeof(T) == 4) word[w] = as_bits(from[w]);
            else word[w] = Format<T>::narrow(from[2 * w]) | Format<T>::narrow(from[2 * w + 1]) << 16;
        }
    }
    // BYTES-aligned.
    __device__ void load(const T* from) {
        if constexpr (WORDS == 4) {
            const uint4 raw = *reinterpret_cast<const uint4*>(from);
            word[0] = raw.x, word[1] = raw.y, word[2] = raw.z, word[3] = raw.w;
        } else if constexpr (WORDS == 2) {
            const uint2 raw = *reinterpret_cast<const uint2*>(from);
            word[0] = raw.x, word[1] = raw.y;
        } else {
            word[0] = *reinterpret_cast<const uint32_t*>(from);
        }
    }
    __device__ void store(T* to) const {
        if constexpr (WORDS == 4) *reinterpret_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
        else if constexpr (WORDS == 2) *reinterpret_cast<uint2*>(to) = make_uint2(word[0], word[1]);
        else *reinterpret_cast<uint32_t*>(to) = word[0];
    }
    // The first `count` values, wherever they lie; the rest is 0.
    __device__ void load(const T* from, int count) {
        const typename Format<T>::Bits* const bits = reinterpret_cast<const typename Format<T>::Bits*>(from);
        clear();
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (j < count) word[j * int(sizeof(T)) / 4] |= uint32_t(bits[j]) << (sizeof(T) == 4 ? 0 : 16 * (j % 2));
    }
    __device__ void store(T* to, int count) const {
        typename Format<T>::Bits* const bits = reinterpret_cast<typename Format<T>::Bits*>(to);
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (j < count) bits[j] = typename Format<T>::Bits(word[j * int(sizeof(T)) / 4] >> (sizeof(T) == 4 ? 0 : 16 * (j % 2)));
    }
};

// A matrix whose channels are neighbours; `aligned`: every row starts at a multiple of 16 bytes.
template <class T>
struct View {
    T* data;
    int64_t row_stride;
    bool aligned;
};

template <class T>
View<T> view(const void* data, int64_t row_stride) {
    const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_stride * int64_t(sizeof(T)) % 16 == 0;
    return {static_cast<T*>(const_cast<void*>(data)), row_stride, aligned};
}

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ inline double warp_sum(double value) {
#pragma unroll
    for (int distance = WARP / 2; distance; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__host__ __device__ inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Throws std::runtime_error that names the op, unless `status` is success.
void check(const char* op, cudaError_t status);

// Makes a device the current one, for as long as it lives.
class OnDevice {
public:
    OnDevice(const char* op, int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), int64_t blocks, dim3 threads, Place place,
            Arguments... arguments) {
    if (blocks < 1) return;
    require_grid(op, blocks);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = threads;
    config.stream = static_cast<cudaStream_t>(place.stream);
    check(op, cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace cuda
}  // namespace act
