"""The files that a report is made from, told apart by what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, FiniteFloat, TypeAdapter, create_model

from act.core.errors import ActError, Missing, brief
from act.core.near import near_path
from act.core.plain import Label, checked, parsed_json
from act.core.tensor_files import kind_of
from act.editing.patch import Patch
from act.evaluation.comparison import ComparisonSummary
from act.evaluation.evaluate import Summary
from act.evaluation.harness import TaskChange, TaskSummary
from act.evaluation.kept import KEPT, Keeping
from act.evaluation.sweep import Setting
from act.profiles.profile import Profile, load
from act.ranking.channel_set import ChannelSet
from act.report.results import CLEAR, Results, Role

RECIPE_REPORT = "report.json"
RECIPE, PAGE = "recipe.yaml", "index.html"
ERROR = "_se"
"""Behind the name of a figure of a sweep: its standard error."""
SHARES = ("recovered", "kept")
"""In a row of a sweep: what its setting recovers and keeps, which its figures say with the scales beside the rows."""
LARGEST = 64 << 20
"""Bytes of a JSON file that is read."""
TEXTS = (".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".arrow")
MEASURED = (
    "a report is of what was measured: give what act-profile pair --donor DONOR --target TARGET --corpus TEXT writes, "
    "or act-profile evaluate --json prints"
)
KINDS = "a profile, a channel set, a patch, the JSON of a sweep or an evaluation, or the output of a recipe"


@dataclass
class Sources:
    """What files hold, in order, each with its path.

    Attributes:
        controls: what sweeps tried beside their method, each with the name of the control.
        keep: the figures of sweeps that are of what is to be kept.
        keeping: the scales of these, and of what is recovered.
        doubts: why no setting of a sweep is to be chosen by its figures.
    """

    profiles: list[tuple[Path, Profile]] = field(default_factory=list)
    sets: list[tuple[Path, ChannelSet]] = field(default_factory=list)
    patches: list[tuple[Path, Patch]] = field(default_factory=list)
    sweeps: list[tuple[Path, Sequence[Setting]]] = field(default_factory=list)
    controls: list[tuple[Path, str, Sequence[Setting]]] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    keeping: dict[str, Keeping] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    results: list[tuple[Path, Results]] = field(default_factory=list)


def read(paths: Iterable[Path]) -> Sources:
    """Read files of any kind that a report shows.

    Raises:
        ActError: a file is missing, empty, damaged, of another kind or version.
    """
    found = Sources()
    for path in paths:
        kind = None if path.is_dir() else kind_of(path)
        if kind in ("act-profile", "act-attribution"):
            found.profiles.append((path, load(path)))
        elif kind == "act-channels":
            found.sets.append((path, ChannelSet.load(path)))
        elif kind == "act-patch":
            found.patches.append((path, Patch.load(path)))
        else:
            _add_json(found, path)
    return found


def _add_json(found: Sources, path: Path) -> None:
    data = _json(path)
    try:
        if "rows" in data and "frontier" in data:
            found.sweeps.append((path, _settings(data["rows"])))
            for name, rows in checked(_CONTROLS, data.get("controls", {})).items():
                found.controls.append((path, name, _settings(rows)))
            keep = checked(_NAMES, data.get("keep", []))
            found.keep += keep
            found.doubts += [one for one in checked(_NAMES, data.get("doubts", [])) if one not in found.doubts]
            for scales in (data.get(name, {}) for name in SHARES):
                found.keeping |= {name: Keeping(**one.model_dump()) for name, one in checked(_SCALES, scales).items()}
            every = [rows for _, rows in found.sweeps] + [rows for _, _, rows in found.controls]
            if any(rows[0].figures.keys() != every[0][0].figures.keys() for rows in every):
                raise ActError(f"{found.sweeps[0][0]} and {path} are sweeps over other figures; give those of one text")
        elif "results" in data and "comparisons" in data:
            results = results_of(data)
            found.results.append((path, results if "donors" in data else results.by_last_parts()))
        elif "concentration" in data and "overlaps" in data:
            page = f"open {path / PAGE}, or " if path.is_dir() else ""
            raise ActError(f"{path} is a report that act-profile has made; {page}give what it was made from: {KINDS}")
        elif "error" in data and "exit_code" in data:
            raise ActError(
                f"{path} holds the error of a command that failed ({data['error']!s:.300}); run it again, mended"
            )
        else:
            raise ActError(f"{path} is JSON, but not of a sweep, an evaluation or a recipe; expected {KINDS}")
    except ActError:
        raise
    except ValueError as error:
        raise ActError(f"{path} is damaged: {error!s:.200}; make it again") from error


def _json(path: Path) -> dict[str, Any]:
    inside = path / RECIPE_REPORT if path.is_dir() else path
    try:
        with inside.open("rb") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        if (path / "config.json").is_file():
            raise ActError(f"{path} is a model; {MEASURED}") from None
        if path.is_dir():
            raise ActError(f"{path} is a folder without {RECIPE_REPORT}; expected {KINDS}") from None
        raise Missing(f"no such file: {path}; expected {KINDS}", near_path(str(path))) from None
    except OSError as error:
        raise ActError(f"cannot read {path}: {error.strerror or error}") from error
    unpacked = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    if unpacked.suffix in TEXTS and not path.is_dir():
        raise ActError(f"{path} is a text; {MEASURED}")
    if text[:256].lstrip().lower().startswith(b"<!doctype html"):
        of_recipe = path.with_name(RECIPE).is_file()
        give = f"its folder, {path.parent}" if of_recipe else f"what it was made from: {KINDS}"
        raise ActError(f"{path} is a page to look at in a browser; give {give}")
    if not text.strip():
        raise ActError(f"{path} is empty; expected {KINDS}")
    if text[8:9] == b"{" and text[:1] not in b"{[ \n\t":
        load(path)  # says what is wrong with a file of tensors
    try:
        data = parsed_json(text) if len(text) <= LARGEST else None
    except ValueError as error:
        raise ActError(f"{path} is neither a file of act-profile nor JSON ({brief(error)}); expected {KINDS}") from None
    if not isinstance(data, dict):
        raise ActError(f"{path} holds no JSON object that a report knows; expected {KINDS}")
    return data


def results_of(
    data: Mapping[str, Any], *, roles: Mapping[str, Role] | None = None, keep: Iterable[str] | None = None
) -> Results:
    """The results in the plain data of an evaluation or a recipe.

    Args:
        data: with ``results`` and ``comparisons``, as ``act-profile evaluate --json`` and a recipe write them.
        roles: what each model is; by default what its name in a recipe, or the comparisons of an evaluation, say.
        keep: the texts of what is to be kept; by default those that the data names, or else those on which no donor is
            clearly better than the target.

    Raises:
        ValueError: the data is something else.
    """
    figures = [one.model_dump() for one in checked(_SUMMARIES, data["results"])]
    comparisons = [one.model_dump() for one in checked(_COMPARISONS, data["comparisons"])]
    tasks = [one.model_dump() for one in checked(_TASKS, data.get("tasks", []))]
    changes = [one.model_dump() for one in checked(_TASK_CHANGES, data.get("task_comparisons", []))]
    roles = _roles(data) if roles is None else roles
    levels = {one["corpus"]: [level for level in (one["chance"], one["majority"]) if level] for one in figures}
    chance = {text: max(known) for text, known in levels.items() if known}
    said = checked(_NAMES, data.get("warnings", []))
    results = Results(  # of what was checked above
        figures,  # type: ignore[arg-type]
        comparisons,  # type: ignore[arg-type]
        roles,
        chance=chance,
        warnings=said,
        tasks=tasks,  # type: ignore[arg-type]
        task_changes=changes,  # type: ignore[arg-type]
    )
    keep = (checked(_NAMES, data.get("keep", [])) or _not_lost(results)) if keep is None else list(keep)
    swept = checked(TypeAdapter(_SWEPT), data.get("sweep") or {})
    return replace(results, keep=keep, **swept.model_dump())


def roles_of(models: Iterable[str], target: str | None = None) -> dict[str, Role]:
    """What models are, by the names that a recipe gives them; or all but a target are methods."""
    roles: dict[str, Role] = {}
    for name in models:
        if target is not None:
            roles[name] = "target" if name == target else "method"
        elif name == "target":
            roles[name] = "target"
        elif name == "donor" or name.startswith("donor "):
            roles[name] = "donor"
        else:
            roles[name] = "method" if name == "act" or name.startswith("act ") else "control"
    return roles


def _roles(data: Mapping[str, Any]) -> dict[str, Role]:
    rows = [one for one in (*data["results"], *data.get("tasks", [])) if isinstance(one, dict)]
    pairs = [one for one in (*data["comparisons"], *data.get("task_comparisons", [])) if isinstance(one, dict)]
    models = [str(one.get("model")) for one in rows]
    of_recipe = "donors" in data and "act" in models
    before = next((one.get("before") for one in pairs), None)
    return roles_of(models, None if of_recipe else str(before)) if of_recipe or before else {}


def _not_lost(results: Results) -> list[str]:
    """Texts that the target lost nothing of, as far as the donors show."""
    donors, targets = results.named("donor"), results.named("target")
    kept = []
    for text in results.texts:
        gains = [gain for donor in donors for target in targets if (gain := results.gain(donor, target, text))]
        lost = any(gain.value > 0 and (gain.p is None or gain.p < CLEAR) for gain in gains)
        if gains and not lost:
            kept.append(text)
    return kept


def _settings(given: Any) -> list[Setting]:
    rows = checked(_ROWS, given)
    found = []
    for row in rows:
        errors = {name for name in row if name.endswith(ERROR) and name.removesuffix(ERROR) in row}
        derived = {*SHARES, *errors}
        values = {name: value for name, value in row.items() if name not in derived and value is not None}
        if not all(name in values for name in ("top", "strength", "channels")):
            raise ValueError(f"a row has {', '.join(row)[:100]}; expected top, strength, channels and figures")
        top, strength, channels = (values.pop(name) for name in ("top", "strength", "channels"))
        found.append(Setting(top, strength, int(channels), values))
    if not found or not found[0].figures or any(one.figures.keys() != found[0].figures.keys() for one in found):
        raise ValueError("its rows do not have the same figures, one or more")
    return found


def _model_of(described: type) -> type[BaseModel]:
    """A model of plain data; a figure that may be None may also be absent, as in files of earlier versions."""
    kinds = get_type_hints(described)
    fields: Any = {name: (kind, None if type(None) in get_args(kind) else ...) for name, kind in kinds.items()}
    return create_model(described.__name__, **fields)


_SUMMARIES: TypeAdapter[list[BaseModel]] = TypeAdapter(list[_model_of(Summary)])  # type: ignore[misc, arg-type]
_TASKS: TypeAdapter[list[BaseModel]] = TypeAdapter(list[_model_of(TaskSummary)])  # type: ignore[misc, arg-type]
_TASK_CHANGES: TypeAdapter[list[BaseModel]] = TypeAdapter(list[_model_of(TaskChange)])  # type: ignore[misc, arg-type]
_COMPARISONS: TypeAdapter[list[BaseModel]] = TypeAdapter(list[_model_of(ComparisonSummary)])  # type: ignore[misc, arg-type]
_ROWS: TypeAdapter[list[dict[str, float | None]]] = TypeAdapter(list[dict[str, FiniteFloat | None]])
_CONTROLS: TypeAdapter[dict[Label, Any]] = TypeAdapter(dict[Label, Any])
_SCALE = create_model("_SCALE", target=(FiniteFloat, ...), nothing=(FiniteFloat | None, None), what=(str, ""))
_SCALES: TypeAdapter[dict[str, BaseModel]] = TypeAdapter(dict[str, _SCALE])  # type: ignore[valid-type]
_NAMES: TypeAdapter[list[str]] = TypeAdapter(list[str])
_SWEPT = create_model("_SWEPT", least_kept=(FiniteFloat, KEPT))
