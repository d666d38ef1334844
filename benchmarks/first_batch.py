"""A run that ends as its first batch is fed, and prints the seconds it took until then; started by ``start.py``.

python benchmarks/first_batch.py act-profile run --model … --corpus … --output …
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, NoReturn


class Now:
    """Wall time and CPU time of this process at one moment."""

    def __init__(self) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter(), time.process_time()

    def since(self, other: Now) -> dict[str, float]:
        """The seconds between another moment and this one."""
        return {name: round(value - getattr(other, name), 3) for name, value in vars(self).items()}


def main() -> None:
    """Time the imports, the loading and the way to the first batch."""
    start = Now()
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import PreTrainedModel

    imported = Now()
    from act.cli import main as command_line
    from act.profiling.run import Run

    models: Any = PreTrainedModel
    runs: Any = Run
    read = models.from_pretrained.__func__
    loading: dict[str, float] = {}

    def from_pretrained(kind: Any, *arguments: Any, **keywords: Any) -> Any:
        before = Now()
        model = read(kind, *arguments, **keywords)
        loading.update(Now().since(before))
        return model

    def feed(run: Run, batch: Any) -> NoReturn:
        on_the_way = Now().since(imported)
        beyond = {name: round(value - loading[name], 3) for name, value in on_the_way.items()}
        print(json.dumps({"imports": imported.since(start), "loading": loading, "beyond": beyond}), flush=True)
        os._exit(0)

    models.from_pretrained, runs.feed = classmethod(from_pretrained), feed
    sys.argv = sys.argv[1:]
    command_line()


if __name__ == "__main__":
    main()
