"""First-order attribution: how the loss of each document would change if a channel moved to the donor.

For a site whose output ``a`` is linear in its parameters, that change is the sum over the document's tokens of
``g[t, c] * delta[t, c]``: ``g`` is the gradient of the loss at the output, ``delta`` what the output would change by if
the site's parameters were the donor's and its input stayed. So no gradient of a parameter is ever stored, and one pass
over a batch gives a row for every document in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from act.core.errors import ActError
from act.models.adapters import require_none
from act.models.embeddings import input_embedding
from act.models.layout import Sizes, sizes_of
from act.models.modes import evaluating
from act.models.placement import require_in_memory
from act.models.prefix import Prefix
from act.models.quantised import NO_STEP, width_of
from act.models.sites import Site
from act.models.views import LanguageView, original
from act.profiles.moments import Moments
from act.taps.attachments import Attachments
from act.taps.holders import Holder, parameters_of
from act.taps.loss import Loss, NotFinite
from act.taps.outputs import Output, outputs_of
from act.taps.parameter_steps import ParameterSteps
from act.taps.probed import Probed
from act.taps.recomputed import Kept, recompute
from act.taps.steps import Steps, change_of, tensors_in
from act.taps.tapped import refuse_compiled
from act_kernels import column_moments

OUTPUT, PRODUCT, PARAMETER = "output_gradient", "product_gradient", "parameter_gradient"
"""How a site's change is found: at its output, at products with its parameters, or from the gradient of these."""


