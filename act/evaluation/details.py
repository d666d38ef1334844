"""What every record showed of an evaluation: its likelihood, what the model answered, and whether that is right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from act.evaluation.evaluate import Evaluation
from act.evaluation.significance import finite

ENDINGS = (".jsonl", ".csv", ".parquet")


class Detail(TypedDict):
    """One record: ``output`` is what the model answered, ``answer`` what is right; None where none is judged."""

    model: str
    corpus: str
    metric: str
    record: int
    nll: float | None
    tokens: int
    right: bool | None
    output: str | None
    answer: str | None


def details_of(evaluation: Evaluation) -> Iterator[Detail]:
    """A row for each record, in order.

    >>> from act.evaluation.details import details_of
    >>> next(details_of(act.evaluate(model, corpus, "nll", name="mine")))["model"]
    'mine'
    """
    one = evaluation
    for record in range(len(one.nll)):
        yield {
            "model": one.model,
            "corpus": one.corpus,
            "metric": one.metric,
            "record": record,
            "nll": finite(one.nll[record].item()),
            "tokens": int(one.tokens[record]),
            "right": None if one.right is None else bool(one.right[record]),
            "output": one.outputs[record] if one.outputs else None,
            "answer": one.expected[record] if one.expected else None,
        }


def write_details(path: Path, evaluations: Iterable[Evaluation], ending: str = ".jsonl") -> None:
    """Write a row for each record of some evaluations, by the ``ending`` as one of :data:`ENDINGS`."""
    rows = [row for one in evaluations for row in details_of(one)]
    if ending in (".csv", ".parquet"):
        import pyarrow as pa
        from pyarrow import csv, parquet

        kinds = [pa.string()] * 3 + [pa.int64(), pa.float64(), pa.int64(), pa.bool_(), pa.string(), pa.string()]
        table = pa.Table.from_pylist(rows, pa.schema(list(zip(Detail.__annotations__, kinds, strict=True))))
        (csv.write_csv if ending == ".csv" else parquet.write_table)(table, path)
        return
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
