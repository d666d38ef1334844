"""Builds act_kernels._native: every kernel once per instruction set, chosen at run time, so one wheel fits all CPUs."""

import os
import platform
import sys

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

OPS = ("column_moments", "pair_moments", "blend_rows", "gated_mlp", "rotary", "add_norm")
KERNELS = [f"csrc/cpu/{op}.cpp" for op in OPS]
HEADERS = ["csrc/kernels.h", "csrc/cpu/vectors.h", "csrc/cpu/moments.h", "csrc/cpu/activations.h"]
X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
INSTRUCTION_SETS: dict[str, list[str]] = {"baseline": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] += ["-mtune=icelake-server", "-mprefer-vector-width=512"]  # a fifth faster with GCC 12
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler ships none


class BuildNative(build_ext):
    """Compiles the kernels per instruction set; without a working compiler the install goes on without them."""

    def build_extension(self, extension: Pybind11Extension) -> None:
        try:
            for isa, flags in INSTRUCTION_SETS.items():
                extension.extra_objects += self.compiler.compile(
                    KERNELS,
                    output_dir=os.path.join(self.build_temp, isa),
                    macros=[("ACT_ISA", isa)],
                    extra_postargs=[
                        "-std=c++17",
                        "-O3",
                        "-fPIC",
                        "-fno-math-errno",
                        "-ffp-contract=off",
                        "-Wno-psabi",
                        "-Wno-maybe-uninitialized",
                        *OPENMP,
                        *flags,
                    ],
                    depends=HEADERS,
                )
            super().build_extension(extension)
        except Exception as error:  # whatever a missing or unsuitable compiler raises
            if os.environ.get("ACT_REQUIRE_NATIVE") == "1":
                raise
            extension.optional = True  # or an editable install would look for the file
            print(f"warning: act_kernels is installed without its C++ kernels: {error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if os.path.exists(path)]


setup(
    ext_modules=[
        Pybind11Extension(
            "act_kernels._native",
            ["csrc/bindings.cpp"],
            define_macros=[("ACT_X86", "1")] if X86 else [],
            depends=[*HEADERS, *KERNELS],
            extra_link_args=OPENMP,
            cxx_std=17,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
