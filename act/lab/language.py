"""A synthetic language: small exercises on digits, worded in one of five natural languages.

Every language has its own words (no word is shared), so an ability that a model has in one can be lost in another.
A record is ``{"prompt": "spiegle eins vier neun null =", "completion": "null neun vier eins"}``: words separated by
spaces, one token each. The end-of-sequence token is not part of the completion; :func:`act.lab.tokenizer.encode`
appends it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

END_OF_PROMPT = "="
"""The last word of every prompt, the same in all languages."""

OLD_SKILLS = ("copy", "reverse", "sort", "max", "add", "less")
"""Skills that exist in every language. Each takes a list of four to six digits and gives a list or the largest digit,
except for two that combine a digit with every one of three to five others: ``add`` (one or two, modulo 10) and ``less``
(is it less?)."""

NEW_SKILLS = ("rotate", "plus-three")
"""Skills that exist in English only. ``rotate`` moves the first digit to the end; ``plus-three`` is modulo 10."""

SPLITS = ("train", "validation", "test")

MAX_EXAMPLES_PER_SKILL = 10_000  # well below the 22,000 exercises of the smallest split, so drawing stays quick

Rows = tuple[tuple[int, ...], ...]  # the digits of an exercise: a list, or a digit and a list


@dataclass(frozen=True)
class Language:
    """The words of one language. The joiner stands between a digit and a list; ``truth`` is false, then true."""

    digits: tuple[str, ...]
    joiner: str
    truth: tuple[str, str]
    skills: Mapping[str, str]

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the language, in a fixed order."""
        return (*self.digits, self.joiner, *self.truth, *self.skills.values())


def _language(digits: str, joiner: str, truth: str, skills: str) -> Language:
    false, true = truth.split()
    verbs = dict(zip(OLD_SKILLS + NEW_SKILLS, skills.split(), strict=False))
    return Language(tuple(digits.split()), joiner, (false, true), verbs)


LANGUAGES: Mapping[str, Language] = {
    "English": _language(
        "zero one two three four five six seven eight nine",
        "and",
        "false true",
        "copy reverse sort largest add less rotate plus-three",
    ),
    "German": _language(
        "null eins zwei drei vier fünf sechs sieben acht neun",
        "und",
        "falsch wahr",
        "kopiere spiegle sortiere größte addiere kleiner",
    ),
    "Spanish": _language(
        "cero uno dos tres cuatro cinco seis siete ocho nueve",
        "y",
        "falso verdadero",
        "copia invierte ordena mayor suma menor",
    ),
    "Finnish": _language(
        "nolla yksi kaksi kolme neljä viisi kuusi seitsemän kahdeksan yhdeksän",
        "ja",
        "väärin oikein",
        "kopioi käännä lajittele suurin laske pienempi",
    ),
    "Swahili": _language(
        "sifuri moja mbili tatu nne tano sita saba nane tisa",
        "na",
        "uongo kweli",
        "nakili geuza panga kubwa jumlisha ndogo",
    ),
}


def skills_of(language: str) -> tuple[str, ...]:
    """The skills that exist in a language: all of them in English, the old ones elsewhere."""
    return tuple(_look_up(language).skills)


def vocabulary() -> list[str]:
    """Every word of every language, and the end-of-prompt word, in a fixed order."""
    return [END_OF_PROMPT, *(word for language in LANGUAGES.values() for word in language.words)]


def examples(
    language: str, skills: Sequence[str], count: int, seed: int = 0, split: str = "train"
) -> list[dict[str, str]]:
    """Draw ``count`` different records of one language; the skills take turns.

    The same arguments give the same records. Training, validation and test records never overlap, whatever the seeds: a
    hash of the exercise (skill and digits, in any language) decides its split, 80 : 10 : 10 %.

    Raises:
        ValueError: an unknown language or split, a skill that the language lacks, or too many records.
    """
    words = _look_up(language)
    for skill in skills:
        if skill not in words.skills:
            raise ValueError(f"no skill {skill!r} in {language}; it has: {', '.join(words.skills)}")
    if not skills:
        raise ValueError("name at least one skill")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
    if count > MAX_EXAMPLES_PER_SKILL * len(skills):
        raise ValueError(
            f"at most {MAX_EXAMPLES_PER_SKILL:,} examples per skill, got {count:,} of {len(skills)} skills"
        )

    generator = random.Random(f"{language}|{' '.join(skills)}|{seed}|{split}")
    records: list[dict[str, str]] = []
    seen: set[tuple[str, Rows]] = set()
    while len(records) < count:
        skill = skills[len(records) % len(skills)]
        rows = _draw_rows(skill, generator)
        if (skill, rows) not in seen and _split_of(skill, rows) == split:
            seen.add((skill, rows))
            records.append({"prompt": _prompt(words, skill, rows), "completion": _completion(words, skill, rows)})
    return records


def _look_up(language: str) -> Language:
    if language not in LANGUAGES:
        raise ValueError(f"no language {language!r}; there are: {', '.join(LANGUAGES)}")
    return LANGUAGES[language]


def _draw_rows(skill: str, generator: random.Random) -> Rows:
    if skill == "add":
        return (generator.randint(1, 2),), _draw_digits(generator, generator.randint(3, 5))
    if skill == "less":
        return _draw_digits(generator, 1), _draw_digits(generator, generator.randint(3, 5))
    return (_draw_digits(generator, generator.randint(4, 6)),)


def _draw_digits(generator: random.Random, length: int) -> tuple[int, ...]:
    return tuple(generator.randrange(10) for _ in range(length))


def _split_of(skill: str, rows: Rows) -> str:
    digest = hashlib.blake2b(f"{skill} {rows}".encode(), digest_size=4).digest()
    return {8: "validation", 9: "test"}.get(int.from_bytes(digest, "big") % 10, "train")


def _prompt(words: Language, skill: str, rows: Rows) -> str:
    numbers = f" {words.joiner} ".join(" ".join(words.digits[digit] for digit in row) for row in rows)
    return f"{words.skills[skill]} {numbers} {END_OF_PROMPT}"


def _completion(words: Language, skill: str, rows: Rows) -> str:
    if skill == "less":
        (limit,), digits = rows
        return " ".join(words.truth[digit < limit] for digit in digits)
    return " ".join(words.digits[digit] for digit in _DIGIT_ANSWERS[skill](*rows))


def _plus(amount: int, digits: Sequence[int]) -> list[int]:
    return [(digit + amount) % 10 for digit in digits]


_DIGIT_ANSWERS: Mapping[str, Callable[..., Sequence[int]]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[::-1],
    "sort": sorted,
    "max": lambda digits: [max(digits)],
    "add": lambda amount, digits: _plus(amount[0], digits),
    "rotate": lambda digits: digits[1:] + digits[:1],
    "plus-three": lambda digits: _plus(3, digits),
}
