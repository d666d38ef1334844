"""Builds act_kernels._native: every C++ kernel once per instruction set, chosen at run time, so one wheel fits all
CPUs, and, where nvcc is found, the CUDA kernels.

ACT_CUDA=0 leaves CUDA out; ACT_CUDA_ARCHITECTURES="80;90" names compute capabilities (the last is also kept as PTX, for
newer GPUs); ACT_REQUIRE_NATIVE=1 fails where the install would go on without a part that does not compile.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

OPS = ("column_moments", "pair_moments", "blend_rows", "gated_mlp", "rotary", "add_norm")
KERNELS = [f"csrc/cpu/{op}.cpp" for op in OPS]
HEADERS = ["csrc/kernels.h", "csrc/checks.h", "csrc/cpu/vectors.h", "csrc/cpu/moments.h", "csrc/cpu/activations.h"]
CUDA_KERNELS = [f"csrc/cuda/{name}.cu" for name in (*OPS, "partials")]
CUDA_HEADERS = [f"csrc/cuda/{name}.h" for name in ("kernels", "device", "partials", "activations")]
X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
INSTRUCTION_SETS: dict[str, list[str]] = {"baseline": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] += ["-mtune=icelake-server", "-mprefer-vector-width=512"]  # a fifth faster with GCC 12
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler ships none


class Nvcc:
    """The compiler of the CUDA kernels, and for which GPUs it is asked to compile."""

    def __init__(self) -> None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        found = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")
        if os.environ.get("ACT_CUDA") == "0":
            raise RuntimeError("ACT_CUDA=0 left them out")
        if found is None:
            raise RuntimeError(f"nvcc was not found {'in CUDA_HOME=' + home if home else 'on the PATH'}")
        self.path = found
        self.version = re.findall(r"release (\d+\.\d+)", self._output("--version"))[0]
        self.architectures = re.findall(r"\d+[af]?", os.environ.get("ACT_CUDA_ARCHITECTURES") or "80;90")

    def _output(self, *arguments: str) -> str:
        run = subprocess.run([self.path, *arguments], capture_output=True, text=True)
        if run.returncode:
            lines = (run.stderr or run.stdout).strip().splitlines()
            told = [line for line in lines if re.search("error|fatal", line, re.IGNORECASE)] or lines[-1:]
            raise RuntimeError("\n".join([f"{self.path} failed: {''.join(told[:1])}", *lines[-30:]]))
        return run.stdout + run.stderr

    def compile(self, sources: list[str], folder: str) -> list[str]:
        """Object files, compiled side by side; the assembler's report of each lies beside it as ``.txt``."""
        os.makedirs(folder, exist_ok=True)
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in self.architectures]
        newest = self.architectures[-1]
        targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        options = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", *targets, "-c"]

        def one(source: str) -> str:
            result = os.path.join(folder, os.path.basename(source) + ".o")
            report = self._output(*options, source, "-o", result)
            with open(result[:-2] + ".txt", "w") as file:
                file.write(report)
            return result

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, sources))

    def link_arguments(self) -> list[str]:
        """The CUDA runtime, linked in: the extension imports on machines without CUDA."""
        libraries = re.findall(r"LIBRARIES=(.*)", self._output("--dryrun", "-o", os.devnull, CUDA_KERNELS[0]))[0]
        folders = [folder for folder in re.findall(r'-L([^"]+)', libraries) if not folder.endswith("stubs")]
        return [*(f"-L{folder}" for folder in folders), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


class BuildNative(build_ext):
    """Compiles the kernels per instruction set and for GPUs; without a working compiler the install goes on without."""

    def build_extension(self, extension: Pybind11Extension) -> None:
        required = os.environ.get("ACT_REQUIRE_NATIVE") == "1"
        self.force = True  # or a toolkit that was installed since, or an environment variable, would change nothing
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for objects in pool.map(self.compile_for, INSTRUCTION_SETS):
                    extension.extra_objects += objects
            self.add_cuda(extension, required)
            super().build_extension(extension)
        except Exception as error:  # whatever a missing or unsuitable compiler raises
            if required:
                raise
            extension.optional = True  # or an editable install would look for the file
            print(f"warning: act_kernels is installed without its compiled kernels: {error}", file=sys.stderr)

    def compile_for(self, isa: str) -> list[str]:
        """Object files of all C++ kernels for one instruction set."""
        return self.compiler.compile(
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
                *INSTRUCTION_SETS[isa],
            ],
            depends=HEADERS,
        )

    def add_cuda(self, extension: Pybind11Extension, required: bool) -> None:
        """Add the CUDA kernels where there is an nvcc, else the reason why they are missing."""
        nvcc = None
        try:
            nvcc = Nvcc()
            objects = nvcc.compile(CUDA_KERNELS, os.path.join(self.build_temp, "cuda"))
            link_arguments = nvcc.link_arguments()
        except Exception as error:
            if nvcc is not None and required:  # a compiler that fails, not one that is absent
                raise
            reason = str(error).splitlines()[0]
            print(f"warning: act_kernels is installed without its CUDA kernels: {error}", file=sys.stderr)
            extension.define_macros.append(("ACT_WITHOUT_CUDA", f'"{_quoted(reason)}"'))
            return
        extension.define_macros += [
            ("ACT_CUDA", f'"{nvcc.version}"'),
            ("ACT_CUDA_ARCHITECTURES", f'"{";".join(nvcc.architectures)}"'),
        ]
        extension.sources.append("csrc/cuda/bindings.cpp")
        extension.extra_objects += objects
        extension.extra_link_args += link_arguments

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if os.path.exists(path)]


def _quoted(text: str) -> str:
    """As the inside of a C string literal."""
    return re.sub(r"[^ -~]", " ", text).replace("\\", "\\\\").replace('"', '\\"')


setup(
    license="Apache-2.0",
    ext_modules=[
        Pybind11Extension(
            "act_kernels._native",
            ["csrc/bindings.cpp"],
            define_macros=[("ACT_X86", "1")] if X86 else [],
            depends=[*HEADERS, *KERNELS, *CUDA_HEADERS, *CUDA_KERNELS],
            extra_link_args=OPENMP,
            cxx_std=17,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
