"""``act-profile report``: tables and pictures of where abilities are located, from their profiles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act.cli import console, options
from act.cli.grouped import with_options
from act.cli.progress import counter
from act.cli.ranking_options import by_default, profiles_to_keep
from act.cli.reading import ReadingRecords
from act.core.counted import counted
from act.core.errors import ActError
from act.core.files import reserve_output
from act.profiles.defaults import MIN_EXPERT_TOKENS
from act.ranking.scores import SCORES

_STAGE = re.compile("(pair|attribution)-[0-9a-f]{16}")

if TYPE_CHECKING:
    from torch import nn

    from act.core.progress import Progress
    from act.data.corpus import Corpus
    from act.profiles.profile import Profile
    from act.report.build import Report
    from act.report.data import GroupShares
    from act.report.page import Page


EXAMPLES = """
act-profile report german.safetensors english.safetensors --output report/
act-profile report german.safetensors channels.safetensors \\
    --keep-profile english.safetensors --static
act-profile evaluate --before specialist/ --model mended/ \\
    --corpus german=test-de.jsonl --json > evaluation.json
act-profile report channels.safetensors sweep.json evaluation.json
"""


@with_options
def command(
    reading: ReadingRecords,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Pair profiles and attributions of one or several abilities, channel sets, patches, the JSON of "
            "sweeps and of evaluations, outputs of recipes."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            rich_help_panel=options.OUTPUT,
            help="Folder for index.html, tables and report.json; or a file that ends with .html: the page alone.",
        ),
    ] = Path("report"),
    ability: Annotated[
        list[str] | None,
        typer.Option(help="The ability of each profile, in order; several profiles of one ability show its stability."),
    ] = None,
    score: Annotated[
        str | None,
        options.choice(
            None,
            tuple(SCORES),
            "A score of what was measured, as in act-profile rank; by default paired, and attribution of what "
            "act-profile attribute made.",
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        options.choice(
            None, options.NORMALIZE, "What scores are divided by, as in act-profile rank. Default: none, nothing."
        ),
    ] = None,
    top: Annotated[
        str | None, typer.Option(help="Size of the set of an ability, as a share of the channels. Default: 5%.")
    ] = None,
    keep_profile: options.KeepProfiles = None,
    include: Annotated[list[str] | None, typer.Option(help="As in act-profile rank.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="As in act-profile rank.")] = None,
    min_expert_tokens: options.MinExpertTokens = MIN_EXPERT_TOKENS,
    channels: Annotated[
        list[Path] | None, typer.Option(help="Channel sets to compare with those of the abilities (repeatable).")
    ] = None,
    donor: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=options.MODELS,
            help="The donor, for necessity, and with --target for weight-difference channels.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=options.MODELS,
            help="The target, to compare with weight-difference channels; with --corpus, to move each set to.",
        ),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=options.TEXT,
            help="Texts on which the loss of the donor shows what each set is necessary for (repeatable, also as "
            "NAME=PLACE).",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The heading of the page.")] = None,
    static: Annotated[bool, typer.Option("--static", help="Also write every picture as SVG and PDF.")] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """One page (index.html), a verdict first: where abilities live, what was moved, what came back, with controls."""
    from act.evaluation.held_out import doubts
    from act.models.loading import load_model
    from act.profiling.dtype_speed import warn_of_half
    from act.ranking.channel_set import ChannelSet
    from act.ranking.rank import DEFAULT_TOP, rank
    from act.ranking.selection import parse_top
    from act.report.build import build, measure
    from act.report.page import Page
    from act.report.sources import read
    from act.report.write import page_at, require_report_name, write

    places = console.named(corpus or [])
    inputs: list[str | Path] = [
        *files,
        *(channels or []),
        *(keep_profile or []),
        *places.values(),
        *(name for name in (donor, target) if name),
    ]
    console.require_models([donor, target])
    require_report_name(output, static)
    reserve_output(output, force, inputs)
    share = DEFAULT_TOP if top is None else parse_top(top)
    if target and not donor:
        raise ActError("--target compares with weight-difference channels, which also need --donor")
    reading.require_text(bool(corpus))
    if corpus and not donor:
        raise ActError("--corpus measures the donor's loss with channels ablated; give --donor")
    if donor and not (target or corpus):
        raise ActError("--donor has no effect by itself; give --corpus or --target too, or leave it out")
    console.quiet_transformers()
    given = read(files)
    profiles = [path for path, _ in given.profiles]
    if not profiles:
        _require_unused(
            ability=ability,
            score=score,
            normalize=normalize,
            top=top,
            keep_profile=keep_profile,
            include=include,
            exclude=exclude,
            donor=donor,
            corpus=corpus,
        )
    if len(given.results) > 1:
        raise ActError(f"{given.results[1][0]} holds a second set of results; give one evaluation or recipe")
    called = {path.resolve(): _ability_of(path, profile) for path, profile in given.profiles}
    if ability is None:
        _require_different_names([*called.values()])
    taken = ability or [called[path.resolve()] for path in profiles]
    given.sets += [(path, ChannelSet.load(path)) for path in channels or ()]
    set_names = _names("--channels", [str(path) for path, _ in given.sets], [*taken, "random", "weight-diff"])
    stems = dict(zip(places, _names("--corpus", [*places.values()]), strict=True))
    text_names = {name: stems[name] if name == place else name for name, place in places.items()}
    sets = {name: one for name, (_, one) in zip(set_names, given.sets, strict=True)}
    report, seen = None, list[str]()
    if profiles:
        ranking: dict[str, Any] = {"include": include or (), "exclude": exclude or ()}
        measured = measure(
            [profile for _, profile in given.profiles],  # type: ignore[misc]  # checked by measure
            taken,
            score=score,  # type: ignore[arg-type]
            normalize=normalize or "none",  # type: ignore[arg-type]
            top=share,
            keep=profiles_to_keep(keep_profile),  # type: ignore[arg-type]  # checked by measure
            min_expert_tokens=min_expert_tokens,
            **ranking,
        )
        compared, model, other, losses = dict(sets), None, None, {}
        if donor:
            model = load_model(donor, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if target:
            other = load_model(target, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            compared["weight-diff"] = rank(
                measured[0].profile, "weight-diff", share, donor=model, target=other, **ranking
            )
        if corpus:
            tokenizers = {str(donor): reading.tokenizer_of(str(donor), trust_remote_code=trust_remote_code)}
            texts = reading.open_all(corpus, tokenizers, trust_remote_code=trust_remote_code)[str(donor)]
            losses = {text_names[name]: text for name, text in texts.items()}
            seen = doubts([*losses.values()], [profile for _, profile in given.profiles], 0)
            for doubt in seen:
                console.warn(doubt)
            for each in filter(None, (model, other)):  # which run
                warn_of_half(each)
        with counter("report", as_json) as progress:
            report = build(
                measured,
                top=share,
                sets=compared,
                model=model if losses else None,
                target=other,
                losses={name: _loss(name, text, progress) for name, text in losses.items()},
            )
    patches = zip(_names("patches", [str(path) for path, _ in given.patches]), given.patches, strict=True)
    sweeps = _names("sweeps", [str(path) for path, _ in given.sweeps])
    settings = {name: rows for name, (_, rows) in zip(sweeps, given.sweeps, strict=True)}
    of = {path: f"{name}: " if len(sweeps) > 1 else "" for name, (path, _) in zip(sweeps, given.sweeps, strict=True)}
    settings |= {f"{of[path]}{name}": rows for path, name, rows in given.controls}
    page = Page(
        title or " and ".join(taken[:3] if len(taken) < 4 else [f"{len(taken)} abilities"]) or files[0].stem,
        console.command_line(),
        report=report,
        moved=sets,
        patches={name: patch for name, (_, patch) in patches},
        results=given.results[0][1] if given.results else None,
        settings=settings,
        keep=given.keep,
        keeping=given.keeping,
        doubts=given.doubts,
        warnings=seen,
    )
    if len(files) == 1 and page.results:
        page = _with_stages(page, files[0], title)
        report = page.report
    written = write(report, output, page=page, static=static, force=force)
    if as_json:
        verdict = page.verdict.headline if page.verdict else None
        found = {"output": str(output), "files": written, "verdict": verdict}
        return console.print_json({**found, **report.data} if report else found)
    if report:
        _print(report)
        if score is None:
            print(*map(by_default, dict.fromkeys(one["score"] for one in report.data["concentration"])), sep="\n")
    if page.verdict:
        print(page.verdict.headline)
    print(page_at(output))


def _with_stages(page: Page, output: Path, title: str | None) -> Page:
    """The whole page of a recipe's output; where its stages lack something, what is there, and a line that says so."""
    from act.recipes.finished import page_of_output
    from act.recipes.recipe import RESOLVED

    folder = output if output.is_dir() else output.parent
    if not (folder / RESOLVED).is_file():
        return page
    try:
        whole = page_of_output(folder, page.command)
    except ActError as error:
        line = f"no map, channels and concentration, which the stages of the recipe would show: {error}"
        console.warn(line)
        return replace(page, warnings=[*page.warnings, line])
    return replace(whole, title=title or whole.title)


