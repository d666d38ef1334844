"""Is every family that transformers has measured and edited exactly, at every site?

    python benchmarks/families.py --json OUT [--families llama gpt2 …]

A tiny model of each family. ``coverage`` is the share of its parameters behind channels, with what is ``uncovered`` and
why; ``max_rel_error`` the largest deviation of a mean, relative to the largest value of its site, or of a variance,
relative to its square, from the activations of every site kept in float64 (``tests/site_reference.py``), over batches
with batch = length = heads, padded on the right and on the left (infinite if a count is wrong; ``unchecked``: sites
that the reference knows nothing of); ``logits_bit_equal`` compares logits under taps with ``fused=False`` to plain
ones, ``fused_logits_error`` those of fused taps, relative to the largest; ``transfer_exact`` says that a transfer of
random channels is an edit by hand, bit for bit, and that reverting gives the first bits; ``paths`` counts the sites
that each op reads.
"""

from __future__ import annotations

import copy
import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from family_checks import batch_of, logits, measure
from measure import options, record
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from multimodal import FAMILIES as WITH_IMAGES
from multimodal import multimodal
from tiny_families import encoders, expert_families, families, tiny
from trained import stories

IMAGES = " (text and images)"
SECONDS = 150
"""That one family may take."""
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def trained() -> dict[str, tuple[nn.Module, nn.Module]]:
    """The trained models at hand, each as target, with a donor that differs from it a little."""
    found = {}
    if (SHARED_DATA / "stories260K").is_dir():
        found["stories260K (trained)"] = stories.load_model(SHARED_DATA / "stories260K")
    return {name: (_near(model), model) for name, model in found.items()}


def _near(model: nn.Module) -> nn.Module:
    donor = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return donor


def main() -> None:
    """Print a line for each family, then what is not as it should be, and write all."""
    parser = options(__doc__)
    parser.add_argument("--families", nargs="*", help="default: every one, and the trained models at hand")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.getLogger("act").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, too_long)
    rows, not_built, failed, start = [], {}, {}, time.perf_counter()
    every = [
        *sorted({*families(), *expert_families()}),
        *encoders(),
        *(f"{each}{IMAGES}" for each in WITH_IMAGES.split()),
    ]
    every = every if given.families is None else given.families
    for name in every:
        try:
            models = made(name, 0), made(name, 1)
            logits(models[0], batch_of([5, 5], False))
        except Exception as error:
            not_built[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            continue
        signal.alarm(SECONDS)
        try:
            rows.append(measure(name, *models))
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            print(f"{name:28} FAILED {failed[name]}", flush=True)
            continue
        finally:
            signal.alarm(0)
        tell(rows[-1])
        record(given.json, {"families": rows, "failed": failed, "not_built": not_built})  # what a broken run leaves
    if given.families is None:
        for name, models in trained().items():
            rows.append(measure(name, *models))
            tell(rows[-1])
    print(f"{len(rows)} families in {time.perf_counter() - start:.0f} s; {len(not_built)} cannot be built tiny")
    for row in rows:
        if misses := missed(row):
            print(f"  {row['family']}: {'; '.join(misses)}")
    record(given.json, {"families": rows, "failed": failed, "not_built": not_built})


def made(name: str, seed: int) -> nn.Module:
    """A tiny model."""
    return multimodal(name.removesuffix(IMAGES), seed) if name.endswith(IMAGES) else tiny(name, seed)


def too_long(*_: object) -> None:
    """What an alarm does."""
    raise TimeoutError(f"more than {SECONDS} s")


def tell(row: dict[str, Any]) -> None:
    """One line."""
    flags = f"{'equal' if row['logits_bit_equal'] else 'LOGITS':6} {'exact' if row['transfer_exact'] else 'TRANSFER':8}"
    paths = json.dumps(row["paths"])
    print(f"{row['family']:28} {row['coverage']:8.2%} {row['max_rel_error']:8.1e} {flags} {paths}", flush=True)


def missed(row: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = [f"{row['max_rel_error']:.1e} at {row['worst']}"] if "worst" in row else []
    found += [] if row["logits_bit_equal"] else ["logits differ under taps that are not fused"]
    found += [] if row["transfer_exact"] else ["a transfer is no edit by hand"]
    found += [f"{key}: {', '.join(row[key])}" for key in ("uncovered", "unchecked", "not_moved_by_hand") if key in row]
    return found


if __name__ == "__main__":
    main()
