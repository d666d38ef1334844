"""The laboratory: its language, its tokenizer, its exact match, its training and the checkpoints that ship."""

from __future__ import annotations

import pytest
import torch
import transformers

from act.lab import train
from act.lab.evaluate import exact_match
from act.lab.language import LANGUAGES, NEW_SKILLS, OLD_SKILLS, SPLITS, examples, skills_of, vocabulary
from act.lab.models import CHECKPOINTS, load, save, tiny_llama
from act.lab.tokenizer import build_tokenizer, encode


@pytest.fixture(scope="module")
def base():
    return load(CHECKPOINTS / "base")


@pytest.fixture(scope="module")
def target():
    return load(CHECKPOINTS / "target")


@pytest.fixture
def threads():
    """Puts back the number of threads, which training sets to one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_english(text: str, language: str) -> str:
    words = dict(zip(LANGUAGES[language].words, LANGUAGES["English"].words, strict=False))
    return " ".join(words.get(word, word) for word in text.split())


def solve(prompt: str) -> str:
    """The answer to an English prompt, found another way than in the language module."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    skill, *words = prompt.removesuffix(" =").split()
    digits = [names.index(word) for word in words if word != "and"]
    first, rest = digits[0], digits[1:]
    if skill == "less":
        return " ".join("true" if digit < first else "false" for digit in rest)
    answer = {
        "copy": digits,
        "reverse": list(reversed(digits)),
        "sort": sorted(digits),
        "largest": [sorted(digits)[-1]],
        "add": [int(str(digit + first)[-1]) for digit in rest],
        "rotate": [*rest, first],
        "plus-three": [int(str(digit + 3)[-1]) for digit in digits],
    }[skill]
    return " ".join(names[digit] for digit in answer)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_record_is_answered_right(language):
    for record in examples(language, skills_of(language), 200):
        assert record["prompt"].endswith(" =")
        assert in_english(record["completion"], language) == solve(in_english(record["prompt"], language))


def test_no_word_is_shared_between_languages():
    words = vocabulary()
    assert len(words) == len(set(words))
    assert not any(word.split() != [word] for word in words)


def test_new_skills_exist_in_english_only():
    assert skills_of("English") == OLD_SKILLS + NEW_SKILLS
    assert all(skills_of(language) == OLD_SKILLS for language in LANGUAGES if language != "English")


def test_skills_take_turns():
    prompts = [record["prompt"] for record in examples("German", ["copy", "sort"], 6)]
    assert [prompt.split()[0] for prompt in prompts] == ["kopiere", "sortiere"] * 3


def test_records_depend_on_the_arguments_alone():
    assert examples("German", OLD_SKILLS, 30, seed=3) == examples("German", OLD_SKILLS, 30, seed=3)
    assert examples("German", OLD_SKILLS, 30, seed=3) != examples("German", OLD_SKILLS, 30, seed=4)
    assert examples("Swahili", ["add"], 1, seed=0, split="test") == [
        {"prompt": "jumlisha moja na mbili tatu mbili moja sifuri =", "completion": "tatu nne tatu mbili moja"}
    ]


def test_no_record_twice():
    prompts = [record["prompt"] for record in examples("English", ["add"], 5000, split="test")]
    assert len(set(prompts)) == 5000


def test_splits_never_meet_in_any_language():
    exercises = {
        split: {
            in_english(record["prompt"], language)
            for language in LANGUAGES
            for seed in (0, 1)
            for record in examples(language, ["copy", "add"], 2000, seed, split)
        }
        for split in SPLITS
    }
    assert not exercises["train"] & exercises["validation"]
    assert not exercises["train"] & exercises["test"]
    assert not exercises["validation"] & exercises["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Klingon", ["copy"], 1), "no language 'Klingon'; there are: English, German"),
        (("German", ["rotate"], 1), "no skill 'rotate' in German; it has: copy, reverse"),
        (("German", [], 1), "at least one skill"),
        (("German", ["copy"], 1, 0, "dev"), "no split 'dev'; there are: train, validation, test"),
        (("German", ["copy"], 10_001), "at most 10,000 examples per skill, got 10,001"),
    ],
)
def test_impossible_records_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        examples(*arguments)


