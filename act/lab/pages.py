"""The pages of the demos: what came back against every control, how the models write, and where the ability lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from act.evaluation.comparison import compare
from act.evaluation.evaluate import Evaluation
from act.evaluation.sweep import Setting
from act.lab import demo, prose
from act.report.build import build, measure
from act.report.page import Page, Sample
from act.report.results import Results, Role
from act.report.sources import roles_of


def of_prose(found: prose.Prose, command: str) -> Page:
    """The page of :func:`act.lab.prose.run`; ``command`` is what a user types to make it."""
    called = {prose.FORGOTTEN: "German", prose.RETAINED: "mathematics"}
    controls = [name for name in found.methods if name not in prose.FINDERS]
    roles: dict[str, Role] = {"target": "target", prose.OURS: "method", **dict.fromkeys(controls, "control")}
    share = found.methods[prose.OURS].share or prose.SHARES[0]
    measured = measure([found.attributed], ["German"], score="attribution", top=share)
    return Page(
        "German, given back to a specialist of mathematics",
        command,
        report=build(measured, top=share),
        moved=found.moved,
        strengths=dict.fromkeys(found.moved, 1.0),
        results=_results(found.read, called, prose.OURS, {**roles, "donor": "donor"}, called[prose.RETAINED]),
        settings={name: _tried(found, name) for name, one in found.methods.items() if one.share},
        keep=["mathematics"],
        samples=[Sample(called[name], one.prompt, one.by_model) for name, one in found.written.items()],
    )


def of_invented(found: demo.Demo, command: str) -> Page:
    """The page of :func:`act.lab.demo.run`; ``command`` is what a user types to make it."""
    called = {name: language for name, (language, _) in demo.ABILITIES.items()}
    measured = measure([found.pair], [called["forgotten"]], score="paired", top=demo.TOP, keep=[found.keep])
    return Page(
        "An invented German, given back to a specialist",
        command,
        report=build(measured, top=demo.TOP),
        moved=found.moved,
        strengths=dict.fromkeys(found.moved, demo.STRENGTH),
        results=_results(found.read, called, "act", roles_of(found.read), called["retained"]),
    )


def _results(
    read: Mapping[str, Mapping[str, Evaluation]],
    called: Mapping[str, str],
    method: str,
    roles: Mapping[str, Role],
    keep: str,
) -> Results:
    """All figures, of the target against every other model, and of every other change against the method."""
    named = {
        model: [replace(one, model=model, corpus=called[ability]) for ability, one in by_ability.items()]
        for model, by_ability in read.items()
    }
    others = [name for name in named if name != "target"]
    pairs = [("target", name) for name in others]
    pairs += [(name, method) for name in others if name not in (method, "donor")]
    return Results(
        [one.summary() for found in named.values() for one in found],
        [compare(*both).summary() for before, after in pairs for both in zip(named[before], named[after], strict=True)],
        roles,
        [keep],
    )


def _tried(found: prose.Prose, name: str) -> list[Setting]:
    """The unchanged target, and what a method makes of it."""
    one, moved = found.methods[name], found.moved.get(name)
    every = len(found.attributed.space)
    top, strength, channels = (one.share, 1.0, len(moved)) if moved is not None else (1.0, one.share, every)
    return [
        Setting(0.0, 0.0, 0, {"German": 0.0, "mathematics": 1.0}),
        Setting(
            top, strength, channels,
            {"German": one.figures.recovered.value, "mathematics": one.figures.kept.value},
        ),
    ]  # fmt: skip
