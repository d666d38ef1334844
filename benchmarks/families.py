"""Is every family that transformers has measured and edited exactly, at every site?

    python benchmarks/families.py --json OUT [--families llama gpt2 …]

A tiny model of each family. ``coverage`` is the share of its parameters behind channels, with what is ``uncovered`` and
why; ``max_rel_error`` the largest deviation of a mean, relative to the largest value of its site, or of a variance,
relative to its square, from the activations of every site kept in float64 (``tests/site_reference.py``), over batches
with batch = length = heads, padded on the right and on the left (infinite if a count is wrong; ``unchecked``: sites
that the reference knows nothing of; ``could_be_read``: sites that it alone reads); ``logits_bit_equal`` compares logits
under taps with ``fused=False`` to plain ones, ``fused_logits_error`` those of fused taps, relative to the largest;
``transfer_exact`` says that a transfer of random channels is an edit by hand, bit for bit, and that reverting gives the
first bits; ``paths`` counts the sites that each op reads.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from family_checks import Batch, batches_for, logits, measure
from measure import options, record
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from multimodal import config_of, multimodal
from tiny_families import MOST_PARAMETERS, encoder_decoders, encoders, expert_families, families, tiny
from trained_families import SENTENCES, STORIES, trained

IMAGES = " (text and images)"
SECONDS = 150
"""That one family may take."""


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
        *encoder_decoders(),
        *(f"{each}{IMAGES}" for each in sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)),
        STORIES,
        SENTENCES,
    ]
    for name in every if given.families is None else given.families:
        try:
            donor, target, batches = made(name)
            logits(target, batches["right"])
        except Exception as error:
            not_built[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            continue
        signal.alarm(SECONDS)
        try:
            rows.append(measure(name, donor, target, batches))
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            print(f"{name:28} FAILED {failed[name]}", flush=True)
            continue
        finally:
            signal.alarm(0)
        tell(rows[-1])
        record(given.json, {"families": rows, "failed": failed, "not_built": not_built})  # what a broken run leaves
    print(f"{len(rows)} families in {time.perf_counter() - start:.0f} s; {len(not_built)} cannot be built tiny")
    for row in rows:
        if misses := missed(row):
            print(f"  {row['family']}: {'; '.join(misses)}")
    record(given.json, {"families": rows, "failed": failed, "not_built": not_built})


def made(name: str) -> tuple[nn.Module, nn.Module, dict[str, Batch]]:
    """A donor, a target, and batches for them."""
    if name in (STORIES, SENTENCES):
        return trained(name)
    donor, target = (
        with_images(name.removesuffix(IMAGES), seed) if name.endswith(IMAGES) else tiny(name, seed) for seed in (0, 1)
    )
    return donor, target, batches_for(target)


def with_images(family: str, seed: int) -> nn.Module:
    """A tiny model of text and images."""
    with torch.device("meta"):
        model: nn.Module = transformers.AutoModelForImageTextToText.from_config(config_of(family))
    if (size := sum(parameter.numel() for parameter in model.parameters())) > MOST_PARAMETERS:
        raise ValueError(f"{size} parameters")
    return multimodal(family, seed)


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
    keys = ("uncovered", "could_be_read", "unchecked", "not_moved_by_hand")
    found += [f"{key}: {', '.join(row[key])}" for key in keys if key in row]
    return found


if __name__ == "__main__":
    main()
