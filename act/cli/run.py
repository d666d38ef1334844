"""``act-profile run``: profile one model."""

from __future__ import annotations

from act.cli.grouped import with_options
from act.cli.measuring import Measuring
from act.cli.measuring_options import MeasuringOptions
from act.cli.options import Model, Revision

EXAMPLES = """
act-profile run --model specialist/ --corpus german.jsonl \\
    --output german.safetensors
act-profile run --model org/name@v1 --corpus org/texts:train --count all \\
    --until-stable
"""


@with_options
def command(model: Model, options: MeasuringOptions, revision: Revision = None) -> None:
    """Profile one model: the statistics of every channel over the counted tokens of a corpus."""
    from act.models.hub import at_revision

    Measuring({"model": at_revision(model, revision)}, options).run()
