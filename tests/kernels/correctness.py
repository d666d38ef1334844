"""Is every op right on this device, on every backend that can run there?

Two answers: the project's own tests of the ops, run in this process where pytest can be imported, and checks that need
PyTorch alone: against float64 or the plain operators on the CPU, each computed twice for the same bits.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from act_kernels import empty_moments, ops
from act_kernels.backends import ENVIRONMENT_VARIABLE
from kernels.oracle import DTYPES, ISAS, assert_moments_close, paired, random, truth

TESTS = Path(__file__).resolve().parent
STRIDE = 7  # tests run in this many rounds, each a sample of all of them
SHAPES = [(300, 512), (257, 65), (7, 123), (1, 1), (63, 5)]
HIDDEN, HEAD = (2048, 3584), (64, 152064)  # tokens and channels of a 7B model
LAYOUTS = ("all rows", "masked", "part of wider rows", "transposed", "not finite")
OPTIONS: dict[str, Sequence[Any]] = {
    "column_moments": (None,),
    "segment_moments": (None,),
    "pair_moments": (False, True),  # with a swapped output
    "gated_mlp": ops.ACTIVATIONS,
    "rotary": [(interleaved, once, part) for interleaved in (False, True) for once in (False, True) for part in (1, 2)],
    "add_norm": ops.NORM_STYLES,
    "blend_rows": (1.0, 0.3, 0.8),
}

Tensors = list[torch.Tensor]
Case = tuple[str, tuple[int, int], torch.dtype, str]


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """Everything runs on one backend."""
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = backend
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT_VARIABLE)
        if before is not None:
            os.environ[ENVIRONMENT_VARIABLE] = before


class Tally:
    """A pytest plugin: runs the tests of some backends in rounds, each backend in its share of the time; counts."""

    def __init__(self, backends: list[str], rounds: int, until: float) -> None:
        self.backends, self.rounds, self.until = backends, rounds, until
        self.running, self.end = "", 0.0
        self.passed, self.cut, self.skipped = 0, 0, 0
        self.failures: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        chosen: list[Any] = []
        for backend in self.backends:
            alike = [item for item in items if self._backend(item) == backend]
            chosen += [item for start in range(self.rounds) for item in alike[start::STRIDE]]
        items[:] = chosen

    def pytest_runtest_setup(self, item: Any) -> None:
        import pytest

        backend, now = self._backend(item), time.monotonic()
        if backend != self.running:
            self.running = backend
            self.end = now + (self.until - now) / (len(self.backends) - self.backends.index(backend))
        if now > self.end:
            self.cut += 1
            pytest.skip("out of time")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        self.skipped += report.skipped
        if report.failed:
            message = str(getattr(report.longrepr, "reprcrash", report.longrepr))
            self.failures.append(f"{report.nodeid} ({report.when}): {message[-300:]}")

    @staticmethod
    def _backend(item: Any) -> str:
        return item.callspec.params.get("backend", "") if hasattr(item, "callspec") else ""


def by_tests(names: Sequence[str], device: torch.device, until: float) -> dict[str, Any]:
    """The tests of the ops on the backends ``names``; on a CPU one round of them, else as many as the time allows."""
    try:
        import pytest
    except ImportError:
        return {"skipped": "pytest is not installed"}
    if device.type == "cuda":
        # Triton compiles for minutes: last, with all the time that the others leave.
        tally = Tally([f"{name} on the GPU" for name in sorted(names)], STRIDE, until)
    else:
        tally = Tally([ISAS[0] if name == "native" else name for name in names], 1, until)
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    printed = io.StringIO()
    before = os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = int(pytest.main([*options, str(TESTS)], plugins=[tally]))
    finally:
        os.environ.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
        if before is not None:
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = before
    if not tally.passed and not tally.failures:
        return {"skipped": f"no test ran (exit code {code}): {printed.getvalue()[-500:]}"}
    counts = {"passed": tally.passed, "failed": len(tally.failures), "cut": tally.cut}
    return {**counts, "skipped_tests": tally.skipped - tally.cut, "failures": tally.failures[:50]}


def as_heads(x: torch.Tensor) -> torch.Tensor:
    """``x`` [T, C] as [1, heads, T, width], a view."""
    channels = x.shape[1]
    width = next((width for width in (128, 64) if channels % width == 0), channels)
    return x.unflatten(1, (channels // width, width))[None].transpose(1, 2)


def tables(rows: int, width: int, part: int, like: torch.Tensor) -> Tensors:
    """Cosine and sine [1, rows, R], R the even width that turns: one part in ``part`` of a head."""
    turned = max(2, width // part // 2 * 2)
    angle = torch.arange(rows)[:, None] * torch.logspace(0, -3, turned // 2)
    return [table.repeat(1, 2)[None].to(like) for table in (angle.cos(), angle.sin())]


def offsets_of(rows: int) -> list[int]:
    """Of five segments: two without rows, one with most of them; the last row is in none."""
    return [0, 0, rows // 8, rows // 8, rows - 1 - (rows - 1) // 4, rows - 1]


def run(op: str, option: Any, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None) -> tuple[Tensors, Tensors]:
    """Outputs and moments of an op of ``x`` and ``y`` [T, C], wherever they lie."""
    blocks = list(empty_moments(x.shape[1], 3, device=x.device))
    outputs: Tensors = []
    if op == "column_moments":
        ops.column_moments(x, blocks[0], mask)
    elif op == "segment_moments":
        offsets = torch.tensor(offsets_of(len(x)), dtype=torch.int32, device=x.device)
        segments = empty_moments(x.shape[1], len(offsets) - 1, device=x.device)
        ops.segment_moments(x, segments.transpose(0, 1), offsets, mask)
        blocks = list(segments)
    elif op == "pair_moments":
        pair = empty_moments(x.shape[1], 5 if option else 3, device=x.device)
        ops.pair_moments(x, y, pair, mask, x.flip(0) if option else None)
        blocks = list(pair)
    elif op == "gated_mlp":
        named = dict(zip(("gate_moments", "up_moments", "product_moments"), blocks, strict=True))
        outputs = [ops.gated_mlp(x, y, option, mask=mask, **named)]
    elif op == "add_norm":
        named = {"x_moments": blocks[0], "norm_moments": blocks[1]}
        outputs = list(ops.add_norm(x, y, y[0].contiguous(), eps=1e-5, style=option, mask=mask, **named))
    elif op == "rotary":
        interleaved, once, part = option
        q, k = as_heads(x), as_heads(y)
        named = dict(zip(("q_moments", "k_moments", "v_moments"), blocks, strict=True))
        angles = tables(len(x), q.shape[3], part, x)
        outputs = list(ops.rotary(q, k, *angles, interleaved=interleaved, round_once=once, v=k, mask=mask, **named))
    elif op == "blend_rows":
        blended = x.clone()
        ops.blend_rows([blended], [y], [torch.arange(0, len(x), 3)], option)
        outputs = [blended]
    return outputs, blocks


def judge(
    op: str, option: Any, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None, outputs: Tensors, blocks: Tensors
) -> None:
    """What :func:`run` gave, against operators and float64; everything on the CPU. Raises AssertionError."""
    with forced("reference"):
        expected, _ = run(op, option, x, y, mask)
    units = 0 if x.dtype == torch.float32 else 2 * torch.finfo(x.dtype).eps
    for name, one, other in zip(("first output", "second output"), outputs, expected, strict=False):
        assert torch.equal(one.isnan(), other.isnan()), f"{name}: NaN elsewhere"
        found, wide = (z.double().nan_to_num(0, 0, 0) for z in (one, other))
        terms = (x.double() * y.double()).abs().nan_to_num(0, 0, 0) if op == "gated_mlp" else 0
        scale = wide.square().mean(-1, keepdim=True).sqrt() + wide.abs() + terms
        tiny = torch.finfo(x.dtype).smallest_normal * units + 1e-7
        assert ((found - wide).abs() <= 1e-6 * scale + units * wide.abs() + tiny).all(), name
    spans = [slice(*span) for span in pairwise(offsets_of(len(x)))]
    measured = {
        "column_moments": [x],
        "segment_moments": [x[span] for span in spans],
        "pair_moments": paired(x, y, x.flip(0) if option else None),
        "gated_mlp": [x, y, *outputs],
        "add_norm": [x, *outputs[1:]],
        "rotary": [x, y, y],
        "blend_rows": [],
    }[op]
    masks = [mask] * len(measured)
    if op == "segment_moments" and mask is not None:
        masks = [mask[span] for span in spans]
    for block, values, counted in zip(blocks, measured, masks, strict=False):
        assert_moments_close(block, truth(values, counted), relative=2e-6)


def check(case: Case, device: torch.device) -> None:
    """One op with all its options against float64; raises AssertionError."""
    op, (rows, channels), dtype, layout = case
    x, y = random(rows, channels, dtype), random(rows, channels, dtype, seed=1)
    mask = torch.arange(rows) % 3 != 1 if layout in ("masked", "not finite") else None
    if layout == "not finite":
        x[0, -1], x[rows // 2, 0], y[-1, channels // 2] = float("nan"), float("inf"), float("-inf")

    def there(z: torch.Tensor) -> torch.Tensor:
        z = z.to(device)
        if layout == "part of wider rows":
            return torch.nn.functional.pad(z, (3, 2))[:, 3:-2]
        return z.t().contiguous().t() if layout == "transposed" else z

    options = OPTIONS[op]
    if op == "rotary" and channels < 2:
        options = ()
    elif op == "add_norm" and channels < 2:
        options = [style for style in options if style != "layer"]  # less its own mean, nothing but rounding is left
    # Only the first options say where infinities go: PyTorch's gelu makes NaN of one on a CPU, and not on a GPU.
    few = op != "pair_moments" and (layout in ("transposed", "not finite") or rows * channels > 10**6)
    for option in options[: 1 if few else None]:
        given = there(x), there(y), None if mask is None else mask.to(device)
        outputs, blocks = ([z.cpu() for z in tensors] for tensors in run(op, option, *given))
        again = [z.cpu() for tensors in run(op, option, *given) for z in tensors]
        for one, other in zip([*outputs, *blocks], again, strict=True):
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), f"{option}: other bits the second time"
        try:
            judge(op, option, x, y, mask, outputs, blocks)
        except AssertionError as error:
            raise AssertionError(f"{option}: {error}") from None


def by_checks(names: Sequence[str], device: torch.device, until: float, cases: Sequence[Case]) -> dict[str, Any]:
    """The ``cases`` on the backends ``names``, in turn."""
    passed, cut, failures = 0, 0, []
    for case in cases:
        for name in names:
            if time.monotonic() > until:
                cut += 1
                continue
            try:
                with forced(name):
                    check(case, device)
                passed += 1
            except Exception as error:
                what = " ".join([name, case[0], str(list(case[1])), str(case[2]), case[3]])
                failures.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    return {"passed": passed, "failed": len(failures), "cut": cut, "failures": failures[:50]}


def all_cases() -> list[Case]:
    """Small and awkward shapes, every type and layout; the most telling first."""
    return [(op, shape, dtype, layout) for shape in SHAPES for layout in LAYOUTS for op in OPTIONS for dtype in DTYPES]


def model_cases(small: bool) -> list[Case]:
    """Shapes of a 7B model, which the tests of the ops leave out, and one of each layout; ``small``: none so large."""
    large = [(op, HIDDEN) for op in OPTIONS] + [(op, HEAD) for op in ("column_moments", "pair_moments")]
    cases = [] if small else [(op, shape, torch.bfloat16, "masked") for op, shape in large]
    return cases + [(op, SHAPES[-1 if small else 0], torch.bfloat16, layout) for layout in LAYOUTS for op in OPTIONS]
