"""One call that checks and measures everything on a GPU within a given time; the same code rehearses on a CPU.

    python benchmarks/gpu.py --out DIR --minutes 8
    python benchmarks/gpu.py --out DIR --minutes 1 --device cpu

Each phase gets a share of the time that is left: environment, correctness of every backend and op against float64,
whole forwards, kernels, compute-sanitizer on the CUDA kernels. DIR/gpu.json (cpu.json in a rehearsal, whose figures say
nothing about a GPU) is written after each phase and says what was cut or failed. The exit code is 1 if a correctness
check failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]  # "kernels" is the folder of the tests
sys.path.append(str(HERE.parent))  # last: an installed package has the extension, a bare checkout does not

import torch  # noqa: E402
from baselines import by_nnsight, by_sums  # noqa: E402
from cases import CASES, FUSED, MOMENTS  # noqa: E402
from kernels.correctness import all_cases, by_checks, by_tests, forced, model_cases  # noqa: E402
from measure import Call, Times, machine, median, medians, on_device, spread, write_json  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

import act_kernels  # noqa: E402
from act.models.channels import ChannelSpace  # noqa: E402
from act.profiles.moments import Moments  # noqa: E402
from act.taps.tapped import taps  # noqa: E402
from act_kernels.backends import BACKENDS, choose  # noqa: E402

LEAST_SHARE = {"triton": 0.85, "cuda": 0.75}  # of the copy bandwidth, for column and pair moments
LEAST_SHARE_OF_SEGMENTS = 0.40  # at most 1.25 times a copy, which moves twice the bytes
EXPERTS = [(16384, 768), (16384, 2048)]  # rows of 64 experts and their channels


class Run:
    """The device, the end of the phase, and what was found."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.small, self.until = device, device.type != "cuda", time.monotonic()
        self.result: dict[str, Any] = {"device": str(device), "rehearsal": self.small, "phases": {}}
        if self.small:
            self.result["note"] = "the device is the CPU: small shapes rehearse the code and say nothing about a GPU"

    def left(self) -> float:
        """Seconds that the phase has left."""
        return self.until - time.monotonic()


def usable(device: torch.device) -> dict[str, str | None]:
    """Every backend, with the reason why it cannot run on the device."""
    return {backend.name: backend.refusal(device.type) for backend in BACKENDS}


def environment(run: Run) -> dict[str, Any]:
    """GPU, driver, versions, commit, backends."""
    found: dict[str, Any] = {**machine(), "backends": usable(run.device)}
    found["installed"] = (
        HERE.parent not in Path(act_kernels.__file__).resolve().parents
    )  # or imported from the checkout
    for package in ("pytest", "greenlet", "nnsight", "accelerate"):
        found[package] = importlib.util.find_spec(package) is not None
    if run.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.device)
        found.update(gpu=properties.name, memory=properties.total_memory, cuda=torch.version.cuda)
        found["capability"] = f"{properties.major}.{properties.minor}"
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found


def correctness(run: Run, only: str | None = None) -> dict[str, Any]:
    """Every usable backend and op: checks at the shapes of real models, then the tests of the ops; or more checks."""
    names = [only] if only else [name for name, reason in usable(run.device).items() if reason is None]
    found: dict[str, Any] = {"backends": names}
    if only:
        found["checks"] = by_checks(names, run.device, run.until, all_cases())
    else:
        found["checks"] = by_checks(names, run.device, time.monotonic() + run.left() / 3, model_cases(run.small))
        found["tests"] = by_tests(names, run.device, run.until)
        if "passed" not in found["tests"]:
            found["checks instead of tests"] = by_checks(names, run.device, run.until, all_cases())
    counted = [part for part in found.values() if isinstance(part, dict) and "passed" in part]
    return {**found, **{key: sum(part[key] for part in counted) for key in ("passed", "failed", "cut")}}


