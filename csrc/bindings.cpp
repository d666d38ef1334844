// The Python module act_kernels._native: checks what arrives as integers, picks the instruction set, drops the GIL.
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "kernels.h"

using act::choice;
using act::dtype_of;
using act::matrix;
using act::moments_at;
using act::pointer;

#ifdef ACT_CUDA
void bind_cuda(pybind11::module_ module);
#endif

namespace {

struct Kernels {
    const char* isa;
    decltype(&act::baseline::column_moments) column_moments;
    decltype(&act::baseline::pair_moments) pair_moments;
    decltype(&act::baseline::blend_rows) blend_rows;
    decltype(&act::baseline::gated_mlp) gated_mlp;
    decltype(&act::baseline::rotary) rotary;
    decltype(&act::baseline::add_norm) add_norm;
};

#define ACT_KERNELS(ISA)                                                                                      \
    Kernels{#ISA,                act::ISA::column_moments, act::ISA::pair_moments, act::ISA::blend_rows,      \
            act::ISA::gated_mlp, act::ISA::rotary,         act::ISA::add_norm}

// Every instruction set that was built and that this processor runs, best first.
std::array<Kernels, 3> supported(int& count) {
    std::array<Kernels, 3> list;
    count = 0;
#if defined(ACT_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        list[count++] = ACT_KERNELS(avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        list[count++] = ACT_KERNELS(avx2);
#endif
    list[count++] = ACT_KERNELS(baseline);
    return list;
}

int supported_count = 0;
const std::array<Kernels, 3> supported_kernels = supported(supported_count);
const Kernels* kernels = &supported_kernels[0];

pybind11::list instruction_sets() {
    pybind11::list names;
    for (int i = 0; i < supported_count; ++i) names.append(supported_kernels[i].isa);
    return names;
}

void use_instruction_set(const std::string& name) {
    for (int i = 0; i < supported_count; ++i) {
        if (name == supported_kernels[i].isa) {
            kernels = &supported_kernels[i];
            return;
        }
    }
    throw std::invalid_argument("instruction set '" + name + "' is not built or not supported by this processor");
}

int thread_count(int threads) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
    return threads;
}

void column_moments(int dtype, uintptr_t x, int64_t rows, int64_t columns, int64_t row_stride, uintptr_t mask,
                    uintptr_t moments, int64_t moments_stride, int threads) {
    const auto type = dtype_of(dtype);
    const auto input = matrix("x", x, rows, columns, row_stride);
    const act::Moments block{pointer<double>("moments", moments), moments_stride};
    threads = thread_count(threads);
    pybind11::gil_scoped_release release;
    kernels->column_moments(type, input, reinterpret_cast<const uint8_t*>(mask), block, threads);
}

void pair_moments(int dtype, uintptr_t donor, uintptr_t target, int64_t rows, int64_t columns, int64_t donor_stride,
                  int64_t target_stride, uintptr_t mask, uintptr_t moments, int64_t block_stride,
                  int64_t moments_stride, int threads) {
    const auto type = dtype_of(dtype);
    const auto donor_matrix = matrix("donor", donor, rows, columns, donor_stride);
    const auto target_matrix = matrix("target", target, rows, columns, target_stride);
    double* const first = pointer<double>("moments", moments);
    const act::Moments blocks[] = {
        {first, moments_stride}, {first + block_stride, moments_stride}, {first + 2 * block_stride, moments_stride}};
    threads = thread_count(threads);
    pybind11::gil_scoped_release release;
    kernels->pair_moments(type, donor_matrix, target_matrix, reinterpret_cast<const uint8_t*>(mask), blocks, threads);
}

void blend_rows(int dtype, uintptr_t target, uintptr_t donor, uintptr_t rows, int64_t count, int64_t width,
                int64_t target_row_stride, int64_t target_column_stride, int64_t donor_row_stride,
                int64_t donor_column_stride, bool gathered, float strength, int threads) {
    const auto type = dtype_of(dtype);
    const act::Blend blend{pointer<void>("target", target), pointer<void>("donor", donor),
                           pointer<int64_t>("rows", rows),  count,
                           width,                           target_row_stride,
                           target_column_stride,            donor_row_stride,
                           donor_column_stride,             gathered,
                           strength};
    threads = thread_count(threads);
    pybind11::gil_scoped_release release;
    kernels->blend_rows(type, blend, threads);
}

