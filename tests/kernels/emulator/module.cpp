// The emulated kernels as a Python module of their own, with the bindings of the real ones.
#include <pybind11/pybind11.h>

#include "../../../csrc/checks.h"
#include "../../../csrc/cuda/partials.h"

void bind_cuda(pybind11::module_ module);
extern "C" void act_emulator_reverse(int reversed);

PYBIND11_MODULE(emulated_cuda, module) {
    act::look_up_names();
    bind_cuda(module);
    module.def("set_programs", [](int64_t count) { act::cuda::programs = count; });
    module.def("reverse", [](bool reversed) { act_emulator_reverse(reversed); });
}
