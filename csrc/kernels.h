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

// Rows [rows] of a target and a donor with the same layout.
struct Blend {
    void* target;
    const void* donor;
    const int64_t* rows;
    int64_t count;
    int64_t width;
    int64_t target_row_stride, target_column_stride;
    int64_t donor_row_stride, donor_column_stride;
    float strength;
};

// mask: one byte per row, 0 = not counted; null counts every row.
#define ACT_DECLARE_KERNELS(ISA)                                                                                     \
    namespace ISA {                                                                                                  \
    void column_moments(DType, Matrix x, const uint8_t* mask, Moments, int threads);                                 \
    void pair_moments(DType, Matrix donor, Matrix target, const uint8_t* mask, const Moments blocks[3], int threads); \
    void blend_rows(DType, Blend, int threads);                                                                      \
    }

ACT_DECLARE_KERNELS(baseline)
ACT_DECLARE_KERNELS(avx2)
ACT_DECLARE_KERNELS(avx512)

}  // namespace act
