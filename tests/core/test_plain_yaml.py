"""YAML within limits: what an attack or a slip would hold is refused in a sentence, at once."""

from __future__ import annotations

import time

import pytest

from act.core.errors import ActError
from act.core.plain_yaml import MOST_BYTES, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "aliases of aliases": (LAUGHS, "more than 20,000 values"),
    "an alias inside itself": ("a: &a [*a]", "inside what it stands for"),
    "deep": ("[" * 2000, "levels deep"),
    "deep and whole": ("[" * 100 + "]" * 100, "levels deep"),
    "long": ("# " + "x" * MOST_BYTES, "longer than 128 kB"),
    "a key twice": ("a: 1\nb: 2\na: 3", "'a' is given twice.*line 3"),
    "a tag": ("a: !!int abc", "tag !!int"),
    "a tag of Python": ("a: !!python/object/apply:os.getcwd []", "tag !!python"),
    "thousands of digits": (f"a: {'9' * 5000}", "no number that can be used"),
    "no digits": ("a: 0x_", "no number that can be used"),
    "half a character": ('a: "\\ud800"', "half a character"),
    "two documents": ("a: 1\n--- \nb: 2", "line 2 begins a second document"),
    "a list as a key": ("? [a]\n: b", "unhashable key"),
    "not UTF-8": (b"a: \xff", "not YAML"),
    "control characters": ("a: \x00", "not YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_at_once(tmp_path, name):
    text, message = REFUSED[name]
    (tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    with pytest.raises(ActError, match=rf"(?s)x\.yaml.*{message}") as caught:
        read_yaml(tmp_path / "x.yaml", "a recipe")
    assert time.process_time() - start < 5 and len(str(caught.value)) < 500


def test_plain_values_come_back(tmp_path):
    text = "shared: &s {x: 1, y: 2.5}\nuse: [*s, *s]\nmerged: {<<: *s, z: true}\ndate: 2001-13-45\nname: 数学\nnone:\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    shared = {"x": 1, "y": 2.5}
    _, data = read_yaml(tmp_path / "x.yaml", "a recipe")
    assert data == {
        "shared": shared,
        "use": [shared, shared],
        "merged": {**shared, "z": True},
        "date": "2001-13-45",
        "name": "数学",
        "none": None,
    }


@pytest.mark.parametrize("value", ["1:30", "-1:30.5", f"1{':1' * 300}.0", f"1{':20' * 40_000}"])
def test_base_60_is_a_text_at_once(tmp_path, value):
    (tmp_path / "x.yaml").write_text(f"a: {value}")
    start = time.process_time()
    assert read_yaml(tmp_path / "x.yaml", "a recipe")[1] == {"a": value}
    assert time.process_time() - start < 2


def test_a_file_at_the_limit_takes_seconds_at_most(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [" + "1, " * (MOST_BYTES // 8) + "1]")
    start = time.process_time()
    assert len(read_yaml(tmp_path / "x.yaml", "a recipe")[1]["a"]) == MOST_BYTES // 8 + 1
    assert time.process_time() - start < 8
