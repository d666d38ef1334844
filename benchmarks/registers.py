"""How many registers does each CUDA kernel use, and does any spill? The assembler says; no GPU is needed.

python benchmarks/registers.py --json OUT
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import options, record

SOURCES = sorted((Path(__file__).resolve().parents[1] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
DTYPES = {"f": "float32", "NS0_8bfloat16E": "bfloat16", "NS0_7float16E": "float16"}
REPORT = re.compile(
    r"entry function '\w*?(?P<kernel>[a-z]\w*?_kernel)(?:I(?P<dtype>f|NS0_\d\w+?E)E)?[Ev]\w*' for 'sm_(?P<arch>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def nvcc() -> str | None:
    """The compiler of CUDA_HOME, or the one on the PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")


def parse(report: str) -> list[dict[str, Any]]:
    """The kernels in a report of ``ptxas -v``."""
    rows = []
    for found in REPORT.finditer(report):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        rows.append(
            {
                "kernel": re.sub(r"^.*_cu_[0-9a-f]{8}_?\d+", "", found["kernel"]),
                "dtype": DTYPES.get(found["dtype"] or "", ""),
                "architecture": f"sm_{found['arch']}",
                "registers": int(found["registers"]),
                "spilled_bytes": int(found["stores"]) + int(found["loads"]),
                "stack_bytes": int(found["stack"]),
                "shared_bytes": int(shared[1]) if shared else 0,
            }
        )
    return rows


def measure(architectures: tuple[str, ...] = ARCHITECTURES) -> list[dict[str, Any]]:
    """Compile every kernel for every architecture, and return what the assembler says about each."""
    compiler = nvcc()
    if compiler is None:
        raise SystemExit("error: nvcc was not found; set CUDA_HOME, or put it on the PATH")

    def one(source: Path, architecture: str, folder: str) -> list[dict[str, Any]]:
        target = os.path.join(folder, f"{source.stem}-{architecture}.cubin")
        flags = ["-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas=-v", "-cubin", "-o", target]
        run = subprocess.run([compiler, *flags, str(source)], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{source.name} does not compile for sm_{architecture}:\n{run.stderr[-3000:]}")
        return parse(run.stdout + run.stderr)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(one, source, a, folder) for a in architectures for source in SOURCES]
        return [row for job in jobs for row in job.result()]


def main() -> None:
    """Print a table, and write it."""
    parser = options(__doc__)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    given = parser.parse_args()
    rows = measure(tuple(given.architectures))
    for row in rows:
        print(" ".join(f"{row[key]!s:>{width}}" for key, width in zip(row, (24, 9, 7, 4, 4, 4, 6), strict=True)))
    record(given.json, {"nvcc": nvcc(), "results": rows})


if __name__ == "__main__":
    main()
