"""How records are read, for every command that reads some: columns, chat template, length."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli import console, options
from act.core.counted import counted
from act.core.errors import ActError, BadRecord

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

    def require_text(self, given: bool) -> None:
        """Raise :class:`ActError` for an option that decides how records are read where no text is ``given``."""
        for each in fields(self):
            if not given and getattr(self, each.name) != each.default and getattr(self, each.name) != []:
                name = f"--{each.name.replace('_', '-')}"
                raise ActError(f"{name} has no effect without --corpus; leave it out, or give a text")

    def columns_of(self, texts: Iterable[str]) -> dict[str, dict[str, str]]:
        """The columns of each text, by its name or else its place; see :func:`act.data.mapped.columns_of`."""
        from act.data.mapped import columns_of

        return columns_of(self.columns or (), texts)

    def look(self, corpora: Mapping[str, Corpus]) -> None:
        """Warn of what is probably not meant in how the first records of all texts of a command are read."""
        from act.data.stream import warn_of_ignored

        warn_of_ignored(corpora)
        for name, corpus in corpora.items() if self.columns else ():
            if seam := _seam(corpus):
                console.warn(
                    f"{name or corpus.name}: prompts and completions meet without a space ({seam!r}); a template can "
                    "put one between them, such as --columns prompt=question,completion=' {answer}'"
                )

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


@dataclass(frozen=True, kw_only=True)
class ReadingRecords(Reading):
    """The same for commands that need every record of a text, apart from bad ones that may be left out."""

    skip_bad_records: options.SkipBadRecords = 0

    def open_all(
        self,
        given: Iterable[str],
        tokenizers: Mapping[str, PreTrainedTokenizerBase],
        *,
        limit: int | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> dict[str, dict[str, Corpus]]:
        """The corpora of a repeatable option for each model, by the names that they are called: as given, or places.

        Args:
            given: the texts, each as PLACE or NAME=PLACE.
            tokenizers: by the name of the model that is to read them; what is a bad record to one of these is left out
                for all.
            limit: only this many records of each, the first ones.
            settings: further keywords of :meth:`act.Corpus.from_file`.

        Raises:
            ActError: more bad records among the first than may be left out, or, if any may, among all; columns of a
                text that is not there.
        """
        from act.data.corpus import count_prompts
        from act.data.stream import require_first

        places = console.named(given)
        columns = self.columns_of(places)
        found: dict[str, dict[str, Corpus]] = {}
        for model, tokenizer in tokenizers.items():
            texts = {
                name: self.open(place, tokenizer, columns=columns.get(name), name=name, **settings)
                for name, place in places.items()
            }
            found[model] = {name: text.beginning(limit) if limit else text for name, text in texts.items()}
            try:
                require_first(found[model], skip_bad_records=self.skip_bad_records)
            except BadRecord as error:  # no command that needs answers, but for transfer --auto, has --count
                said = str(error) if "count" in settings else str(error).replace(count_prompts(), "")
                raise BadRecord(said) from error
        self.look(next(iter(found.values()), {}))
        return self._good(found, trust_remote_code) if self.skip_bad_records else found

    def _good(self, found: dict[str, dict[str, Corpus]], trust_remote_code: bool) -> dict[str, dict[str, Corpus]]:
        """The same corpora without the records that any of the models cannot read, of which one warning tells."""
        from act.data.stream import Skipped, require_few
        from act.models.limits import trained_positions
        from act.models.loading import load_config, reading_named

        good: dict[str, set[int]] = {}
        skipped: dict[tuple[str, int], Skipped] = {}
        for model, texts in found.items():
            reader, sees = reading_named(model, trust_remote_code=trust_remote_code)
            positions = trained_positions(load_config(model, trust_remote_code=trust_remote_code))
            for name, text in texts.items():
                read = text.read_by(reader).with_images("" if sees else f"{model} reads text alone")
                for entry, result in read.fitted(None, positions).numbered():
                    good.setdefault(name, set()).add(entry.number)
                    if isinstance(result, ActError):
                        bad = Skipped(name, entry.number, entry.place, str(result))
                        skipped.setdefault((name, entry.number), bad)
                        require_few([*skipped.values()], self.skip_bad_records)
        if not skipped:
            return found
        listed = "; ".join(f"{each.place}: {each.reason}" for each in skipped.values())
        console.warn(f"skipped {counted(len(skipped), 'bad record')}: {listed}")
        for name, number in skipped:
            good[name].discard(number)
        partly = {name for name, _ in skipped}  # the others stay what they are, and are known as such
        return {
            model: {name: text.only(good[name]) if name in partly else text for name, text in texts.items()}
            for model, texts in found.items()
        }


def _seam(corpus: Corpus) -> str:
    """Where the first prompt and its completion meet, if no space stands there in any of the first records."""
    from act.data.stream import FIRST

    found = [entry.record for entry in itertools.islice(corpus.source.read(), FIRST)]
    read = [one for one in found if isinstance(one, Mapping) and one.get("prompt") and one.get("completion")]
    pairs = [(str(one["prompt"])[-12:], str(one["completion"])[:12]) for one in read]
    glued = (re.search(r"[!-;=?-\\^-~]\Z", asked) and re.match(r"[a-zA-Z0-9]", answer) for asked, answer in pairs)
    return "".join(pairs[0]) if pairs and all(glued) else ""  # other scripts have no spaces, and tags may need none


def _template(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ActError(f"cannot read the chat template {path}: {why}; give a file with a Jinja template") from error
    if "messages" not in text:
        raise ActError(f"the chat template {path} does not mention messages; give a file with a Jinja template")
    return text
