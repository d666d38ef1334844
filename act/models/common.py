"""What two models have in common, under the names of the second."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from act.core.errors import ActError
from act.models.adapters import MERGE, plain
from act.models.channels import ChannelSpace
from act.models.coverage import Coverage
from act.models.sites import Site
from act.models.views import LanguageView, language_view, leaves, original, own_names

ONE_HAS_IT = "only one of the two models has it"


def same_names(donor: nn.Module, target: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Views of both models, in which the same parts have the same names: those of the target.

    One of them may have images beside text, or a head on what the other is: ``encoder.layer.0`` of a BertModel is
    ``bert.encoder.layer.0`` of a BertForMaskedLM.
    """
    donor, target = (language_view(original(model)) for model in (donor, target))
    if name := _inside(target, donor):
        donor = LanguageView(donor, {"": name}, 1, donor.config)
    elif name := _inside(donor, target):
        body = {f"{name}.{leaf}": leaf for leaf in leaves(donor.get_submodule(name))}
        heads = {leaf: leaf for leaf in leaves(donor) if leaf != name and leaf not in body.values()}
        donor = LanguageView(donor, body | heads, len(body), donor.config)
    return donor, target


def common_space(donor: nn.Module, target: nn.Module) -> ChannelSpace:
    """The channel space of two models: of the text part if only one of them has images, without a head of one alone.

    Raises:
        ActError: their spaces differ otherwise; the message names the first site that does.
    """
    headless = _differ_in_head(donor, target)
    views = same_names(donor, target)
    # A head that owns the embedding's tensor would leave without it.
    spaces = [ChannelSpace.from_model(view, tied="embed" if headless else "head") for view in views]
    difference = spaces[0].first_difference(spaces[1])
    if difference:
        names = [{site.name for site in space} for space in spaces]
        parts = [
            _without(space, names[0] & names[1], view, headless) for space, view in zip(spaces, views, strict=True)
        ]
        difference = parts[0].first_difference(parts[1])
        theirs = {parts[0].keys.get(name, name) for name in parts[0].uncovered}
        uncovered = tuple(name for name in parts[1].uncovered if parts[1].keys.get(name, name) in theirs)
        spaces = [replace(parts[1], uncovered=uncovered)]
    if difference:
        advice = (
            "give two models derived from the same base, with the same vocabulary (or profile each by itself, without "
            "the LM head, and rank the two profiles)"
        )
        adapted = [any(plain(module) is not module for module in view.modules()) for view in views]
        raise ActError(
            f"donor and target differ in architecture: {difference}; {advice if adapted[0] == adapted[1] else MERGE}"
        )
    return spaces[0]


def _inside(outer: nn.Module, inner: nn.Module) -> str | None:
    """The name of the child of one model that is of the other's class."""
    kind = type(original(inner))
    children = outer.named_children() if hasattr(inner, "config") else ()
    return next((name for name, child in children if type(child) is kind), None)


def _differ_in_head(donor: nn.Module, target: nn.Module) -> bool:
    plain = original(donor), original(target)
    pairs = [plain, (language_view(plain[0]), language_view(plain[1]))]
    return any(_inside(one, other) or _inside(other, one) for one, other in pairs)


def _without(space: ChannelSpace, common: set[str], view: nn.Module, headless: bool) -> ChannelSpace:
    """A model's channel space without the sites that it alone has, as far as these may be missing."""
    beside = tuple(f"{name}." for name in view.beside) if isinstance(view, LanguageView) else ()

    def stays(site: Site) -> bool:
        return site.name in common or not (site.name.startswith(beside) or (headless and site.layer is None))

    gone = {site.name for site in space if not stays(site)}
    gone |= {site.name for site in space if site.scales in gone}
    sites: list[Site] = []
    for site in (site for site in space if site.name not in gone):
        sites.append(replace(site, offset=sites[-1].channels.stop if sites else 0))
    widths = {site.name: site.width for site in sites}
    tensors = dict(view.named_parameters())
    reasons = dict(space.coverage.reasons) if space.coverage else {}
    reasons = {space.keys.get(name, name): reason for name, reason in reasons.items()}
    reasons |= {part.key: ONE_HAS_IT for site in space if site.name in gone for part in site.parameters}
    blocks = tuple(block for block in space.blocks if block.fits(widths))
    coverage = Coverage.of(tensors, sites, reasons)
    if isinstance(view, LanguageView):
        coverage = coverage.renamed(own_names(view))
    return replace(space, sites=tuple(sites), blocks=blocks, coverage=coverage)
