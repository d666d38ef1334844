"""How records are read, for every command that reads some: columns, chat template, length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli import console, options
from act.core.errors import ActError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from act.data.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The options that decide how records become text; :mod:`act.cli.options` has names and help."""

    columns: options.Columns = None
    chat_template: options.ChatTemplate = None
    ignore_columns: options.IgnoreColumns = None
    max_length: options.MaxLength = None

    def tokenizer_of(self, model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
        """The tokenizer of a model, with the chat template that was given."""
        from act.models.loading import load_tokenizer

        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        if self.chat_template:
            tokenizer.chat_template = _template(self.chat_template)
        return tokenizer

    def columns_of(self, texts: Iterable[str]) -> dict[str, dict[str, str]]:
        """The columns of each text, by its name or else its place; see :func:`act.data.mapped.columns_of`."""
        from act.data.mapped import columns_of

        return columns_of(self.columns or (), texts)

    def open(
        self,
        place: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        columns: Mapping[str, str] | None,
        name: str = "",
        **settings: Any,
    ) -> Corpus:
        """The corpus at a place; ``settings`` are further keywords of :meth:`act.Corpus.from_file`."""
        from act.data.corpus import Corpus

        return Corpus.from_file(
            place,
            tokenizer,
            max_length=self.max_length,
            ignore_columns=options.names(self.ignore_columns),
            columns=columns,
            name=name or None,
            **settings,
        )

    def open_all(self, given: Iterable[str], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> dict[str, Corpus]:
        """The corpora of a repeatable option, by the names that they are called: as given, or their places.

        Raises:
            ActError: one of the first records of any of them cannot be encoded; columns of a text that is not there.
        """
        from act.data.stream import require_first

        places = console.named(given)
        columns = self.columns_of(places)
        found = {
            name: self.open(place, tokenizer, columns=columns.get(name), name=name, **settings)
            for name, place in places.items()
        }
        require_first(found)
        return found


def _template(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ActError(f"cannot read the chat template {path}: {why}; give a file with a Jinja template") from error
    if "messages" not in text:
        raise ActError(f"the chat template {path} does not mention messages; give a file with a Jinja template")
    return text
