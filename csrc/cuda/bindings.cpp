// The submodule act_kernels._native.cuda: checks what arrives as integers, drops the GIL, queues the kernels.
#include "../checks.h"
#include "kernels.h"

#include <pybind11/pybind11.h>

using act::choice;
using act::dtype_of;
using act::matrix;
using act::moments_at;
using act::pointer;
using act::cuda::Place;

namespace {

// Memory that an op works in; `needed` float32 values.
float* workspace_at(uintptr_t address, int64_t size, int64_t needed) {
    if (size < needed)
        throw std::invalid_argument("workspace must hold " + std::to_string(needed) + " values, got " +
                                    std::to_string(size));
    return pointer<float>("workspace", address);
}

Place place_of(int device, uintptr_t stream) {
    if (device < 0) throw std::invalid_argument("device must be an ordinal of at least 0, got " + std::to_string(device));
    return {device, reinterpret_cast<void*>(stream)};
}

const uint8_t* mask_at(uintptr_t address) { return reinterpret_cast<const uint8_t*>(address); }

void column_moments(int dtype, uintptr_t x, int64_t rows, int64_t columns, int64_t row_stride, uintptr_t mask,
                    uintptr_t moments, int64_t moments_stride, uintptr_t workspace, int64_t workspace_size, int device,
                    uintptr_t stream) {
    const auto type = dtype_of(dtype);
    const auto input = matrix("x", x, rows, columns, row_stride);
    const act::Moments block{pointer<double>("moments", moments), moments_stride};
    float* const work =
        workspace_at(workspace, workspace_size, act::cuda::column_moments_workspace(type, rows, columns));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::column_moments(type, input, mask_at(mask), block, work, place);
}

void pair_moments(int dtype, uintptr_t donor, uintptr_t target, int64_t rows, int64_t columns, int64_t donor_stride,
                  int64_t target_stride, uintptr_t mask, uintptr_t moments, int64_t block_stride,
                  int64_t moments_stride, uintptr_t workspace, int64_t workspace_size, int device, uintptr_t stream) {
    const auto type = dtype_of(dtype);
    const auto donor_matrix = matrix("donor", donor, rows, columns, donor_stride);
    const auto target_matrix = matrix("target", target, rows, columns, target_stride);
    double* const first = pointer<double>("moments", moments);
    const act::Moments blocks[] = {
        {first, moments_stride}, {first + block_stride, moments_stride}, {first + 2 * block_stride, moments_stride}};
    float* const work = workspace_at(workspace, workspace_size, act::cuda::pair_moments_workspace(type, rows, columns));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::pair_moments(type, donor_matrix, target_matrix, mask_at(mask), blocks, work, place);
}

void blend_rows(int dtype, uintptr_t table, int64_t entries, int64_t tiles, int device, uintptr_t stream) {
    const auto type = dtype_of(dtype);
    const auto* const first_tiles = pointer<int64_t>("table", table);
    if (entries < 1 || tiles < 1)
        throw std::invalid_argument("blend_rows needs entries and tiles, got " + std::to_string(entries) + " and " +
                                    std::to_string(tiles));
    const auto* const first = reinterpret_cast<const act::cuda::BlendEntry*>(first_tiles + entries);
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::blend_rows(type, first_tiles, first, entries, tiles, place);
}

void gated_mlp(int dtype, uintptr_t gate, uintptr_t up, uintptr_t product, int64_t rows, int64_t columns,
               int64_t gate_stride, int64_t up_stride, int activation, uintptr_t gate_moments,
               int64_t gate_moments_stride, uintptr_t up_moments, int64_t up_moments_stride,
               uintptr_t product_moments, int64_t product_moments_stride, uintptr_t mask, uintptr_t workspace,
               int64_t workspace_size, int device, uintptr_t stream) {
    const auto type = dtype_of(dtype);
    const act::GatedMlp op{matrix("gate", gate, rows, columns, gate_stride),
                           matrix("up", up, rows, columns, up_stride),
                           pointer<void>("product", product),
                           choice<act::Activation>("activation", activation, 5),
                           moments_at(gate_moments, gate_moments_stride),
                           moments_at(up_moments, up_moments_stride),
                           moments_at(product_moments, product_moments_stride)};
    float* const work = workspace_at(workspace, workspace_size, act::cuda::gated_mlp_workspace(type, rows, columns));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::gated_mlp(type, op, mask_at(mask), work, place);
}

void rotary(int dtype, uintptr_t q, uintptr_t k, uintptr_t v, int64_t rows, int64_t q_columns, int64_t k_columns,
            int64_t v_columns, int64_t q_stride, int64_t k_stride, int64_t v_stride, uintptr_t q_out, uintptr_t k_out,
            uintptr_t q_moments, int64_t q_moments_stride, uintptr_t k_moments, int64_t k_moments_stride,
            uintptr_t v_moments, int64_t v_moments_stride, int64_t width, int64_t turned, uintptr_t cos, uintptr_t sin,
            int64_t length, int64_t tables, bool interleaved, bool round_once, uintptr_t mask, uintptr_t workspace,
            int64_t workspace_size, int device, uintptr_t stream) {
    const auto type = dtype_of(dtype);
    const act::Rotary op = act::rotary_of(q, k, v, rows, q_columns, k_columns, v_columns, q_stride, k_stride, v_stride,
                                          q_out, k_out, q_moments, q_moments_stride, k_moments, k_moments_stride,
                                          v_moments, v_moments_stride, width, turned, cos, sin, length, tables,
                                          interleaved, round_once);
    if (tables != 1 && length * tables != rows)
        throw std::invalid_argument("tables must be 1 or one for every `length` rows, got " + std::to_string(tables));
    const int64_t needed = act::cuda::rotary_workspace(type, rows, q_columns, k_columns, v ? v_columns : 0);
    float* const work = workspace_at(workspace, workspace_size, needed);
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::rotary(type, op, mask_at(mask), work, place);
}

void add_norm(int dtype, uintptr_t x, uintptr_t residual, int64_t rows, int64_t columns, int64_t x_stride,
              int64_t residual_stride, uintptr_t weight, uintptr_t bias, float eps, int style, uintptr_t total,
              uintptr_t norm, uintptr_t x_moments, int64_t x_moments_stride, uintptr_t norm_moments,
              int64_t norm_moments_stride, uintptr_t mask, uintptr_t workspace, int64_t workspace_size, int device,
              uintptr_t stream) {
    const auto type = dtype_of(dtype);
    const act::AddNorm op{matrix("x", x, rows, columns, x_stride),
                          {reinterpret_cast<void*>(residual), rows, columns, residual_stride},
                          pointer<void>("weight", weight),
                          reinterpret_cast<void*>(bias),
                          eps,
                          choice<act::NormStyle>("style", style, 4),
                          pointer<void>("total", total),
                          pointer<void>("norm", norm),
                          moments_at(x_moments, x_moments_stride),
                          moments_at(norm_moments, norm_moments_stride)};
    float* const work = workspace_at(workspace, workspace_size, act::cuda::add_norm_workspace(type, rows, columns));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::add_norm(type, op, mask_at(mask), work, place);
}

template <class... Sizes>
auto workspace(int64_t (*of)(act::DType, Sizes...)) {
    return [of](int dtype, Sizes... sizes) { return of(dtype_of(dtype), sizes...); };
}

}  // namespace

