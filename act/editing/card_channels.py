"""How the channels of a transfer were found, for its model card: on which texts, and by which commands again."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from act.data.records import is_hub_id
from act.editing.card_texts import fingerprints_said
from act.ranking.rule import Rule
from act.ranking.scores import SCORES


def texts_of(rule: Rule) -> list[str]:
    """Where all texts lie that a rule was applied to: those of the ability, then those of what to keep."""
    return [*_places(rule, rule.corpora), *_places(rule, itertools.chain.from_iterable(rule.keep))]


def how_found(rule: Rule, donor: str, target: str, *, commands: bool = True) -> str:
    """Markdown on how a set was found: hub ids as links, files by their names, and the commands that find it again.

    Args:
        rule: of the channel set.
        donor, target: what the models are called.
        commands: whether a set is found again by these alone.

    >>> from act.editing.card_channels import how_found
    >>> rule = Rule("paired", top=0.05, corpora=("/here/german.jsonl",), keep=(("org/maths:train",),))
    >>> print(how_found(rule, "org/base", "mine").partition("```")[0].strip())
    On german.jsonl; to be kept: [org/maths](https://huggingface.co/datasets/org/maths) (train). By paired, top 5%.
    """
    if not rule.corpora:
        return f"By {rule}; on which text, the channel set does not say."
    kept = _places(rule, itertools.chain.from_iterable(rule.keep))
    texts = _listed(_places(rule, rule.corpora)) + (f"; to be kept: {_listed(kept)}" if kept else "")
    if rule.parts:
        texts += "".join(f"; of {_name(name)} only {part}" for name, part in rule.parts.items())
    said = f"On {texts}. By {rule}."
    if known := fingerprints_said("ranked", {_name(name): each for name, each in rule.fingerprints.items()}):
        said += f"\n\n{known}"
    if not commands or rule.score not in SCORES:
        return said
    lines = "\n".join(" ".join(map(shlex.quote, line)) for line in _commands(rule, donor, target))
    return (
        f"{said}\n\n```bash\n{lines}\n```\n\nHow the texts were read (`--count`, `--max-length`, …), where it was "
        "not as usual, is said in the profiles; the channel set does not say it."
    )


def _commands(rule: Rule, donor: str, target: str) -> list[list[str]]:
    score, models = SCORES[rule.score], ["--donor", donor, "--target", target]
    types = {model.dtype for model in rule.models.values() if model.dtype in ("float32", "bfloat16", "float16")}
    dtype = [text for one in types if len(types) == 1 for text in ("--dtype", str(one))]
    ability = ["--corpus", *_each("--corpus", rule, rule.corpora)]
    profile = "profile.safetensors"
    if score.takes_cost:
        kept = [text for names in rule.keep for text in ("--keep", *_each("--keep", rule, names))]
        measured, with_keep = [["act-profile", "attribute", *models, *dtype, *ability, *kept, "--output", profile]], []
    else:
        pair = ["act-profile", "pair", *models, *dtype, *(["--swap"] if score.needs_swap else [])]
        keeps = {
            f"keep-{number}.safetensors": ["--corpus", *_each("--corpus", rule, names)]
            for number, names in enumerate(rule.keep, start=1)
        }
        measured = [[*pair, *text, "--output", name] for name, text in {profile: ability, **keeps}.items()]
        with_keep = [text for name in keeps for text in ("--keep-profile", name)]
    named = models if score.needs_models else []
    ranked = ["act-profile", "rank", profile, *with_keep, *named, *rule.options, "--output", "channels.safetensors"]
    return [*measured, ranked]


def _each(option: str, rule: Rule, names: Sequence[str]) -> list[str]:
    """The texts of some names, each as a file or hub id, with the option between them."""
    first, *others = map(_name, _places(rule, names))
    return [first, *(text for one in others for text in (option, one))]


def _places(rule: Rule, names: Sequence[str] | itertools.chain[str]) -> list[str]:
    return list(dict.fromkeys(place for name in names for place in rule.places.get(name, (name,))))


def _name(place: str) -> str:
    return place if is_hub_id(place) else Path(place).name or place


def _listed(places: Sequence[str]) -> str:
    return ", ".join(map(_link, places))


def _link(place: str) -> str:
    if not is_hub_id(place):
        return _name(place)
    name, _, part = place.partition(":")
    return f"[{name}](https://huggingface.co/datasets/{name})" + (f" ({part})" if part else "")
