// The native kernels: arguments by pointer, size and stride, one set of functions per instruction set.
#pragma once

#include <cstdint>

namespace act {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// A matrix whose row r starts at data + r * row_stride elements; columns are contiguous unless column_stride is used.
struct Matrix {
    const void* data;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;
};

// A block [7, columns] of doubles; statistic s starts at data + s * stride (see act_kernels/statistics.py).
struct Moments {
    double* data;
    int64_t stride;
};

enum Statistic { COUNT, MEAN, M2, SUM_ABS, MAX_ABS, POSITIVE, NONFINITE };

// Rows [rows] of a target and a donor; `gathered`: the donor has these rows only, one after the other.
struct Blend {
    void* target;
    const void* donor;
    const int64_t* rows;
    int64_t count;
    int64_t width;
    int64_t target_row_stride, target_column_stride;
    int64_t donor_row_stride, donor_column_stride;
    bool gathered;
    float strength;
};

enum class Activation : int { silu, gelu, gelu_tanh, relu, relu2 };

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

enum class NormStyle : int { rms, rms_float, rms_one_plus, layer };

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
    void column_moments(DType, Matrix x, const uint8_t* mask, Moments, int threads);                                 \
    void pair_moments(DType, Matrix donor, Matrix target, const uint8_t* mask, const Moments blocks[3], int threads); \
    void blend_rows(DType, Blend, int threads);                                                                      \
    void gated_mlp(DType, const GatedMlp&, const uint8_t* mask, int threads);                                        \
    void rotary(DType, const Rotary&, const uint8_t* mask, int threads);                                             \
    void add_norm(DType, const AddNorm&, const uint8_t* mask, int threads);                                          \
    }

ACT_DECLARE_KERNELS(baseline)
ACT_DECLARE_KERNELS(avx2)
ACT_DECLARE_KERNELS(avx512)

}  // namespace act