def _require_unused(**given: object) -> None:
    for name, value in given.items():
        if value:
            raise ActError(f"--{name.replace('_', '-')} has no effect without a profile; give one, or leave it out")


def _ability_of(path: Path, profile: Profile) -> str:
    """What a profile is called: as its file or, where a recipe has named that by a hash, as its text."""
    text = next((one.name for one in profile.provenance.corpora), "")
    return (Path(text).stem if _STAGE.fullmatch(path.stem) else "") or path.stem


def _require_different_names(names: list[str]) -> None:
    if len(set(names)) < len(names):
        (name, _), *_ = Counter(names).most_common(1)
        raise ActError(
            f"several profiles are named {name}; give the ability of each with --ability, in order (the same name "
            "twice for two profiles of one ability, which show its stability)"
        )


def _names(option: str, places: list[str], taken: Iterable[str] = ()) -> list[str]:
    """A name for each file or folder: its stem, or the whole path if the stem is taken."""
    if len({Path(place).resolve() for place in places}) < len(places):
        twice = Counter(str(Path(place).resolve()) for place in places).most_common(1)[0][0]
        raise ActError(f"{option} was given {twice} twice; give each once")
    stems = Counter([*(Path(place).stem for place in places), *taken])
    return [Path(place).stem if stems[Path(place).stem] == 1 else place for place in places]


