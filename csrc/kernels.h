// The native kernels: arguments by pointer, size and stride, one set of functions per instruction set.
#pragma once

#include <cstdint>

namespace act {

// The order is that of DTYPES in checks.h. The kernels compute on the first three.
enum class DType { float32, bfloat16, float16, float64, int64, boolean };

// The value of row r and column c lies at data + r * row_stride + c * column_stride elements. A vector is one row.
// blend_rows takes any column stride; every other kernel takes 1.
struct Matrix {
    void* data;
    int64_t rows, columns;
    int64_t row_stride, column_stride;
    DType dtype;
};

// A block [7, columns] of doubles; statistic s starts at data + s * stride (see act_kernels/statistics.py).
struct Moments {
    double* data;
    int64_t stride;
};

// Rows offsets[e] to offsets[e + 1] of x are those of segment e; its moments begin e * segment_stride doubles after the first.
struct Segments {
    Matrix x;
    Moments moments;
    int64_t segment_stride;
    const int64_t* offsets;
    int64_t count;
};

// What is swapped is the donor's output for the target's input; without data, it and the last two blocks are not measured.
struct Pair {
    Matrix donor, target, swapped;
    Moments blocks[5];  // donor, target, donor - target, swapped - target, product of these two
};

enum Statistic { COUNT, MEAN, M2, SUM_ABS, MAX_ABS, POSITIVE, NONFINITE, STATISTICS };

// `count` rows of a target and a donor; `gathered`: the donor has these rows only, one after the other.
struct Blend {
    Matrix target, donor;
    const int64_t* rows;
    int64_t count;
    bool gathered;
    double strength;
};

// The order is that of ACTIVATIONS in checks.h.
enum class Activation { silu, gelu, gelu_tanh, relu, relu2 };

// product = activation(gate) * up, contiguous. Moments with null data are not measured, here and below.
struct GatedMlp {
    Matrix gate, up;
    void* product;
    Activation activation;
    Moments gate_moments, up_moments, product_moments;
};

// Heads of `width` values side by side; of each, the first `turned` turn by the row `row % length` of table
// `row / length`, or of the only one. A matrix without data is left out.
struct Rotary {
    struct Heads {
        Matrix x;
        void* out;  // contiguous; null measures only
        Moments moments;
    } q, k, v;
    int64_t width, turned;
    const void* cos;
    const void* sin;
    int64_t length, tables;
    bool interleaved, round_once;
};

// The order is that of NORM_STYLES in checks.h.
enum class NormStyle { rms, rms_float, rms_one_plus, layer };

// total = residual + x and its norm, both contiguous; without a residual, total is x and not written.
struct AddNorm {
    Matrix x, residual;
    const void* weight;
    const void* bias;
    float eps;
    NormStyle style;
    void* total;
    void* norm;
    Moments x_moments, norm_moments;
};

// mask: one byte per row, 0 = not counted; null counts every row.
#define ACT_DECLARE_KERNELS(ISA)                                                                                     \
    namespace ISA {                                                                                                  \
    void column_moments(const Matrix& x, const uint8_t* mask, Moments, int threads);                                 \
    void segment_moments(const Segments&, const uint8_t* mask, int threads);                                  \
    void pair_moments(const Pair&, const uint8_t* mask, int threads);                                                \
    void blend_rows(const Blend&, int threads);                                                                      \
    void gated_mlp(const GatedMlp&, const uint8_t* mask, int threads);                                        \
    void rotary(const Rotary&, const uint8_t* mask, int threads);                                             \
    void add_norm(const AddNorm&, const uint8_t* mask, int threads);                                          \
    }

ACT_DECLARE_KERNELS(baseline)
ACT_DECLARE_KERNELS(avx2)
ACT_DECLARE_KERNELS(avx512)

}  // namespace act
