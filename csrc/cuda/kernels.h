// The CUDA kernels: the structs of ../kernels.h with pointers into one GPU, a place to run, and memory to work in.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../kernels.h"

namespace act {
namespace cuda {

// A device ordinal and one of its streams, a cudaStream_t; null is the default stream.
struct Place {
    int device;
    void* stream;
};

// Rows of one matrix that step towards those of another: a row of the table that the kernel reads on the GPU.
struct BlendEntry {
    int64_t target, donor, rows;  // addresses; `rows` of int64
    int64_t count, width;
    int64_t target_row_stride, target_column_stride;
    int64_t donor_row_stride, donor_column_stride;
    int64_t gathered;  // 1: row k of the donor belongs to rows[k] of the target; 0: the donor has all rows
    int64_t strength;  // the bits of a double
};

constexpr int BLEND_TILE = 4096;  // values that one block of threads blends

// Float32 values of workspace that an op needs.
int64_t column_moments_workspace(DType, int64_t rows, int64_t columns);
int64_t segment_moments_workspace(DType, int64_t rows, int64_t columns, int64_t segments);
int64_t pair_moments_workspace(DType, int64_t rows, int64_t columns, bool swapped);
int64_t gated_mlp_workspace(DType, int64_t rows, int64_t columns);
int64_t rotary_workspace(DType, int64_t rows, int64_t q_columns, int64_t k_columns, int64_t v_columns);
int64_t add_norm_workspace(DType, int64_t rows, int64_t columns);

// All work is queued on the stream of `Place`; errors of a launch throw std::runtime_error, naming the op.
void column_moments(const Matrix& x, const uint8_t* mask, Moments, float* workspace, Place);
void segment_moments(const Segments&, const uint8_t* mask, float* workspace, Place);
void pair_moments(const Pair&, const uint8_t* mask, float* workspace, Place);
// `first_tiles` [entries]: tiles of the entries before each; `tiles`: of all.
void blend_rows(DType, const int64_t* first_tiles, const BlendEntry* table, int64_t entries, int64_t tiles, Place);
void gated_mlp(const GatedMlp&, const uint8_t* mask, float* workspace, Place);
void rotary(const Rotary&, const uint8_t* mask, float* workspace, Place);
void add_norm(const AddNorm&, const uint8_t* mask, float* workspace, Place);

// Why the kernels cannot run on a device: no driver, one too old, no code for its architecture. Empty if they can.
std::string refusal(int device);

inline void require_grid(const char* op, int64_t blocks) {
    if (blocks >= int64_t(1) << 31) throw std::invalid_argument(std::string(op) + ": the matrix needs too many blocks");
}

}  // namespace cuda
}  // namespace act
