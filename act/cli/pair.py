"""``act-profile pair``: profile a donor and a target on the same tokens."""

from __future__ import annotations

from act.cli.grouped import with_options
from act.cli.measuring import Measuring
from act.cli.measuring_options import PairOptions
from act.cli.options import Donor, Target

EXAMPLES = """
act-profile pair --donor base/ --target specialist/ --corpus german.jsonl \\
    --show-spans 3
act-profile pair --donor base/ --target specialist/ --corpus german.jsonl \\
    --output german.safetensors
"""


@with_options
def command(
    donor: Donor,
    target: Target,
    options: PairOptions,
) -> None:
    """Profile donor and target in lockstep: the statistics of both models and of their difference.

    With --swap, the donor's modules are also applied to the target's own inputs, for the scores match and
    match-contrast.
    """
    Measuring({"donor": donor, "target": target}, options).run()
