// The Python module act_kernels._native: checks the arguments, picks the instruction set, releases the GIL.
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>
#include <string>
#include <string_view>

#include "checks.h"
#include "kernels.h"

using act::Tensor;

#ifdef ACT_CUDA
void bind_cuda(pybind11::module_ module);
#endif

namespace {

struct Kernels {
    const char* isa;
    decltype(&act::baseline::column_moments) column_moments;
    decltype(&act::baseline::segment_moments) segment_moments;
    decltype(&act::baseline::pair_moments) pair_moments;
    decltype(&act::baseline::blend_rows) blend_rows;
    decltype(&act::baseline::gated_mlp) gated_mlp;
    decltype(&act::baseline::rotary) rotary;
    decltype(&act::baseline::add_norm) add_norm;
};

#define ACT_KERNELS(ISA)                                                                                      \
    Kernels{#ISA,                 act::ISA::column_moments, act::ISA::segment_moments, act::ISA::pair_moments, \
            act::ISA::blend_rows, act::ISA::gated_mlp,      act::ISA::rotary,          act::ISA::add_norm}

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

// Runs a kernel on `threads` threads, without the GIL.
template <class Kernel>
void run(int threads, const Kernel& kernel) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
    pybind11::gil_scoped_release release;
    kernel();
}

// What threads cost before any work, for benchmarks. The compiler must not see that nothing is done.
void start_threads(int threads) {
    run(threads, [&] {
#pragma omp parallel num_threads(threads)
        __asm__ volatile("");
    });
}

void column_moments(const Tensor& x, const Tensor& moments, const Tensor& mask, int threads) {
    const auto input = act::input("x", x);
    const auto block = act::moments("moments", moments, input.columns);
    const auto* const counted = act::mask(mask, input.rows);
    run(threads, [&] { kernels->column_moments(input, counted, block, threads); });
}

void segment_moments(const Tensor& x, const Tensor& moments, const Tensor& offsets, const Tensor& mask, int threads) {
    const auto op = act::segments(x, moments, offsets);
    const auto* const counted = act::mask(mask, op.x.rows);
    run(threads, [&] { kernels->segment_moments(op, counted, threads); });
}

void pair_moments(const Tensor& donor, const Tensor& target, const Tensor& swapped, const Tensor& moments,
                  const Tensor& mask, int threads) {
    const auto op = act::pair(donor, target, swapped, moments);
    const auto* const counted = act::mask(mask, op.donor.rows);
    run(threads, [&] { kernels->pair_moments(op, counted, threads); });
}

void blend_rows(const Tensor& target, const Tensor& donor, const Tensor& rows, bool gathered, double strength,
                int threads) {
    const auto op = act::blend(target, donor, rows, gathered, strength);
    run(threads, [&] { kernels->blend_rows(op, threads); });
}

void gated_mlp(const Tensor& gate, const Tensor& up, const Tensor& product, std::string_view activation,
               const Tensor& gate_moments, const Tensor& up_moments, const Tensor& product_moments, const Tensor& mask,
               int threads) {
    const auto op = act::gated_mlp(gate, up, product, activation, gate_moments, up_moments, product_moments);
    const auto* const counted = act::mask(mask, op.gate.rows);
    run(threads, [&] { kernels->gated_mlp(op, counted, threads); });
}

void rotary(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_out, const Tensor& k_out,
            const Tensor& q_moments, const Tensor& k_moments, const Tensor& v_moments, const Tensor& cos,
            const Tensor& sin, bool interleaved, bool round_once, const Tensor& mask,
            int threads) {
    const auto op = act::rotary(q, k, v, q_out, k_out, q_moments, k_moments, v_moments, cos, sin, interleaved,
                                round_once);
    const auto* const counted = act::mask(mask, op.q.x.rows);
    run(threads, [&] { kernels->rotary(op, counted, threads); });
}

void add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, float eps,
              std::string_view style, const Tensor& total, const Tensor& norm, const Tensor& x_moments,
              const Tensor& norm_moments, const Tensor& mask, int threads) {
    const auto op = act::add_norm(x, residual, weight, bias, eps, style, total, norm, x_moments, norm_moments);
    const auto* const counted = act::mask(mask, op.x.rows);
    run(threads, [&] { kernels->add_norm(op, counted, threads); });
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Compiled kernels; called through act_kernels.native.";
    act::look_up_names();
    module.def("instruction_sets", &instruction_sets, "Instruction sets this processor can run, best first.");
    module.def("instruction_set", [] { return kernels->isa; }, "The instruction set in use.");
    module.def("use_instruction_set", &use_instruction_set, "Choose one of instruction_sets(), for tests.");
    module.def("start_threads", &start_threads, "Run nothing on some threads, for benchmarks.");
    module.def("column_moments", &column_moments, "Statistics of the channels of one matrix.");
    module.def("segment_moments", &segment_moments, "Statistics of the channels of every segment of rows.");
    module.def("pair_moments", &pair_moments, "Statistics of donor, target and what is formed of them.");
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