class Attributed:
    """A target that reads documents and attributes its loss to the channels that a donor would change.

    ``forward`` adds a row for each sequence of a batch to the moments of every site: the first-order change of its
    summed loss. The count mask says which positions *predict* a token of the loss, the one after them. Sites that have
    no output of their own, such as parameters that scale another's, need the gradient of the parameter: where there
    are any, sequences run one at a time.

    Args:
        donor, target: views of one architecture (:func:`act.models.common.same_names`); the donor may be on another
            device, such as the CPU.
        moments: of the space of both, where the target runs.
        include, exclude: the sites to measure and not to measure (see :meth:`ChannelSpace.without`).
        recompute: keep only what enters each layer, and run it again on the way back.

    Attributes:
        moments: where the next forward accumulates.
        space: the channel space with what a probe of the target has shown.
        unread: why sites that should be measured are not, by name.
        unswapped: nothing: only outputs of pairs are swapped.
        paths: how each site is measured.

    Raises:
        ActError: weights that are quantised, offloaded or have an adapter beside them; a compiled model; no LM head.
    """

    def __init__(
        self,
        donor: nn.Module,
        target: nn.Module,
        moments: Moments,
        *,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        recompute: bool = True,
    ) -> None:
        for side, model in (("donor", donor), ("target", target)):
            require_steps(model, side)
        self.moments = moments
        self._target = target
        self._loss = Loss(target)
        probed = Probed.of(target, moments.space)
        self.space = probed.space
        self._steps = Steps(donor, target)
        self._parameter = parameters_of(target)
        self._recompute = recompute
        wanted = {site.name: site for site in self.space.without(exclude, among=include) if site.parameters}
        self._holders = [holder for holder in probed.holders if _sites_of(holder) & wanted.keys()]
        held = {name for holder in self._holders for name in _sites_of(holder)}
        self._products = {name for name in held & wanted.keys() if self.space.site(name).layouts}
        # A tensor that an embedding shares with the head is moved in both places.
        read = [site for site in self.space if site.name in wanted or site.tied_to in wanted]
        at_output = {site.name for site in read if _has_output(site) and site.name not in held.union(probed.beside)}
        self._outputs = {output.site.name: output for output in outputs_of(self.space, at_output)}
        beside = tuple(f"{name}." for name in target.beside) if isinstance(target, LanguageView) else ()
        left = [site for name, site in wanted.items() if name not in self._products | at_output]
        self._by_parameter = [site for site in left if not site.name.startswith(beside)] if beside else left
        self.unswapped: dict[str, str] = {}
        self.unread = {
            site.name: probed.unread.get(site.name, "no text reaches it")
            for site in left
            if site not in self._by_parameter
        }
        self.paths = {name: OUTPUT for name in at_output if name in wanted} | dict.fromkeys(self._products, PRODUCT)
        self.paths |= {site.name: PARAMETER for site in self._by_parameter}
        self._moved = [self._steps.parameter(part.key) for site in self._by_parameter for part in site.parameters]
        self._sums: dict[str, torch.Tensor] = {}
        self._sizes = Sizes(0, 0)
        self._asking = False

    @contextlib.contextmanager
    def attached(self) -> Iterator[Attributed]:
        """Hooks on the target over the block; it is left as it was, whatever happens."""
        attachments = Attachments(self._target)
        before = {one: (one.requires_grad, one.grad) for one in original(self._target).parameters()}
        try:
            with evaluating(self._target), self._loss.split():
                for parameter in before:
                    parameter.requires_grad_(False)
                    parameter.grad = None
                self._attach(attachments)
                yield self
        finally:
            attachments.remove()
            for parameter, (flag, gradient) in before.items():
                parameter.requires_grad_(flag)
                parameter.grad = gradient
            self._steps.release()
            self._sums.clear()

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        count_mask: torch.Tensor,
        source_mask: torch.Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        """Add a row for each sequence of which the loss counts a token.

        Raises:
            NotFinite: the loss over a sequence is NaN or infinite.
        """
        if not count_mask.any():
            return
        if not self._by_parameter:
            self._attribute(inputs, count_mask)
            return
        for row in range(len(count_mask)):
            one = slice(row, row + 1)
            if count_mask[row].any():
                try:
                    self._attribute({name: x[one] for name, x in inputs.items()}, count_mask[one])
                except NotFinite as found:
                    raise NotFinite(row, found.loss) from None

    def _attribute(self, inputs: Mapping[str, torch.Tensor], chosen: torch.Tensor) -> None:
        self._sizes = sizes_of(chosen)
        self._sums.clear()
        try:
            with torch.enable_grad():
                for parameter in self._moved:
                    parameter.requires_grad_(True)
                self._loss.backward(inputs, chosen)
            with torch.no_grad():
                self._take_parameters()
        finally:
            for parameter in self._moved:
                parameter.grad = None
                parameter.requires_grad_(False)
            self._steps.release()
        counts = chosen.any(1)
        for site in self.space:
            rows = self._sums.pop(site.name, None)
            if rows is not None:
                mask = None if counts.all() else counts.to(rows.device)
                column_moments(rows, self.moments.block(site.name), mask)

    def _attach(self, attachments: Attachments) -> None:
        if self._recompute:
            recompute(attachments)
        embed = input_embedding(self._target)
        for name, module in attachments.modules.items():
            if name in self._outputs or module is embed:
                handle = module.register_forward_hook(partial(self._called, name), with_kwargs=True)
                attachments.undo_by(handle.remove)
        for holder in self._holders:
            attachments.replace(holder.name, partial(self._held, holder))

    def _called(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """Watch the gradient of what a module gave; make it require one where nothing before it does."""
        if self._asking or not torch.is_grad_enabled():
            return None
        replaced, watched = None, self._outputs.get(name)
        if not output.requires_grad:
            leaf = output.detach().requires_grad_(True)
            if watched and _is_shared(watched.site):  # each sequence needs a gradient of its own
                leaf = leaf.expand(self._sizes.batch, *leaf.shape[1:])
            replaced = output = leaf.clone()  # which may be changed in place
        if watched:
            change = change_of(module, self._steps, args, kwargs)
            kept, rows = Kept(tensors_in(args, kwargs)), self._loss.rows
            if rows is not None:
                self._steps.hold(module)  # the head is called once for each chunk

            def hook(gradient: torch.Tensor) -> None:
                with torch.no_grad():
                    given = kept.take()
                    self._take(watched, gradient, self._changed(change, given), rows, given)

            output.register_hook(hook)
        return replaced

    def _changed(self, change: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self._asking = True
        try:
            return change(given).float()
        finally:
            self._asking = False

    def _take(
        self,
        output: Output,
        gradient: torch.Tensor,
        change: torch.Tensor,
        rows: torch.Tensor | None,
        given: tuple[torch.Tensor, ...],
    ) -> None:
        """Sum gradient times change over the tokens of each sequence; ``rows``: of each token, for a part of them."""
        product = change * gradient.float()
        if rows is not None:
            by_row = self._zeros(product.shape[-1], product.device)
            _add_at(by_row, rows, product.reshape(-1, product.shape[-1]))
        else:
            by_row = self._by_token(output.site, product).unflatten(0, (self._sizes.batch, -1)).sum(1)
        for part, columns in output.of_parts(by_row):
            if not part.tied_to:
                self._add(part.name, columns.contiguous())
            elif not given[0].is_floating_point():
                self._of_tokens(part, given[0], product)

    def _of_tokens(self, site: Site, ids: torch.Tensor, product: torch.Tensor) -> None:
        """The part of a tied LM head's change that comes from the embedding: a row of the tensor is one token's."""
        owner = self.space.site(str(site.tied_to))
        rows = torch.zeros(self._sizes.batch * owner.width, 1, device=product.device)
        place = torch.arange(self._sizes.batch, device=ids.device)[:, None] * owner.width + ids
        _add_at(rows, place.flatten(), product.sum(-1).reshape(-1, 1))
        self._add(owner.name, rows.view(self._sizes.batch, owner.width))

    def _by_token(self, site: Site, tensor: torch.Tensor) -> torch.Tensor:
        for layout in (layout.shared() or layout for layout in site.layouts):
            if layout.lead_of(tensor) == layout.lead(self._sizes):
                return layout.rows(tensor, self._sizes)
        raise ActError(
            f"site {site.name} gave {list(tensor.shape)} for {self._sizes.batch} x {self._sizes.length} tokens; "
            f"expected {' or '.join(map(str, site.layouts))}, as its probe showed; exclude this kind of module"
        )

    def _held(self, holder: Holder, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._asking or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        tokens = self._sizes.batch * self._sizes.length
        with ParameterSteps(holder, self._parameter, tokens, self._steps, self._take_products) as calls:
            output = forward(*args, **kwargs)
        calls.end()
        return output

    def _take_products(
        self, sites: tuple[Site, ...], rows: torch.Tensor, tokens: torch.Tensor, numbers: torch.Tensor | int
    ) -> None:
        """Sum rows over the tokens of each sequence, for each of several sites of one width."""
        if not any(site.name in self._products for site in sites):
            return
        batch, several = self._sizes.batch, len(sites)
        sums = torch.zeros(batch * several, rows.shape[-1], device=rows.device)
        kept = len(tokens)
        which = numbers[:kept] if isinstance(numbers, torch.Tensor) else numbers
        _add_at(sums, tokens // self._sizes.length * several + which, rows[:kept])
        by_site = sums.view(batch, several, -1)
        for number, site in enumerate(sites):
            if site.name in self._products:
                self._add(site.name, by_site[:, number].contiguous())

    def _take_parameters(self) -> None:
        for site in self._by_parameter:
            for part in site.parameters:
                gradient = self._steps.parameter(part.key).grad
                if gradient is not None:
                    product = (
                        part.part_of(gradient.contiguous()).float() * part.part_of(self._steps.of(part.key)).float()
                    )
                    self._add(site.name, product.sum(1)[None])

    def _add(self, name: str, rows: torch.Tensor) -> None:
        known = self._sums.get(name)
        self._sums[name] = rows if known is None else known.add_(rows)

    def _zeros(self, width: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(self._sizes.batch, width, device=device)


def _has_output(site: Site) -> bool:
    """Whether a site is a module that gives one tensor, with rows for each token of each sequence or alike for all."""
    if site.scales or not site.layouts or any(layout.item is not None for layout in site.layouts):
        return False
    return _is_shared(site) or all({"batch", "length"} <= set(layout.axes) for layout in site.layouts)


def _is_shared(site: Site) -> bool:
    """Whether all sequences share what it gives, ``[1, length, C]``, such as embeddings of positions."""
    return any(layout.dims[0] == (1,) and layout.shared() is not None for layout in site.layouts)


def _sites_of(holder: Holder) -> set[str]:
    return {site.name for bank in holder.banks for site in bank.sites}


def require_steps(model: nn.Module, side: str) -> None:
    """Raise :class:`ActError` unless the weights of a model (``side``: donor or target) are in memory, as used."""
    require_in_memory(model, side)
    require_none(model, side)
    refuse_compiled(model)
    name = next((name for name, module in model.named_modules() if width_of(module) is not None), None)
    if name is not None:
        raise ActError(f"{name} of the {side} is quantised, {NO_STEP}")


def _add_at(sums: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rows ``[R, C]`` to those of ``sums`` that ``index`` ``[R]`` names, always in the same order."""
    if sums.device.type == "cpu":
        sums.index_add_(0, index, rows)
    else:
        sums.index_put_((index,), rows, accumulate=True)  # sorted, where index_add_ would use atomics