void bind_cuda(pybind11::module_ module) {
    module.attr("toolkit") = ACT_CUDA;
    module.attr("architectures") = ACT_CUDA_ARCHITECTURES;
    module.attr("blend_tile") = act::cuda::BLEND_TILE;
    module.def("refusal", &act::cuda::refusal, "Why the kernels cannot run on a device; empty if they can.");
    module.def("column_moments", &column_moments, "Statistics of the channels of one matrix.");
    module.def("pair_moments", &pair_moments, "Statistics of donor, target and their difference.");
    module.def("blend_rows", &blend_rows, "Blend rows of many matrices, listed in a table, in place.");
    module.def("gated_mlp", &gated_mlp, "Product of an activated gate and up, with statistics.");
    module.def("rotary", &rotary, "Rotary embedding of q and k, with statistics of q, k and v.");
    module.def("add_norm", &add_norm, "Sum of a residual and x, and its norm, with statistics.");
    module.def("column_moments_workspace", workspace(&act::cuda::column_moments_workspace), "Float32 values needed.");
    module.def("pair_moments_workspace", workspace(&act::cuda::pair_moments_workspace), "Float32 values needed.");
    module.def("gated_mlp_workspace", workspace(&act::cuda::gated_mlp_workspace), "Float32 values needed.");
    module.def("rotary_workspace", workspace(&act::cuda::rotary_workspace), "Float32 values needed.");
    module.def("add_norm_workspace", workspace(&act::cuda::add_norm_workspace), "Float32 values needed.");
}
