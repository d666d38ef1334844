"""Builds act_kernels._native: every C++ kernel once per instruction set, chosen at run time, so one wheel fits all
CPUs, and, where nvcc is found, the CUDA kernels. This file states what is compiled how; ninja does it.

ACT_CUDA=0 leaves CUDA out; ACT_CUDA_ARCHITECTURES="80;90" names compute capabilities (the last is also kept as PTX, for
newer GPUs); ACT_REQUIRE_NATIVE=1 fails where the install would go on without a part that does not compile.
"""

import importlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

OPS = ("column_moments", "segment_moments", "pair_moments", "blend_rows", "gated_mlp", "rotary", "add_norm")
X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
INSTRUCTION_SETS: dict[str, list[str]] = {"baseline": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] += ["-mtune=icelake-server", "-mprefer-vector-width=512"]  # a fifth faster with GCC 12
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler ships none
CXX_OPTIONS = ["-std=c++17", "-fPIC", "-g0"]
KERNEL_OPTIONS = ["-O3", "-fno-math-errno", "-ffp-contract=off", "-Wno-psabi", "-Wno-uninitialized", *OPENMP]
KERNEL_OPTIONS += ["-Wno-maybe-uninitialized", "-fwrapv"]
OF_ONE_PYTHON = {"-fwrapv", "-fno-strict-overflow", "-Wno-unused-result"}
"""Options in which Pythons differ: kernels, which know none, are compiled without them and once for all Pythons."""
NVCC_OPTIONS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"]


def output_of(program: str, *arguments: str) -> str:
    run = subprocess.run([program, *arguments], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{program} failed: {(run.stderr or run.stdout).strip()[-300:]}")
    return run.stdout + run.stderr


class Nvcc:
    """The compiler of the CUDA kernels, and for which GPUs it is asked to compile."""

    def __init__(self) -> None:
        if os.environ.get("ACT_CUDA") == "0":
            raise LookupError("ACT_CUDA=0 left them out")
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        found = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")
        if found is None:
            raise LookupError(f"nvcc was not found {'in CUDA_HOME=' + home if home else 'on the PATH'}")
        self.path = found
        self.version = re.findall(r"release (\d+\.\d+)", output_of(found, "--version"))[0]
        self.architectures = re.findall(r"\d+[af]?", os.environ.get("ACT_CUDA_ARCHITECTURES") or "80;90")

    def command(self) -> list[str]:
        newest = self.architectures[-1]
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in self.architectures]
        targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        return [self.path, *NVCC_OPTIONS, *targets, f"-DACT_COMPILER={self.version}"]

    def libraries(self) -> list[str]:
        """The CUDA runtime, linked in: the extension imports on machines without CUDA."""
        libraries = re.findall(r"LIBRARIES=(.*)", output_of(self.path, "--dryrun", "-o", os.devnull, "none.cu"))[0]
        folders = [folder for folder in re.findall(r'-L([^"]+)', libraries) if not folder.endswith("stubs")]
        return [*(f"-L{folder}" for folder in folders), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


class NinjaFile:
    """The steps of a build, each with its command line: ninja repeats a step if that changes."""

    def __init__(self) -> None:
        self.lines = [
            "rule compile",
            "  command = $tool -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $tool $in -o $out $libraries",
        ]
        self.objects: list[str] = []

    def compile(self, source: str, result: str, command: list[str]) -> None:
        self._step("compile", [os.path.abspath(source)], result, tool=command)
        self.objects.append(result)

    def link(self, result: str, command: list[str], libraries: list[str]) -> None:
        self._step("link", self.objects, result, tool=command, libraries=libraries)

    def _step(self, rule: str, sources: list[str], result: str, **variables: list[str]) -> None:
        places = [re.sub(r"([$ :])", r"$\1", path) for path in (result, *sources)]
        self.lines.append(f"build {places[0]}: {rule} {' '.join(places[1:])}")
        self.lines += [f"  {name} = {shlex.join(value).replace('$', '$$')}" for name, value in variables.items()]

    def run(self, folder: str) -> None:
        """Bring everything up to date, in parallel."""
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "build.ninja"), "w") as file:
            file.write("\n".join(self.lines) + "\n")
        arguments = [ninja(), "-C", folder, "-j", str(os.cpu_count() or 1), "-k", "0"]
        run = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode:
            print(run.stdout[-10_000:], file=sys.stderr)
            lines = run.stdout.strip().splitlines()
            told = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)] or lines
            raise RuntimeError("the build failed: " + (told[0] if told else f"ninja ended with {run.returncode}"))


def ninja() -> str:
    try:
        found = shutil.which("ninja", path=importlib.import_module("ninja").BIN_DIR)
    except ImportError:
        found = None
    found = found or shutil.which("ninja")
    if found is None:
        raise RuntimeError("ninja was not found; run: pip install ninja")
    return found


