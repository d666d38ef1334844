"""Put a base, its specialist in mathematics and short texts where ``act-profile demo`` finds them.

    python experiments/shipped.py --models DIR [--data DIR] [--output act/lab/checkpoints/prose]

DIR is the folder of models in the cache of ``experiments/language.py``. Texts are the beginnings of German help pages
and of problems, the first of each split of that experiment: the models were trained on those of ``train`` alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from pathlib import Path

from language import DATA
from prose import MATHEMATICS, Texts

from act.lab.prose import PROSE

MODELS = {"base": "base-0", "mathematics": "mathematics-0"}
ABILITIES = {"german": "German", "mathematics": MATHEMATICS}
COUNTS = {
    ("german", "train"): 32,
    ("german", "test"): 32,
    ("mathematics", "train"): 32,
    ("mathematics", "validation"): 24,
    ("mathematics", "test"): 32,
}
CHARACTERS = 400  # about 130 tokens


def beginning(text: str) -> str:
    """At most :data:`CHARACTERS` characters, whole words."""
    return text if len(text) <= CHARACTERS else text[: CHARACTERS + 1].rsplit(maxsplit=1)[0]


def write_texts(texts: Texts, folder: Path) -> None:
    """One file for each ability and split, the same bytes every time."""
    for (name, split), count in COUNTS.items():
        found = texts(ABILITIES[name], split)[:count]
        rows = (json.dumps({"text": beginning(text)}, ensure_ascii=False) for text in found)
        packed = gzip.compress("".join(f"{row}\n" for row in rows).encode(), mtime=0)
        (folder / f"{name}-{split}.jsonl.gz").write_bytes(packed)


def main() -> None:
    """Copy the models, and write the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="of base-0 and mathematics-0")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="help pages and problems")
    parser.add_argument("--output", type=Path, default=PROSE, metavar="DIR")
    given = parser.parse_args()
    hidden = shutil.ignore_patterns(".*")
    for name, trained in MODELS.items():
        shutil.copytree(given.models / trained, given.output / name, ignore=hidden, dirs_exist_ok=True)
    write_texts(Texts(given.data), given.output)


if __name__ == "__main__":
    main()