def _loss(name: str, text: Corpus, progress: Progress) -> Callable[[nn.Module], float]:
    """A function that computes the mean loss per answer token of a corpus, in nats."""
    from act.evaluation.likelihoods import likelihoods

    def loss(model: nn.Module) -> float:
        fitted = text.for_models(model)
        found = likelihoods(
            model,
            list(fitted.encoded()),
            max_length=fitted.max_length,
            progress=lambda doing, done, total: progress(f"{doing} {name}", done, total),
        )
        return float(found.nll.sum() / found.tokens.sum())

    return loss


def _print(report: Report) -> None:
    from act.profiles.coverage import percent

    data = report.data
    for one in data["concentration"]:
        if one["experts"] and one["experts"]["few"]:
            console.warn(f"{one['profile']}: {one['experts']['sentence']}; they are not ranked")
    rows = [
        [
            one["profile"],
            f"{one['channels']:,}",
            f"{one['gini']:.3f}",
            f"{one['above_tenth']:.1%}",
            _largest(one["kinds"]),
        ]
        for one in data["concentration"]
    ]
    columns = ["profile", "channels", "Gini", "above a tenth of the largest", "most of the top set"]
    if "," in data["score"]:
        columns.insert(1, "score")
        rows = [[row[0], one["score"], *row[1:]] for row, one in zip(rows, data["concentration"], strict=True)]
    console.print_table(f"Concentration of {data['score']}", columns, rows)
    print(
        "Gini: 0 where all channels score alike, 1 where one has it all; beside it, the share of channels above a tenth"
    )
    covered: dict[str, list[str]] = {}  # what is true of several is said once
    for one in data["concentration"]:
        if one["coverage"] is not None:
            kinds = ", ".join(f"{kind} {percent(share)}" for kind, share in one["coverage_by_kind"].items())
            lines = [f"{percent(one['coverage'])} of the parameters lie behind a measured channel: {kinds}"]
            for name, values in (one["uncovered_values"] | one["unreached_values"]).items():
                why = one["uncovered_reasons"].get(name)
                lines.append(f"  not measured: {name} ({counted(values, 'value')}){f': {why}' if why else ''}")
            covered.setdefault("\n".join(lines), []).append(one["profile"])
    for said, names in covered.items():
        print(f"{', '.join(names)}: {said}")
    words = {"stability": "one ability", "scores": "two scores", "disentanglement": "two abilities", "set": "a set"}
    rows = [
        [
            row["first"],
            row["second"],
            words[row["relation"]],
            f"{row['share']:.1%}",
            f"{row['jaccard']:.3f}",
            f"{row['jaccard_low']:.2f}-{row['jaccard_high']:.2f}",
            f"{row['chance']:.3f}",
        ]
        for row in data["overlaps"]
        if row["relation"] == "set" or row["share"] == data["top"]
    ]
    if rows:
        columns = ["set", "other", "of", "share", "Jaccard", "95 % interval", "by chance"]
        console.print_table("Overlap", columns, rows)
    if data["necessity"]:
        rows = [[row["ablated"], row["text"], f"{row['whole']:.3f}", f"{row['loss']:.3f}"] for row in data["necessity"]]
        console.print_table(
            "Necessity: loss of the donor, nats per token", ["set", "text", "whole", "with the set ablated"], rows
        )
    if data["recovered"]:
        rows = [
            [
                row["moved"],
                row["text"],
                *(f"{row[name]:.3f}" for name in ("target", "loss", "donor")),
                "-" if row["share"] is None else f"{row['share']:.0%}",
            ]
            for row in data["recovered"]
        ]
        columns = ["set", "text", "target", "with the set moved", "donor", "came back"]
        console.print_table("Sufficiency: loss, nats per token", columns, rows)


def _largest(kinds: Mapping[str, GroupShares]) -> str:
    best = sorted(kinds, key=lambda kind: -kinds[kind]["chosen"])[:2]
    return ", ".join(f"{kind} {kinds[kind]['chosen']:.0%}" for kind in best)
