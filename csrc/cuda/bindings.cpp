// The submodule act_kernels._native.cuda: checks the arguments, releases the GIL, queues the kernels.
#include "../checks.h"
#include "kernels.h"

#include <pybind11/pybind11.h>

using act::Tensor;
using act::cuda::Place;

namespace {

Place place_of(int device, uintptr_t stream) {
    if (device < 0) throw std::invalid_argument("device must be an ordinal of at least 0, got " + std::to_string(device));
    return {device, reinterpret_cast<void*>(stream)};
}

// The memory that an op works in.
float* workspace_of(const Tensor& workspace, int64_t needed) {
    const auto size = act::matrix("workspace", workspace).columns;
    act::require("workspace", workspace, act::DType::float32, 1, size);
    if (size < needed)
        throw std::invalid_argument("workspace must hold " + std::to_string(needed) + " values, got " + std::to_string(size));
    return static_cast<float*>(workspace.data);
}

// Float32 values that an op needs to work in, by the records of its inputs.
int64_t column_moments_workspace(const act::Matrix& x) {
    return act::cuda::column_moments_workspace(x.dtype, x.rows, x.columns);
}
int64_t segment_moments_workspace(const act::Matrix& x, int64_t segments) {
    return act::cuda::segment_moments_workspace(x.dtype, x.rows, x.columns, segments);
}
int64_t pair_moments_workspace(const act::Matrix& donor, bool swapped) {
    return act::cuda::pair_moments_workspace(donor.dtype, donor.rows, donor.columns, swapped);
}
int64_t gated_mlp_workspace(const act::Matrix& gate) {
    return act::cuda::gated_mlp_workspace(gate.dtype, gate.rows, gate.columns);
}
int64_t rotary_workspace(const act::Matrix& q, const act::Matrix& k, const act::Matrix& v) {
    return act::cuda::rotary_workspace(q.dtype, q.rows, q.columns, k.columns, v.columns);
}
int64_t add_norm_workspace(const act::Matrix& x) { return act::cuda::add_norm_workspace(x.dtype, x.rows, x.columns); }

void column_moments(const Tensor& x, const Tensor& moments, const Tensor& mask, const Tensor& workspace, int device,
                    uintptr_t stream) {
    const auto input = act::input("x", x);
    const auto block = act::moments("moments", moments, input.columns);
    const auto* const counted = act::mask(mask, input.rows);
    float* const work = workspace_of(workspace, column_moments_workspace(input));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::column_moments(input, counted, block, work, place);
}

void segment_moments(const Tensor& x, const Tensor& moments, const Tensor& offsets, const Tensor& mask,
                     const Tensor& workspace, int device, uintptr_t stream) {
    const auto op = act::segments(x, moments, offsets);
    const auto* const counted = act::mask(mask, op.x.rows);
    float* const work = workspace_of(workspace, segment_moments_workspace(op.x, op.count));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::segment_moments(op, counted, work, place);
}

void pair_moments(const Tensor& donor, const Tensor& target, const Tensor& swapped, const Tensor& moments,
                  const Tensor& mask, const Tensor& workspace, int device, uintptr_t stream) {
    const auto op = act::pair(donor, target, swapped, moments);
    const auto* const counted = act::mask(mask, op.donor.rows);
    float* const work = workspace_of(workspace, pair_moments_workspace(op.donor, bool(swapped)));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::pair_moments(op, counted, work, place);
}

void blend_rows(std::string_view dtype, const Tensor& table, int64_t entries, int64_t tiles, int device,
                uintptr_t stream) {
    const auto type = act::choice<act::DType>("dtype", dtype, act::DTYPES);
    act::require("table", table, act::DType::int64, 1, act::matrix("table", table).columns);
    if (entries < 1 || tiles < 1)
        throw std::invalid_argument("blend_rows needs entries and tiles, got " + std::to_string(entries) + " and " +
                                    std::to_string(tiles));
    const auto* const first_tiles = static_cast<const int64_t*>(table.data);
    const auto* const first = reinterpret_cast<const act::cuda::BlendEntry*>(first_tiles + entries);
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::blend_rows(type, first_tiles, first, entries, tiles, place);
}

void gated_mlp(const Tensor& gate, const Tensor& up, const Tensor& product, std::string_view activation,
               const Tensor& gate_moments, const Tensor& up_moments, const Tensor& product_moments, const Tensor& mask,
               const Tensor& workspace, int device, uintptr_t stream) {
    const auto op = act::gated_mlp(gate, up, product, activation, gate_moments, up_moments, product_moments);
    const auto* const counted = act::mask(mask, op.gate.rows);
    float* const work = workspace_of(workspace, gated_mlp_workspace(op.gate));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::gated_mlp(op, counted, work, place);
}

void rotary(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_out, const Tensor& k_out,
            const Tensor& q_moments, const Tensor& k_moments, const Tensor& v_moments, const Tensor& cos,
            const Tensor& sin, bool interleaved, bool round_once, const Tensor& mask,
            const Tensor& workspace, int device, uintptr_t stream) {
    const auto op = act::rotary(q, k, v, q_out, k_out, q_moments, k_moments, v_moments, cos, sin, interleaved,
                                round_once);
    const auto* const counted = act::mask(mask, op.q.x.rows);
    float* const work = workspace_of(workspace, rotary_workspace(op.q.x, op.k.x, op.v.x));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::rotary(op, counted, work, place);
}

void add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, float eps,
              std::string_view style, const Tensor& total, const Tensor& norm, const Tensor& x_moments,
              const Tensor& norm_moments, const Tensor& mask, const Tensor& workspace, int device, uintptr_t stream) {
    const auto op = act::add_norm(x, residual, weight, bias, eps, style, total, norm, x_moments, norm_moments);
    const auto* const counted = act::mask(mask, op.x.rows);
    float* const work = workspace_of(workspace, add_norm_workspace(op.x));
    const Place place = place_of(device, stream);
    pybind11::gil_scoped_release release;
    act::cuda::add_norm(op, counted, work, place);
}

}  // namespace