class BuildNative(build_ext):
    """Compiles the kernels per instruction set and for GPUs; without a working compiler the install goes on without."""

    def build_extension(self, extension: Extension) -> None:
        required = os.environ.get("ACT_REQUIRE_NATIVE") == "1"
        try:
            self.build_all(required)
        except Exception as error:  # whatever a missing or unsuitable compiler raises
            if required:
                raise
            extension.optional = True  # or an editable install would look for the file
            print(f"warning: act_kernels is installed without its compiled kernels: {error}", file=sys.stderr)

    def build_all(self, required: bool) -> None:
        """With the CUDA kernels where there is an nvcc that compiles them."""
        try:
            return self.build(Nvcc())
        except LookupError as absent:
            reason = str(absent)
        except Exception as error:  # a compiler that fails
            if required:
                raise
            reason = str(error)
        self.build(None, reason)
        print(f"warning: act_kernels is installed without its CUDA kernels: {reason}", file=sys.stderr)

    def build(self, nvcc: Nvcc | None, without_cuda: str = "") -> None:
        """Compile and link, with CUDA kernels or with the reason why there are none."""
        compiler, linker = self.commands()
        bindings = [f"-I{path}" for path in (*self.compiler.include_dirs, pybind11.get_include())]
        bindings += ["-O2", "-fvisibility=hidden", "-DACT_X86=1"] if X86 else ["-O2", "-fvisibility=hidden"]
        bindings += OPENMP
        units, libraries = ["csrc/bindings.cpp"], [*OPENMP]
        steps = NinjaFile()
        if nvcc is None:
            bindings.append(f'-DACT_WITHOUT_CUDA="{_quoted(without_cuda)}"')
        else:
            units.append("csrc/cuda/bindings.cpp")
            bindings.append(f'-DACT_CUDA="{nvcc.version}"')
            bindings.append(f'-DACT_CUDA_ARCHITECTURES="{";".join(nvcc.architectures)}"')
            libraries += nvcc.libraries()
            for name in (*OPS, "partials"):  # first, for they take longest
                steps.compile(f"csrc/cuda/{name}.cu", f"cuda/{name}.o", nvcc.command())
        for unit in units:
            place = f"{sys.implementation.cache_tag}/{unit.removeprefix('csrc/')}"
            steps.compile(unit, place.replace(".cpp", ".o"), [*compiler, *bindings])
        compiler = [option for option in compiler if option not in OF_ONE_PYTHON]
        for isa, options in reversed(INSTRUCTION_SETS.items()):
            for op in OPS:
                command = [*compiler, *KERNEL_OPTIONS, *options, f"-DACT_ISA={isa}"]
                steps.compile(f"csrc/cpu/{op}.cpp", f"{isa}/{op}.o", command)
        result = os.path.abspath(self.get_ext_fullpath("act_kernels._native"))
        os.makedirs(os.path.dirname(result), exist_ok=True)
        steps.link(result, linker, libraries)
        steps.run(self.folder())

    def commands(self) -> tuple[list[str], list[str]]:
        """What compiles and what links C++, with the options of this Python and of CXX, CFLAGS and LDFLAGS."""
        compiler = getattr(self.compiler, "compiler_so_cxx", None) or getattr(self.compiler, "compiler_so", None)
        if compiler is None:
            raise RuntimeError("the kernels need GCC or Clang")
        linker = getattr(self.compiler, "linker_so_cxx", None)
        linker = linker or [self.compiler.compiler_cxx[0], *self.compiler.linker_so[1:]]  # before setuptools 72.2
        if shutil.which(compiler[0]) is None:
            raise RuntimeError(f"the C++ compiler {compiler[0]} was not found")
        version = output_of(compiler[0], "--version").splitlines()[0]
        return [*compiler, *CXX_OPTIONS, f"-DACT_COMPILER={version}"], linker

    def folder(self) -> str:
        """Where objects lie: beside the sources, so that the next build of any kind finds them."""
        beside = os.path.abspath(os.path.join("build", f"native-{self.plat_name}"))
        try:
            os.makedirs(beside, exist_ok=True)
        except OSError:  # a checkout that cannot be written
            return os.path.abspath(self.build_temp)
        return beside

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if os.path.exists(path)]


def _quoted(text: str) -> str:
    """As the inside of a C string literal."""
    return re.sub(r"[^ -~]", " ", text).replace("\\", "\\\\").replace('"', '\\"')


sources = [
    "csrc/bindings.cpp",
    "csrc/cuda/bindings.cpp",
    *sorted(glob("csrc/cpu/*.cpp")),
    *sorted(glob("csrc/cuda/*.cu")),
]
setup(
    license="Apache-2.0",
    ext_modules=[Extension("act_kernels._native", sources, depends=sorted(glob("csrc/**/*.h", recursive=True)))],
    cmdclass={"build_ext": BuildNative},
)