def test_tokenizer_survives_saving(tmp_path):
    tokenizer = build_tokenizer()
    save(tiny_llama(tokenizer, seed=0), tokenizer, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = " ".join(vocabulary())
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"] == list(range(3, len(tokenizer)))
    assert loaded.decode(ids) == text
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)


def test_encode_marks_the_answer():
    tokenizer = build_tokenizer()
    record = {"prompt": "kopiere eins zwei =", "completion": "eins zwei"}
    (encoded,) = encode(tokenizer, [record])
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.start :]) == ["eins", "zwei", "</s>"]
    assert encode(tokenizer, []) == []


def test_encode_refuses_a_prompt_that_runs_into_its_answer():
    class Merging:
        eos_token_id = 1

        def __call__(self, texts, **_):
            return {"input_ids": [[len(text)] for text in texts]}

    with pytest.raises(ValueError, match="not a prefix"):
        encode(Merging(), [{"prompt": "a", "completion": "b"}])


def test_exact_match_is_greedy_generation(target):
    model, tokenizer = target
    records = examples("English", OLD_SKILLS + NEW_SKILLS, 96, split="test")
    inputs = tokenizer([record["prompt"] for record in records], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    answers = [
        tokenizer.convert_tokens_to_ids([*record["completion"].split(), tokenizer.eos_token]) for record in records
    ]
    right = [row.tolist()[: len(answer)] == answer for row, answer in zip(generated, answers, strict=True)]
    assert 0 < sum(right) < len(records)
    assert exact_match(model, tokenizer, records) == sum(right) / len(records)
    for record, expected in zip(records[:16], right, strict=False):
        assert exact_match(model, tokenizer, [record]) == expected


def test_exact_match_does_not_depend_on_the_batches(target):
    records = examples("English", NEW_SKILLS, 50, split="test")
    assert exact_match(*target, records, token_budget=96) == exact_match(*target, records)


def test_exact_match_leaves_the_mode_alone(base):
    model, tokenizer = base
    records = examples("German", OLD_SKILLS, 6, split="test")
    model.train()
    exact_match(model, tokenizer, records)
    assert model.training
    model.eval()
    exact_match(model, tokenizer, records)
    assert not model.training


def test_exact_match_of_nothing_is_refused(base):
    with pytest.raises(ValueError, match="no records"):
        exact_match(*base, [])


def test_shipped_base_knows_all_languages(base):
    for language in LANGUAGES:
        assert exact_match(*base, examples(language, OLD_SKILLS, 240, split="test")) >= 0.98
    assert exact_match(*base, examples("English", NEW_SKILLS, 240, split="test")) < 0.05


def test_shipped_target_knows_english_and_forgot_the_rest(target):
    assert exact_match(*target, examples("English", NEW_SKILLS, 240, split="test")) >= 0.9
    assert exact_match(*target, examples("English", OLD_SKILLS, 240, split="test")) >= 0.85
    for language in LANGUAGES:
        if language != "English":
            assert exact_match(*target, examples(language, OLD_SKILLS, 240, split="test")) < 0.15


def test_shipped_checkpoints_are_small_float16_siblings(base, target):
    files = [file for name in ("base", "target") for file in (CHECKPOINTS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 2.5e6
    assert base[0].config.dtype == target[0].config.dtype == torch.float32
    for name in ("base", "target"):
        stored = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype="auto")
        assert {parameter.dtype for parameter in stored.parameters()} == {torch.float16}
    assert base[1].get_vocab() == target[1].get_vocab() == build_tokenizer().get_vocab()


def test_training_twice_gives_the_same_bytes(tmp_path, monkeypatch, capsys, threads):
    for name, steps in {"BASE_STEPS": 3, "TARGET_STEPS": 1, "MORE_STEPS": 1, "MOST_STEPS": 2}.items():
        monkeypatch.setattr(train, name, steps)
    monkeypatch.setattr(train, "RECORDS_PER_FIGURE", 16)
    for name in ("first", "second"):
        train.main(["--output", str(tmp_path / name), "--seed", "5"])
    assert "| German | 0.0 | 0.0 |" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    first, second = (
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("first", "second")
    )
    assert first == second
    assert "two new\nskills" in first["README.md"].decode()


def test_training_overwrites_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--output", str(tmp_path)])
    assert "exists" in capsys.readouterr().err