def sanitizer(run: Run) -> dict[str, Any]:
    """Memcheck and racecheck of the CUDA extension's kernels, in processes of their own."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if run.small or "cuda" not in usable(run.device) or usable(run.device)["cuda"] or not Path(tool).exists():
        return {"skipped": "needs a GPU, the CUDA extension and compute-sanitizer"}
    found = {}
    for number, kind in enumerate(("memcheck", "racecheck")):
        seconds = max(20, run.left() / (2 - number))
        # The checks get half of it: starting takes long under the tool.
        again = [sys.executable, __file__, "--check-backend", "cuda", "--minutes", str(seconds / 120)]
        command = [tool, "--tool", kind, "--error-exitcode", "9", *again]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            found[kind] = {"clean": done.returncode == 0, "output": (done.stdout + done.stderr)[-2000:]}
        except subprocess.TimeoutExpired:
            found[kind] = {"cut": "ran out of time"}
    return found


def kernels(run: Run) -> list[dict[str, Any]]:
    """Ops beside a copy of the same tensor, on every fast backend."""
    wide = [(512, 384), (512, 1024), (64, 4096)] if run.small else [(16384, 3584), (16384, 18944), (2048, 152064)]
    cases = [(op, shape) for shape in wide for op in MOMENTS]
    cases += [(op, shape) for shape in wide[:2] for op in FUSED if op != "rotary" or shape[1] % 256 == 0]
    cases += [("segment_moments", shape) for shape in ([(512, 384)] if run.small else EXPERTS)]
    cases.append(("blend_rows", (384, 256) if run.small else (18944, 3584)))
    names = [n for n, reason in usable(run.device).items() if reason is None and n != "reference"] or ["reference"]
    todo = [(op, shape, name) for op, shape in [("small", (256, 512)), *cases] for name in names]
    rows = []
    for number, (op, shape, name) in enumerate(todo):
        row: dict[str, Any] = {"op": op, "T": shape[0], "C": shape[1], "dtype": "bfloat16", "backend": name}
        rows.append(row)
        if run.left() < 0:
            row["cut"] = "ran out of time"
            continue
        try:
            with forced(name):
                row.update(kernel(op, shape, run, run.left() / (len(todo) - number)))
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    return rows


def kernel(op: str, shape: tuple[int, int], run: Run, seconds: float) -> dict[str, Any]:
    """Medians of one case."""
    if run.small:
        seconds = min(seconds, 0.5)
    x, other = (torch.randn(shape, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    if op == "small":
        call = MOMENTS["column_moments"](x, other).op
        times = on_device({"op": call}, run.device, min(seconds, 1), wall=True, least=20)["op"]
        return {"seconds": median(times), "spread": round(spread(times), 3)}
    out = torch.empty_like(x)
    calls: dict[str, Call] = {"copy": lambda: out.copy_(x)}
    if op == "blend_rows":
        calls["op"], moved = model_blend(*shape, layers=2 if run.small else 28, device=run.device)
    else:
        case = CASES[op](x, other)
        calls["op"], moved = case.op, case.moved
        if case.swapped:
            calls["swapped"] = case.swapped
        if case.plain:
            calls.update(plain=case.plain, stock=case.operators)
    rounds = on_device(calls, run.device, min(seconds / 2, 6))
    middle = medians(rounds)
    copied = 2 * x.nbytes / middle["copy"]
    row = {
        "seconds": middle["op"],
        "spread": round(spread(rounds["op"]), 3),
        "gbps": round(moved / middle["op"] / 1e9, 2),
        "copy_gbps": round(copied / 1e9, 2),
        "share_of_copy": round(moved / middle["op"] / copied, 4),
    }
    ratios = {f"ratio_to_{name}": round(middle["op"] / value, 4) for name, value in middle.items()}
    return row | {name: ratio for name, ratio in ratios.items() if name not in ("ratio_to_copy", "ratio_to_op")}


def model_blend(inner: int, hidden: int, layers: int, device: torch.device) -> tuple[Call, int]:
    """Every twentieth channel of a model like Qwen2.5-7B, and the bytes that must move.

    The donors are parts of one buffer, ten times what a GPU's second-level cache holds, and the targets a whole model.
    """
    shapes = [(hidden, hidden)] * 2 + [(hidden // 7, hidden)] * 2 + [(inner, hidden)] * 2 + [(hidden, inner)]
    pool = torch.randn(max(2**28 if device.type == "cuda" else 0, inner * hidden), device=device, dtype=torch.bfloat16)
    targets: list[torch.Tensor] = []
    donors: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    place = 0
    for shape in shapes * layers:
        size = shape[0] * shape[1]
        place = 0 if place + size > len(pool) else place
        donors.append(pool[place : place + size].view(shape))
        targets.append(torch.zeros(shape, device=device, dtype=torch.bfloat16))
        rows.append(torch.arange(len(rows) % 20, shape[0], 20))
        place += size
    moved = 3 * sum(len(chosen) * target.shape[1] for chosen, target in zip(rows, targets, strict=True)) * 2
    return lambda: act_kernels.blend_rows(targets, donors, rows, 0.4), moved


SIZES = {  # of Qwen 2.5: layers, hidden, inner, heads, groups, vocabulary
    "7B": (28, 3584, 18944, 28, 4, 152064),
    "1.5B": (28, 1536, 8960, 12, 2, 151936),
    "0.5B": (24, 896, 4864, 14, 2, 151936),
}


class Forwards:
    """Whole forwards of one size, each step a method that adds what it found; a rehearsal takes a tiny model."""

    def __init__(self, run: Run, size: str) -> None:
        self.run = run
        layers, hidden, inner, heads, kv, vocabulary = (2, 64, 128, 4, 2, 512) if run.small else SIZES[size]
        batch, length = (2, 32) if run.small else (8, 1024)
        config = Qwen2Config(  # type: ignore[call-arg]
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv, vocab_size=vocabulary, attn_implementation="sdpa",
        )  # fmt: skip
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with run.device:
                self.model, self.donor = (Qwen2ForCausalLM(config).eval() for _ in range(2))
        finally:
            torch.set_default_dtype(before)
        ids = torch.randint(0, vocabulary, (batch, length), device=run.device)
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.count_mask = torch.ones(batch, length, dtype=torch.bool)
        self.space = ChannelSpace.from_model(self.model)
        self.plain = partial(self.model, **self.inputs, use_cache=False)
        self.found: dict[str, Any] = {"tokens": batch * length, "layers": layers, "hidden": hidden, "errors": {}}

    def note(self, times: Times) -> None:
        """Median and spread of each call."""
        for name, values in times.items():
            self.found[f"{name}_s"], self.found[f"{name}_spread"] = median(values), round(spread(values), 4)

    def timed(self, name: str, call: Call, share: float) -> None:
        """Time one call for a share of the time that is left."""
        most = 1.0 if self.run.small else 60.0
        self.note(on_device({name: call}, self.run.device, min(most, max(0, self.run.left() * share))))

    def peak(self, call: Call) -> int | None:
        """Bytes allocated on the GPU at the most while ``call`` runs."""
        if self.run.small:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start

    def profiled(self) -> None:
        """Plain and profiled forwards in turns; taps are removed in between, so that plain forwards run without any."""
        rounds: Times = {"plain": [], "profiled": []}
        least = 2 if self.run.small else 5
        for _ in range(2 if self.run.small else 3):
            rounds["plain"] += on_device({"_": self.plain}, self.run.device, 0, least=least)["_"]
            with taps(self.model, Moments(self.space, device=self.run.device), exclude=["head"]) as tapped:
                call = partial(tapped.forward, self.inputs, self.count_mask)
                call()  # warms up
                rounds["profiled"] += on_device({"_": call}, self.run.device, 0, least=least)["_"]
                self.found["profiled_peak"] = self.peak(call)
                self.found["paths"] = sorted(set(tapped.paths.values()))
        self.note(rounds)
        self.found["plain_peak"] = self.peak(self.plain)
        self.found["ratio"] = round(self.found["profiled_s"] / self.found["plain_s"], 4)

    def matmul(self) -> None:
        """The rate of a large matrix product, and the share of it that a profiled forward reaches."""
        size = 256 if self.run.small else 8192
        a, b = (torch.randn(size, size, device=self.run.device, dtype=torch.bfloat16) for _ in range(2))
        self.timed("matmul", lambda: a @ b, 0.05)
        rate = 2 * size**3 / self.found["matmul_s"] / 1e12
        (batch, length), layers, hidden = self.count_mask.shape, self.found["layers"], self.found["hidden"]
        parameters = self.model.named_parameters()
        body = sum(p.numel() for name, p in parameters if "embed" not in name and "lm_head" not in name)
        flops = 2 * body * batch * length + 2 * layers * batch * length**2 * hidden  # causal attention
        reached = flops / self.found["profiled_s"] / 1e12
        self.found.update(matmul_tflops=rate, model_tflops=reached, share_of_matmul=round(reached / rate, 4))

    def pair(self) -> None:
        """Donor and target in lockstep."""
        from act.taps.lockstep import lockstep  # needs greenlet, which may be absent

        moments = Moments(self.space, pair=True, device=self.run.device)
        with lockstep(self.donor, self.model, moments, exclude=["head"]) as both:
            self.timed("pair", lambda: both.forward(self.inputs, self.count_mask), 0.3)
        self.found["pair_ratio"] = round(self.found["pair_s"] / self.found["plain_s"] / 2, 4)

    def hooks(self) -> None:
        """The hooks most people write."""
        self.timed("hooks", partial(by_sums(self.model), **self.inputs, use_cache=False), 0.3)

    def nnsight(self) -> None:
        """The same through nnsight."""
        call = by_nnsight(self.model)
        if call is None:
            raise RuntimeError("nnsight is not installed")
        self.timed("nnsight", partial(call, **self.inputs, use_cache=False), 0.5)


@torch.inference_mode()
def forwards(run: Run) -> dict[str, Any]:
    """Plain, profiled and pair forwards, memory, and the share of the rate of a matrix product, by size.

    The largest comes first and stands at the top; it alone is compared with hooks and nnsight.
    """
    sizes: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        whole = Forwards(run, size)
        steps = [whole.profiled, whole.matmul, whole.pair]
        if not sizes:
            steps += [whole.hooks, whole.nnsight]
        errors = whole.found["errors"]
        for step in steps:
            name = step.__name__
            if run.left() < 0 and name != "profiled":
                errors[name] = "cut: ran out of time"
                continue
            try:
                step()
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {str(error)[:500]}"
        sizes[size] = whole.found
        del whole, steps, step  # bound methods hold the models
        gc.collect()
    largest, *_ = sizes.values()
    return {**largest, "sizes": sizes}


def targets(run: Run) -> list[dict[str, Any]]:
    """Each figure to reach: what was found, and ``met``, ``not met`` or ``not measured``."""
    phases, rows = run.result["phases"], []

    def add(name: str, found: float | None, limit: float, below: bool = True) -> None:
        state = "not measured" if run.small or found is None else ("met" if (found <= limit) == below else "not met")
        rows.append({"target": name, "limit": limit, "found": found, "state": state})

    for row in phases.get("kernels", {}).get("found", []):
        name = f"{row['op']} {row['T']}x{row['C']} {row['backend']}"
        if row["op"] == "small":
            add(name, row.get("seconds"), 12e-6)
        elif row["op"] in MOMENTS:
            add(name, row.get("share_of_copy"), LEAST_SHARE.get(row["backend"], 0.85), below=False)
        elif row["op"] == "segment_moments":
            add(name, row.get("share_of_copy"), LEAST_SHARE_OF_SEGMENTS, below=False)
        elif row["op"] == "blend_rows":
            add(name, row.get("share_of_copy"), 0.70, below=False)
            add(f"{name}, seconds", row.get("seconds"), 0.050)
        else:
            add(name, row.get("ratio_to_plain"), 1.10)
    forwards = phases.get("forwards", {}).get("found", {})
    for size, whole in forwards.get("sizes", {}).items():
        add(f"profiled / plain, {size}", whole.get("ratio"), 1.00)
        add(f"pair / two plain, {size}", whole.get("pair_ratio"), 1.02)
        peaks = whole.get("profiled_peak"), whole.get("plain_peak")
        add(f"memory above plain, bytes, {size}", peaks[0] - peaks[1] if None not in peaks else None, 300e6)
    add("share of matmul rate", forwards.get("share_of_matmul"), 0.60, below=False)
    return rows


PHASES: list[tuple[str, float, Callable[[Run], Any]]] = [
    ("environment", 0.02, environment),
    ("correctness", 0.23, correctness),
    ("forwards", 0.35, forwards),
    ("kernels", 0.30, kernels),
    ("sanitizer", 0.10, sanitizer),
]


def main() -> None:
    """Run the phases, write the JSON after each, print a table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("."))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--check-backend", help="only the correctness of one backend; nothing is written")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("no GPU is available to PyTorch; rehearse with --device cpu")
    run = Run(torch.device(options.device))
    end = time.monotonic() + 60 * options.minutes
    if options.check_backend:
        run.until = end
        checked = correctness(run, options.check_backend)
        print(f"{checked['passed']} passed, {checked['failed']} failed, {checked['cut']} cut")
        sys.exit(1 if checked["failed"] or not checked["passed"] else 0)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{run.device.type}.json"
    for number, (name, share, phase) in enumerate(PHASES):
        left = sum(other for _, other, _ in PHASES[number:])
        start = time.monotonic()
        run.until = start + max(0, end - start) * share / left
        try:
            entry: dict[str, Any] = {"found": phase(run)}
        except Exception:
            entry = {"error": traceback.format_exc()[-3000:]}
        entry["seconds"] = round(time.monotonic() - start, 1)
        run.result["phases"][name] = entry
        gc.collect()
        if run.device.type == "cuda":
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        run.result["targets"] = targets(run)
        write_json(path, run.result)
        print(f"{name}: {entry['seconds']} s{' FAILED' if 'error' in entry else ''}", flush=True)
    print(f"\n{run.device}; {path}; backend {choose(run.device.type).backend.name}")
    for row in run.result["targets"]:
        print(f"{row['target']:44}{row['found'] if row['found'] is not None else '-':>24}  {row['state']}")
    checks = run.result["phases"]["correctness"].get("found", {"failed": 1})
    sane = run.result["phases"]["sanitizer"].get("found", {})
    dirty = any(isinstance(kind, dict) and kind.get("clean") is False for kind in sane.values())
    sys.exit(1 if checks["failed"] or dirty else 0)


if __name__ == "__main__":
    main()