void gated_mlp(int dtype, uintptr_t gate, uintptr_t up, uintptr_t product, int64_t rows, int64_t columns,
               int64_t gate_stride, int64_t up_stride, int activation, uintptr_t gate_moments,
               int64_t gate_moments_stride, uintptr_t up_moments, int64_t up_moments_stride,
               uintptr_t product_moments, int64_t product_moments_stride, uintptr_t mask, int threads) {
    const auto type = dtype_of(dtype);
    const act::GatedMlp op{matrix("gate", gate, rows, columns, gate_stride),
                           matrix("up", up, rows, columns, up_stride),
                           pointer<void>("product", product),
                           choice<act::Activation>("activation", activation, 5),
                           moments_at(gate_moments, gate_moments_stride),
                           moments_at(up_moments, up_moments_stride),
                           moments_at(product_moments, product_moments_stride)};
    threads = thread_count(threads);
    pybind11::gil_scoped_release release;
    kernels->gated_mlp(type, op, reinterpret_cast<const uint8_t*>(mask), threads);
}

void rotary(int dtype, uintptr_t q, uintptr_t k, uintptr_t v, int64_t rows, int64_t q_columns, int64_t k_columns,
            int64_t v_columns, int64_t q_stride, int64_t k_stride, int64_t v_stride, uintptr_t q_out, uintptr_t k_out,
            uintptr_t q_moments, int64_t q_moments_stride, uintptr_t k_moments, int64_t k_moments_stride,
            uintptr_t v_moments, int64_t v_moments_stride, int64_t width, int64_t turned, uintptr_t cos, uintptr_t sin,
            int64_t length, int64_t tables, bool interleaved, bool round_once, uintptr_t mask, int threads) {
    const auto type = dtype_of(dtype);
    const act::Rotary op = act::rotary_of(q, k, v, rows, q_columns, k_columns, v_columns, q_stride, k_stride, v_stride,
                                          q_out, k_out, q_moments, q_moments_stride, k_moments, k_moments_stride,
                                          v_moments, v_moments_stride, width, turned, cos, sin, length, tables,
                                          interleaved, round_once);
    threads = thread_count(threads);
    pybind11::gil_scoped_release release;
    kernels->rotary(type, op, reinterpret_cast<const uint8_t*>(mask), threads);
}

void add_norm(int dtype, uintptr_t x, uintptr_t residual, int64_t rows, int64_t columns, int64_t x_stride,
              int64_t residual_stride, uintptr_t weight, uintptr_t bias, float eps, int style, uintptr_t total,
              uintptr_t norm, uintptr_t x_moments, int64_t x_moments_stride, uintptr_t norm_moments,
              int64_t norm_moments_stride, uintptr_t mask, int threads) {
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
    threads = thread_count(threads);
    pybind11::gil_scoped_release release;
    kernels->add_norm(type, op, reinterpret_cast<const uint8_t*>(mask), threads);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Compiled kernels; pointers, sizes and strides in elements. Called through act_kernels.native.";
    module.def("instruction_sets", &instruction_sets, "Instruction sets this processor can run, best first.");
    module.def("instruction_set", [] { return kernels->isa; }, "The instruction set in use.");
    module.def("use_instruction_set", &use_instruction_set, "Choose one of instruction_sets(), for tests.");
    module.def("column_moments", &column_moments, "Statistics of the channels of one matrix.");
    module.def("pair_moments", &pair_moments, "Statistics of donor, target and their difference.");
    module.def("blend_rows", &blend_rows, "Blend listed rows of a donor into a target, in place.");
    module.def("gated_mlp", &gated_mlp, "Product of an activated gate and up, with statistics.");
    module.def("rotary", &rotary, "Rotary embedding of q and k, with statistics of q, k and v.");
    module.def("add_norm", &add_norm, "Sum of a residual and x, and its norm, with statistics.");
#ifdef ACT_CUDA
    module.attr("without_cuda") = pybind11::none();
    bind_cuda(module.def_submodule("cuda", "CUDA kernels; called through act_kernels.cuda."));
#else
    module.attr("without_cuda") = ACT_WITHOUT_CUDA;  // why they were not built
#endif
}