void bind_cuda(pybind11::module_ module) {
    module.attr("toolkit") = ACT_CUDA;
    module.attr("architectures") = ACT_CUDA_ARCHITECTURES;
    module.attr("blend_tile") = act::cuda::BLEND_TILE;
    module.def("refusal", &act::cuda::refusal, "Why the kernels cannot run on a device; empty if they can.");
    module.def("column_moments", &column_moments, "Statistics of the channels of one matrix.");
    module.def("segment_moments", &segment_moments, "Statistics of the channels of every segment of rows.");
    module.def("pair_moments", &pair_moments, "Statistics of donor, target and what is formed of them.");
    module.def("blend_rows", &blend_rows, "Blend rows of many matrices, listed in a table, in place.");
    module.def("gated_mlp", &gated_mlp, "Product of an activated gate and up, with statistics.");
    module.def("rotary", &rotary, "Rotary embedding of q and k, with statistics of q, k and v.");
    module.def("add_norm", &add_norm, "Sum of a residual and x, and its norm, with statistics.");
    module.def(
        "column_moments_workspace", [](const Tensor& x) { return column_moments_workspace(act::input("x", x)); },
        "Float32 values needed.");
    module.def(
        "segment_moments_workspace",
        [](const Tensor& x, const Tensor& offsets) {
            return segment_moments_workspace(act::input("x", x), act::matrix("offsets", offsets).columns - 1);
        },
        "Float32 values needed.");
    module.def(
        "pair_moments_workspace",
        [](const Tensor& donor, const Tensor& swapped) {
            return pair_moments_workspace(act::input("donor", donor), bool(swapped));
        },
        "Float32 values needed.");
    module.def(
        "gated_mlp_workspace", [](const Tensor& gate) { return gated_mlp_workspace(act::input("gate", gate)); },
        "Float32 values needed.");
    module.def(
        "rotary_workspace",
        [](const Tensor& q, const Tensor& k, const Tensor& v) {
            return rotary_workspace(act::input("q", q), act::input("k", k), v ? act::input("v", v) : act::Matrix{});
        },
        "Float32 values needed.");
    module.def(
        "add_norm_workspace", [](const Tensor& x) { return add_norm_workspace(act::input("x", x)); },
        "Float32 values needed.");
}
