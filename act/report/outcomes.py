"""The pictures of what models can do: before and after, and by what was moved how far."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from act.evaluation.frontier import frontier
from act.evaluation.sweep import Setting
from act.report import charts
from act.report.charts import Chart, amount, names, rounded, slug, tips
from act.report.results import Results, is_share, shown

LABELS = 6
"""About how many settings of a frontier have a label."""
FRONTIER = "on the frontier"


def of_results(results: Results) -> Iterator[Chart]:
    """Each text with every model: the figure, its error, and the level of chance."""
    roles = ("target", "method", "donor", "control", "other")
    for text in results.texts:
        found = [figure for model in results.models if (figure := results.of(model, text))]
        for share in (True, False):
            some = [one for one in found if one.share == share]
            if not some:
                continue
            scale = 100.0 if share else 1.0
            error = [one.error or 0.0 for one in some]
            columns: dict[str, list[Any]] = {
                "model": [one.model for one in some],
                "role": [results.roles.get(one.model, "other") for one in some],
                "value": [rounded(scale * one.value) for one in some],
                "error": [None if one.error is None else rounded(scale * one.error) for one in some],
                "low": [rounded(scale * (one.value - e)) for one, e in zip(some, error, strict=True)],
                "high": [rounded(scale * (one.value + e)) for one, e in zip(some, error, strict=True)],
                "records": [one.records for one in some],
            }
            chance = results.chance.get(text)
            if chance is not None and share:
                columns["chance"] = [100.0 * chance] * len(some)
            best = max(some, key=lambda one: one.value)
            kept = "to keep" if text in results.keep else "the ability"
            unit = "right answers, %" if share else "log-likelihood per token, nats"
            yield Chart(
                f"results-{slug(text)}",
                f"{text} ({kept})",
                f"{unit.partition(',')[0].capitalize()} on {text}: "
                + "; ".join(f"{one.model} {one}" for one in some[:12]) + f". Highest: {best.model}.",
                columns,
                charts.intervals(
                    "value", unit, columns["model"],
                    tips(model="model", role="role", value=unit, error="standard error", records="records"),
                    y="model", kind="role", kinds=[one for one in roles if one in columns["role"]],
                    guide="chance" if "chance" in columns else None, zero=share,
                ),
                {"model": "model", "role": "role", "value": unit, "error": "± standard error", "records": "records"},
                "Bars are one standard error to either side"
                + ("; the dashed line is what guessing gives." if "chance" in columns else "."),
            )  # fmt: skip


def of_tasks(results: Results) -> Iterator[Chart]:
    """Each metric of the tasks of lm-evaluation-harness: task by task, every model beside the level of chance."""
    changes = {(one["after"], one["task"], one["metric"]): one for one in results.task_changes}
    for metric in dict.fromkeys(one["metric"] for one in results.tasks):
        some = [one for one in results.tasks if one["metric"] == metric and one["value"] is not None]
        if not some:
            continue
        models = list(dict.fromkeys(one["model"] for one in some))
        ends = [(one["value"] or 0.0, one["se"] or 0.0) for one in some]
        against = [changes.get((one["model"], one["task"], metric)) for one in some]
        columns: dict[str, list[Any]] = {
            "task": [one["task"] for one in some],
            "model": [one["model"] for one in some],
            "value": [rounded(value) for value, _ in ends],
            "error": [one["se"] and rounded(one["se"]) for one in some],
            "low": [rounded(value - error) for value, error in ends],
            "high": [rounded(value + error) for value, error in ends],
            "documents": [one["documents"] or None for one in some],
        }
        if any(one["chance"] is not None for one in some):
            columns["chance"] = [one["chance"] and rounded(one["chance"]) for one in some]
        if any(against):
            columns["change"] = [one and one["difference"] for one in against]
            columns["p"] = [one and one["p"] for one in against]
        before = next((one["before"] for one in against if one), "")
        heads = {"task": "task", "model": "model", "value": metric, "error": "standard error", "chance": "chance",
                 "documents": "documents", "change": f"over {before}", "p": "p"}  # fmt: skip
        heads = {name: title for name, title in heads.items() if name in columns}
        guess = " The upright line of a task is what guessing gives." if "chance" in columns else ""
        yield Chart(
            f"tasks-{slug(metric)}",
            metric,
            f"{metric}: " + "; ".join(f"{one['model']} on {one['task']} {one['value']:.3g}" for one in some[:12])
            + ("." if len(some) <= 12 else f"; and {len(some) - 12} more."),
            columns,
            charts.intervals(
                "value", metric, list(dict.fromkeys(columns["task"])), tips(**heads), y="task", kind="model",
                kinds=models, guide="chance" if "chance" in columns else None,
                zero=all(0 <= value <= 1 for value, _ in ends), apart=True,
            ),
            heads,
            f"Bars are one standard error to either side.{guess}",
        )  # fmt: skip


def of_settings(settings: Mapping[str, Sequence[Setting]], keep: Sequence[str]) -> Iterator[Chart]:
    """What was tried, share by share and strength by strength: what came back, and against what is left."""
    figures = list(next(iter(settings.values()))[0].figures)
    abilities = [name for name in figures if name not in keep] or figures[:1]
    for ability in abilities:
        for kept in figures:
            if kept in keep and kept != ability:
                yield _frontier(settings, ability, kept)
        if len({one.top for tried in settings.values() for one in tried if one.top > 0}) > 1:
            yield _sufficiency(settings, ability)
        else:
            yield from _by_setting(settings, ability)


def _frontier(settings: Mapping[str, Sequence[Setting]], ability: str, kept: str) -> Chart:
    rows = _rows(settings)
    (x, kept_unit), (y, ability_unit) = (_scale(settings, name) for name in (kept, ability))
    points = [(y * one.figures[ability], x * one.figures[kept]) for _, one in rows]
    best = set(frontier(points))
    named = {*sorted(best, key=lambda n: points[n])[:: max(1, len(best) // LABELS)]}
    label = [_label(one) if n in named else "" for n, (_, one) in enumerate(rows)]
    columns: dict[str, list[Any]] = {
        **_settings(rows),
        "gained": [rounded(x) for x, _ in points],
        "left": [rounded(y) for _, y in points],
        "best": [FRONTIER if n in best else "beaten" for n in range(len(rows))],
        "label": label,
    }
    heads = {"method": "method", "share": "share of the channels, %", "strength": "strength", "channels": "channels",
             "gained": f"{ability}, {ability_unit}", "left": f"{kept}, {kept_unit}", "best": "frontier"}  # fmt: skip
    unbeaten = f"datum.best === '{FRONTIER}'"
    told = {**names("method", list(settings)), **({"legend": None} if len(settings) < 2 else {})}
    where = {
        "x": amount("left", f"{kept} (to keep), {kept_unit}", scale=_span([one for _, one in points])),
        "y": amount("gained", f"{ability} (the ability), {ability_unit}", scale=_span([one for one, _ in points])),
    }
    line = {
        "transform": [{"filter": unbeaten}],
        "mark": {"type": "line", "strokeDash": [3, 3], "tooltip": None, "opacity": 0.6},
        "encoding": {"order": {"field": "left", "type": "quantitative"}},
    }
    size = {"condition": {"test": unbeaten, "value": 130}, "value": 50}
    dots = {
        "mark": {"type": "point", "opacity": 1},
        "encoding": {"color": told, "shape": told, "size": size, "tooltip": tips(**heads)},
    }
    words = {"mark": {"type": "text", "dy": -11, "tooltip": None}, "encoding": {"text": {"field": "label"}}}
    return Chart(
        f"frontier-{slug(ability)}-{slug(kept)}",
        f"What comes back of {ability} against what is left of {kept}",
        f"Each setting by its figure on {ability} and on {kept}. Beaten by no other: "
        + ", ".join(one for one in label if one)[:300] + ".",
        columns,
        {"width": "container", "height": 340, "encoding": where, "layer": [line, dots, words]},
        heads,
        "Up and to the right is better. Large points are beaten by no other; labels say share × strength.",
    )  # fmt: skip


def _label(one: Setting) -> str:
    return f"{100 * one.top:g} % × {one.strength:g}" if one.top > 0 else "target"


def _scale(settings: Mapping[str, Sequence[Setting]], name: str) -> tuple[float, str]:
    """What a figure of a sweep is multiplied by, and the unit that it then has."""
    share = is_share(itertools.chain.from_iterable(settings.values()), name)
    return (100.0, "%") if share else (1.0, "nats per token")


def _span(values: Sequence[float]) -> dict[str, Any]:
    """The scale of an axis, no narrower than one per cent of its values, so that a rounding error fills no picture."""
    low, high = min(values), max(values)
    least = 0.01 * max(abs(low), abs(high), 1e-6)
    spare = max(0.0, least - (high - low)) / 2
    return {"zero": False, **({"domain": [low - spare, high + spare]} if spare else {})}


def _by_setting(settings: Mapping[str, Sequence[Setting]], ability: str) -> Iterator[Chart]:
    """Each setting beside the unchanged target, where one share was tried and no curve can be drawn."""
    several, rows = len(settings) > 1, _rows(settings)
    if not any(one.top > 0 for _, one in rows):
        return
    scale, unit = _scale(settings, ability)
    setting = [f"{f'{method}, ' if several and one.top > 0 else ''}{_label(one)}" for method, one in rows]
    gained = [rounded(scale * one.figures[ability]) for _, one in rows]
    columns = {**_settings(rows), "setting": setting, "gained": gained}
    heads = {"setting": "setting", "channels": "channels", "gained": f"{ability}, {unit}"}
    yield Chart(
        f"settings-{slug(ability)}",
        f"{ability}, before and after each setting",
        f"{ability}, {unit}: " + "; ".join(f"{one} {value:g}" for one, value in zip(setting[:12], gained, strict=False)
                                           if value is not None) + ".",
        columns,
        {"width": "container", "height": {"step": 26}, "mark": "bar", "encoding": {
            "y": names("setting", setting), "x": amount("gained", f"{ability}, {unit}"), "tooltip": tips(**heads),
        }},
        heads,
        "Each bar is a share of the channels × a strength. With other shares (--top), this becomes a curve.",
    )  # fmt: skip


def _sufficiency(settings: Mapping[str, Sequence[Setting]], ability: str) -> Chart:
    moved = [(method, one) for method, tried in settings.items() for one in tried if one.top > 0]
    several = len(settings) > 1
    scale, unit = _scale(settings, ability)
    columns = {**_settings(moved), "gained": [rounded(scale * one.figures[ability]) for _, one in moved]}
    columns["step"] = [f"{f'{method}, ' if several else ''}strength {one.strength:g}" for method, one in moved]
    _, best = max(moved, key=lambda row: row[1].figures[ability])
    most = shown(best.figures[ability], None, unit == "%")
    heads = {"step": "of", "share": "share of the channels, %", "channels": "channels",
             "gained": f"{ability}, {unit}"}  # fmt: skip
    return Chart(
        f"sufficiency-{slug(ability)}",
        f"How much of {ability} a share of the channels brings back",
        f"{ability} by the share of the channels that was moved; most, {most}, "
        f"with {100 * best.top:g} % at strength {best.strength:g}.",
        columns,
        charts.curves(
            charts.logarithmic("channels moved, %", "share"),
            amount("gained", f"{ability}, {unit}", scale={"zero": False}),
            list(dict.fromkeys(columns["step"])), tips(**heads), field="step", points=True,
        ),
        heads,
        "Sufficiency as ability: these channels alone were moved, and the model was evaluated.",
    )  # fmt: skip


def _rows(settings: Mapping[str, Sequence[Setting]]) -> list[tuple[str, Setting]]:
    """Every setting with its method; the unchanged target, which is that of all methods, once."""
    first = next(iter(settings))
    return [(method, one) for method, tried in settings.items() for one in tried if one.top > 0 or method == first]


def _settings(rows: Sequence[tuple[str, Setting]]) -> dict[str, list[Any]]:
    return {
        "method": [method for method, _ in rows],
        "share": [rounded(100 * one.top) for _, one in rows],
        "strength": [one.strength for _, one in rows],
        "channels": [one.channels for _, one in rows],
    }
