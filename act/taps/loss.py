"""The loss of a causal language model over chosen tokens, and its gradient, without ever holding all logits.

The model runs up to the last hidden states. Its head, and whatever the model does with the logits, such as a soft cap,
then see some of the tokens at a time: the model is called again with the hidden states of these in the place of its
body. The gradient of the hidden states goes back through the body once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from act.core.errors import ActError
from act.models.calls import without_cache
from act.models.embeddings import input_embedding, lm_head
from act.models.views import original
from act.taps.attachments import Attachments

_OTHER_LOGITS = "does not make its logits of what its {} gives first"
LOGITS_AT_ONCE = 1 << 25  # values, which exist in float32 and with their gradient


class NotFinite(Exception):
    """The loss over a sequence is no number.

    Attributes:
        row: the place of the sequence in the batch.
        loss: ``inf``, ``-inf`` or ``nan``.
    """

    def __init__(self, row: int, loss: float) -> None:
        super().__init__(f"the loss over row {row} is {loss}")
        self.row, self.loss = row, loss


class _BodyDone(Exception):
    """Ends a forward when the body has run; the head is called chunk by chunk."""


class Loss:
    """The summed negative log-likelihood of chosen tokens.

    Args:
        model: a causal language model of transformers; its body and the part that holds body and head are replaced over
            :meth:`backward`.

    Attributes:
        whole: path, in the original model, of the part that holds body and head.
        body: path of the body: the outermost part beside the head that embeds tokens and that the forward runs.
        rows: while the head runs, the row of the batch of each position that it sees, int64 ``[k]``; None otherwise.

    Raises:
        ActError: a model without an LM head beside a body that embeds tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = original(model)
        self.whole, self._bodies = _parts(self._model)
        self.body = self._bodies[0]
        self._without_cache = without_cache(self._model)
        self.rows: torch.Tensor | None = None
        self._call: Callable[[], Any] | None = None
        self._output: Any = None
        self._running = False
        self._chunk: torch.Tensor | None = None

    @contextlib.contextmanager
    def split(self) -> Iterator[None]:
        """Let body and head run apart over the block."""
        attachments = Attachments(self._model)
        for name in self._bodies:
            attachments.replace(name, partial(self._in_the_place_of_a_body, name))
        attachments.replace(self.whole, self._noted)
        try:
            yield
        finally:
            attachments.remove()
            self._call = self._output = self._chunk = self.rows = None

    def backward(self, inputs: Mapping[str, torch.Tensor], chosen: torch.Tensor) -> None:
        """Compute gradients of everything that requires them, inside :meth:`split`.

        Args:
            inputs: arguments of the model, among them ``input_ids`` ``[batch, length]``.
            chosen: bool ``[batch, length]``: which positions predict a token of the loss, the one after them.

        Raises:
            NotFinite: the loss over a sequence is NaN or infinite.
        """
        self._output = self._chunk = self.rows = None
        self._running = False
        with contextlib.suppress(_BodyDone):
            self._model(**inputs, **self._without_cache)
            raise self._inseparable(f"does not run its {self.body} as a module")
        self._running = False
        hidden = _hidden(self._output)
        if hidden.shape[:2] != chosen.shape:
            raise ActError(
                f"{self.body} gave {list(hidden.shape)} for {list(chosen.shape)} tokens, so that it is not known which "
                "of them are predicted; give a causal language model that gives a row for each token"
            )
        rows, places = (place.to(hidden.device) for place in chosen.nonzero(as_tuple=True))
        ids = inputs["input_ids"].to(hidden.device)
        labels, states = ids[rows, places + 1], hidden.detach()[rows, places]
        gradient = torch.zeros_like(hidden)
        for some in torch.arange(len(rows), device=rows.device).split(self._at_once()):
            gradient[rows[some], places[some]] = self._backward_of_head(states[some], labels[some], rows[some])
        self._chunk = None
        hidden.backward(gradient)
        self._output = None

    def _backward_of_head(self, states: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert self._call is not None
        states.requires_grad_(True)
        self._chunk, self.rows = states[None], rows
        output = self._call()
        self.rows = None
        logits = output.logits if hasattr(output, "logits") else output[0]
        if len(logits[0]) != len(labels):
            raise self._inseparable(_OTHER_LOGITS.format(self.body))
        losses = cross_entropy(logits[0].float(), labels.to(logits.device), reduction="none")
        if not losses.isfinite().all():
            first = int((~losses.isfinite()).nonzero()[0])
            raise NotFinite(int(rows[first]), losses[first].item())
        losses.sum().backward()
        found, states.grad = states.grad, None
        if found is None:
            raise self._inseparable(_OTHER_LOGITS.format(self.body))
        return found

    def _inseparable(self, reason: str) -> ActError:
        return ActError(
            f"{type(self._model).__name__} {reason}, so its loss cannot be taken apart into body and head; profile the "
            "pair instead (act-profile pair --swap), and rank by score match"
        )

    def _at_once(self) -> int:
        config: Any = self._model.config
        return max(16, LOGITS_AT_ONCE // getattr(config.get_text_config(), "vocab_size", 1 << 16))

    def _noted(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._call = lambda: forward(*args, **kwargs)
        return forward(*args, **kwargs)

    def _in_the_place_of_a_body(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        if self._chunk is None:
            self.body, self._running = name, True
            self._output = forward(*args, **kwargs)
            raise _BodyDone
        return _with_hidden(self._output, self._chunk)


def _parts(model: nn.Module) -> tuple[str, list[str]]:
    """The paths of the part that holds body and head, and of what may be the body, from the outermost inwards.

    Some models hold a decoder in a shell, such as an encoder-decoder without its encoder, and run the decoder alone.
    """
    head, embed = lm_head(model), input_embedding(model)
    whole = next((name for name, module in model.named_modules() if module is head and head is not None), "")
    while whole:
        whole = whole.rpartition(".")[0]
        for name, child in model.get_submodule(whole).named_children():
            held = list(child.modules())
            if any(module is embed for module in held) and not any(module is head for module in held):
                body = f"{whole}.{name}".lstrip(".")
                parts = [(f"{body}.{path}".rstrip("."), part) for path, part in child.named_modules()]
                return whole, [path for path, part in parts if part is not embed and embed in part.modules()]
    raise ActError(
        f"{type(model).__name__} has no LM head beside a body that embeds tokens, so there is no loss over its text; "
        "give a causal language model"
    )


def _hidden(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def _with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """What a body returned, with other hidden states."""
    if isinstance(output, torch.Tensor):
        return hidden
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    first, *_ = output
    return type(output)(**{**output, first: hidden})
