"""Sources: the same records from every kind of file, errors that name their place, damage that is told and skipped."""

from __future__ import annotations

import gzip
import json
import random
import types

import datasets
import fsspec
import pyarrow
import pytest
import zstandard
from fsspec.registry import known_implementations
from pyarrow import ipc, parquet
from support import CHAT_TEMPLATE, train_tokenizer

from act import ActError, Corpus
from act.data import unpacking
from act.data.records import Dataset, Memory, open_source
from act.data.stream import Stream
from act.data.unpacking import ROWS_TOGETHER, parquet_rows_together

RECORDS = [{"text": f"text {number} é"} for number in range(7)]
JSONL = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def read(place, *arguments):
    return [(entry.number, entry.record) for entry in open_source(place).read(*arguments)]


def write(folder, kind, records=RECORDS, name="part"):
    path = folder / f"{name}{kind}"
    jsonl = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    if kind == ".jsonl":
        path.write_bytes(jsonl)
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(jsonl))
    elif kind == ".jsonl.zst":
        half = len(jsonl) // 2  # two frames, as tools that append write them
        path.write_bytes(b"".join(zstandard.compress(part) for part in (jsonl[:half], jsonl[half:])))
    elif kind == ".txt":
        path.write_text("\n\n".join(record["text"] for record in records))
    elif kind == ".parquet":
        datasets.Dataset.from_list(records).to_parquet(str(path))
    elif kind == ".arrow":
        datasets.Dataset.from_list(records).save_to_disk(str(folder / "saved"))
        (folder / "saved" / "data-00000-of-00001.arrow").rename(path)
    return path


KINDS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".parquet", ".arrow"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_records(kind, tmp_path):
    path = write(tmp_path, kind)
    assert read(path) == list(enumerate(RECORDS))
    assert read(path, 3, (1, 2)) == [(3, RECORDS[3]), (5, RECORDS[5])]
    source = open_source(path)
    assert source.size in (7, None) or kind == ".txt" or kind in (".jsonl.gz", ".jsonl.zst")
    assert source.fingerprint == open_source(path).fingerprint


def test_folders_globs_and_saved_datasets(tmp_path):
    write(tmp_path, ".jsonl", RECORDS[:3], "a")
    write(tmp_path, ".parquet", RECORDS[3:], "b")
    (tmp_path / "README.md").write_text("not a corpus")
    assert read(tmp_path) == list(enumerate(RECORDS))
    assert read(tmp_path / "*.jsonl") == list(enumerate(RECORDS[:3]))
    assert read(tmp_path, 2, (0, 2)) == [(number, RECORDS[number]) for number in (2, 4, 6)]
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved", 5) == [(5, RECORDS[5]), (6, RECORDS[6])]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ActError, match="empty holds no corpus; expected "):
        open_source(tmp_path / "empty")
    with pytest.raises(ActError, match=r"no such file or folder; did you mean .*/a\.jsonl\?"):
        open_source(tmp_path / "aa.jsonl")


@pytest.fixture
def bucket(tmp_path):
    """The files of a folder on another system, and how they are called there."""
    system = fsspec.filesystem("memory")

    def put():
        for path in tmp_path.rglob("*.*"):
            if path.is_file():
                system.pipe_file(f"/bucket/{path.relative_to(tmp_path)}", path.read_bytes())
        return "memory://bucket"

    yield put
    system.store.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_system_gives_the_same_records(kind, tmp_path, bucket):
    path = write(tmp_path, kind)
    place = f"{bucket()}/{path.name}"
    assert read(place) == list(enumerate(RECORDS)) and read(place, 3, (1, 2)) == read(path, 3, (1, 2))
    source = open_source(place)
    assert (source.name, source.place, source.count()) == (place, place, 7)
    assert source.fingerprint == open_source(place).fingerprint
    fsspec.filesystem("memory").pipe_file(f"/bucket/{path.name}", path.read_bytes() + b"\n")
    assert source.fingerprint != open_source(place).fingerprint


def test_folders_and_globs_of_another_system_and_what_is_not_there(tmp_path, bucket, monkeypatch):
    write(tmp_path, ".jsonl", RECORDS[:3], "a")
    write(tmp_path, ".parquet", RECORDS[3:], "b")
    (tmp_path / "about.json").write_text("[]")
    root = bucket()
    assert read(root) == list(enumerate(RECORDS)) and read(f"{root}/*.jsonl") == list(enumerate(RECORDS[:3]))
    (bad,) = [entry.place for entry in open_source(f"{root}/a.jsonl").read(2)]
    assert bad.startswith("memory://") and bad.endswith("/bucket/a.jsonl, line 3")
    for place, message in (
        (f"{root}/c.jsonl", "no such corpus: memory://bucket/c.jsonl"),
        (f"{root}/*.csv", "no such corpus"),
        ("nowhere://x/y", "cannot read the corpus nowhere://x/y: Protocol not known: nowhere"),
        ("lacking://x/y", "what reads lacking:// is not installed; pip install lackingfs"),
    ):
        monkeypatch.setitem(known_implementations, "lacking", {"class": "lackingfs.Files", "err": "no"})
        with pytest.raises(ActError, match=message):
            open_source(place)


def test_datasets_in_memory_and_streaming(tokenizer):
    loaded = datasets.Dataset.from_list(RECORDS)
    expected = [encoded.input_ids.tolist() for encoded in Corpus.from_records(RECORDS, tokenizer).encoded()]
    for dataset in (loaded, loaded.to_iterable_dataset()):
        found = [encoded.input_ids.tolist() for encoded in Corpus.from_dataset(dataset, tokenizer).encoded()]
        assert found == expected


def test_a_hub_id_is_read_at_the_revision_it_has_now(monkeypatch):
    asked = {}

    def load_dataset(name, config, **options):
        asked.update(name=name, config=config, **options)
        return datasets.Dataset.from_list(RECORDS).to_iterable_dataset()

    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda self, name: types.SimpleNamespace(sha=f"sha-{name}")
    )
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("org/name:german:test") == list(enumerate(RECORDS))
    asked.pop("trust_remote_code", None)  # which datasets before 4 is denied
    assert asked == {
        "name": "org/name",
        "config": "german",
        "split": "test",
        "revision": "sha-org/name",
        "streaming": True,
    }


def test_a_hub_that_does_not_answer_is_a_sentence(monkeypatch):
    def offline(self, name):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    with pytest.raises(
        ActError, match=r"no such corpus: org/name; there is no such file, and the hub .*no route to host"
    ):
        open_source("org/name")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def reason(place):
    entry = list(open_source(place).read())[-1]
    assert isinstance(entry.record, ActError)
    return f"{entry.place}: {entry.record}"


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_archive_is_told(kind, tmp_path):
    path = write(tmp_path, kind, RECORDS * 50)
    cut(path, path.stat().st_size - 12)
    assert f"{path}: the file is truncated or damaged" in reason(path)


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst"])
def test_an_archive_without_a_byte_is_no_empty_corpus(kind, tmp_path):
    write(tmp_path, kind, [], "a")
    write(tmp_path, ".jsonl", RECORDS, "c")
    assert read(tmp_path) == list(enumerate(RECORDS))
    (tmp_path / f"b{kind}").write_bytes(b"")
    (number, damage), *rest = read(tmp_path)
    assert "it has 0 bytes" in str(damage) and [record for _, record in rest] == RECORDS


def test_a_broken_parquet_file_among_good_ones_is_named_and_can_be_left_out(tmp_path, tokenizer):
    for name in "abc":
        write(tmp_path, ".parquet", RECORDS, name)
    broken = cut(tmp_path / "b.parquet", 300)
    corpus = Corpus.from_file(tmp_path, tokenizer)
    with pytest.raises(ActError, match=rf"{broken}: the file is truncated or damaged"):
        list(Stream({"": corpus}, token_budget=100))
    stream = Stream({"": corpus}, token_budget=100, skip_bad_records=1)
    assert sum(batch.records for batch in stream) == 14
    assert [skipped.place for skipped in stream.skipped] == [str(broken)]


def test_bad_records_are_skipped_up_to_a_number_and_listed(tmp_path, tokenizer):
    path = tmp_path / "mixed.jsonl"
    lines = [b'{"text": "a"}', b"{", b'{"text": "\xff"}', b'{"other": 1}', b'{"prompt": "a", "completion": " b"}']
    path.write_bytes(b"\n".join(lines))
    corpus = Corpus.from_file(path, tokenizer)
    stream = Stream({"german": corpus}, token_budget=100, skip_bad_records=3)
    assert sum(batch.records for batch in stream) == 2
    assert [(skipped.ability, skipped.record) for skipped in stream.skipped] == [("german", n) for n in (1, 2, 3)]
    reasons = [skipped.reason for skipped in stream.skipped]
    assert all(part in reason for part, reason in zip(("not JSON", "not UTF-8", "['other']"), reasons, strict=True))
    with pytest.raises(ActError, match=r"line 4: expected .* \(after 2 others that were skipped\)"):
        list(Stream({"": corpus}, token_budget=100, skip_bad_records=2))


def test_a_number_of_too_many_digits_costs_its_own_record_alone(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "id": ' + "1" * 5000 + '}\n{"text": "c"}\n')
    first, second, third = open_source(path).read()
    assert "too many digits" in str(second.record) and second.place == f"{path}, line 2"
    assert (first.record, third.record) == ({"text": "a"}, {"text": "c"})


class Failing:
    """A dataset whose rows end in an error of its own."""

    def __init__(self, rows, error):
        self.rows, self.error = rows, error

    def __len__(self):
        return len(RECORDS)

    def skip(self, start):
        return Failing(self.rows[start:], self.error)

    def __iter__(self):
        yield from self.rows
        raise self.error


@pytest.mark.parametrize("error", [EOFError("cut"), KeyError("text"), OSError("no route")], ids=repr)
@pytest.mark.parametrize(("whole", "start"), [(0, 0), (3, 0), (3, 2)])
def test_a_dataset_that_fails_says_at_which_row(error, whole, start):
    *rows, damage = Dataset(Failing(RECORDS[:whole], error), "rows").read(start)
    assert [entry.record for entry in rows] == RECORDS[start:whole]
    assert (damage.number, damage.place) == (whole, f"rows, row {whole}")
    assert "rows from here on cannot be read" in str(damage.record)


def test_lines_that_are_not_wanted_are_not_parsed(tmp_path, monkeypatch):
    path = write(tmp_path, ".jsonl")
    parsed = []
    monkeypatch.setattr("act.data.records.json.loads", parsed.append)
    assert [entry.number for entry in open_source(path).read(1, (1, 2), lambda number: number > 3)] == [5]
    assert len(parsed) == 1
    assert open_source(write(tmp_path, ".jsonl.gz")).count() == 7 and len(parsed) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_counted_in_every_kind_of_file(kind, tmp_path):
    assert open_source(write(tmp_path, kind)).count() == 7 or kind == ".txt"


def test_mixed_schemas_are_read_record_by_record(tokenizer):
    turn = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    records = [
        {"messages": list(turn), "text": None},
        {"question": "a", "answer": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"messages": None, "text": "a b"},
    ]
    encoded = [one.input_ids.tolist() for one in Corpus.from_records(records, tokenizer).encoded()]
    assert encoded[0] == encoded[1] == encoded[2] != encoded[3]


def spans(record, tokenizer, **options):
    return "|".join(
        text for text, counted in next(Corpus.from_records([record], tokenizer, **options).spans(1)) if counted
    )


TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "two"},
]


def test_the_last_or_all_turns_of_the_assistant_are_answers(tokenizer):
    assert spans({"messages": TURNS}, tokenizer) == "two</s>"
    assert spans({"messages": TURNS}, tokenizer, answer_turns="all") == "one</s>|two</s>"
    assert spans({"messages": TURNS[:3]}, tokenizer, answer_turns="all") == "one</s>"
    assert spans({"messages": TURNS, "loss_mask": [0, 1, 0, 0]}, tokenizer) == "one</s>"
    assert spans({"instruction": "do", "input": "this", "output": "done"}, tokenizer) == "done</s>"
    assert "this" in spans({"instruction": "do", "input": "this", "output": "done"}, tokenizer, count="prompt")


def test_a_loss_mask_says_which_tokens_count(tokenizer):
    ids = tokenizer("a b c", add_special_tokens=False)["input_ids"]
    mask = [0, *[1] * (len(ids) - 1)]
    expected = tokenizer.decode(ids[1:])
    assert spans({"input_ids": ids, "loss_mask": mask}, tokenizer) == expected
    assert spans({"text": "a b c", "loss_mask": mask}, tokenizer) == expected


def test_a_loss_mask_overrules_the_answer_of_every_kind_of_record(tokenizer):
    completion = {"prompt": "a b c", "completion": " d e"}
    whole = next(Corpus.from_records([completion], tokenizer).encoded())
    mask = [1, *[0] * (len(whole.input_ids) - 1)]
    masked = next(Corpus.from_records([{**completion, "loss_mask": mask}], tokenizer).encoded())
    assert masked.input_ids.tolist() == whole.input_ids.tolist()
    assert masked.answer.tolist() == [entry == 1 for entry in mask] != whole.answer.tolist()
    for record in ({"question": "a", "answer": "b"}, {"instruction": "a", "output": "b"}):
        assert spans({**record, "loss_mask": [0, 1]}, tokenizer) == spans(record, tokenizer)
        with pytest.raises(ActError, match="loss_mask marks no message by the assistant"):
            spans({**record, "loss_mask": [0, 0]}, tokenizer)


def without_template():
    tokenizer = train_tokenizer(["a b c"])
    tokenizer.chat_template = None
    return tokenizer


def rewriting():
    tokenizer = train_tokenizer(["a b c"])
    tokenizer.chat_template = "{{ messages | length }}" + CHAT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"messages": TURNS[:1]}, {"answer_turns": "all"}, "no message is by 'assistant'"),
        ({"messages": TURNS, "loss_mask": [1, 0]}, {}, "one entry for each of the 4 messages"),
        ({"messages": TURNS, "loss_mask": [1, 0, 0, 0]}, {}, "loss_mask marks no message"),
        ({"input_ids": [1, 2], "loss_mask": [1]}, {}, "one entry for each of the 2 tokens, got 1 entries"),
        ({"input_ids": ["a"]}, {}, "must be a list of token ids"),
        ({"question": "a", "answer": ""}, {}, "has no answer"),
        ({"text": "a", "skill": None}, {"ability_column": "skill"}, "column skill, is None"),
        *(
            ({"text": "a", "skill": label}, {"ability_column": "skill"}, "expected a valid file name")
            for label in ("", "../evil", "en/x", ".hidden", "a\\b", " ", "a\nb", "x" * 51)
        ),
        ({"text": "eins \ud800"}, {}, r"half a character, '\\ud800' at position 5"),
        ({"question": "\ud800", "answer": "a"}, {}, "half a character"),
        ({"text": "a", "skill": "\ud800"}, {"ability_column": "skill"}, "half a character"),
        ({"input_ids": [1, 2**31]}, {}, "from 0 to 2147483647, got 2147483648 in it"),
        ({"input_ids": [1, 2], "loss_mask": [[1], [0]]}, {}, r"must hold 0 .* and 1 .*, got \[1\] in it"),
        ({"input_ids": [1, 2], "loss_mask": ["0", "x"]}, {}, "got '0' in it"),
        ({"messages": TURNS, "loss_mask": [0, 0, 0, 2]}, {}, "got 2 in it"),
        ({"prompt": "a", "completion": " b", "loss_mask": [1]}, {}, "loss_mask must have one entry for each of the"),
        ({"question": "a", "answer": "b", "loss_mask": [1]}, {}, "one entry for each of the 2 messages, got 1 entries"),
    ],
)
def test_bad_records(record, options, message, tokenizer):
    with pytest.raises(ActError, match=message):
        list(Corpus.from_records([record], tokenizer, **options).encoded())


def test_a_record_that_cannot_be_encoded_leaves_its_neighbours(tokenizer):
    records = [{"text": "a"}, {"text": "\ud800"}, {"text": "\N{GRINNING FACE}"}]
    results = Corpus.from_records(records, tokenizer).encoder(records)
    assert [isinstance(result, ActError) for result in results] == [False, True, False]


def test_a_tokenizer_without_a_chat_template_or_one_that_rewrites(tokenizer):
    columns = r" \(columns={'prompt': '{question}', …}\)"
    for record, how in (({"messages": TURNS}, ""), ({"question": "a", "answer": "b"}, columns)):
        with pytest.raises(ActError, match=f"no chat template; use prompt and completion{how}, or give one"):
            list(Corpus.from_records([record], without_template()).encoded())
    with pytest.raises(ActError, match="are not the beginning of the whole record"):
        list(Corpus.from_records([{"messages": TURNS}], rewriting(), answer_turns="all").encoded())


def test_large_files_are_hashed_in_samples(tmp_path, monkeypatch):
    path = write(tmp_path, ".jsonl", RECORDS * 2000)
    monkeypatch.setattr("act.data.records.WHOLE_HASH_BYTES", 1000)
    monkeypatch.setattr("act.data.records.SAMPLE_BYTES", 100)
    source = open_source(path)
    assert source.size == pytest.approx(14000, rel=0.1)
    changed = path.read_bytes().replace(b"text 0", b"text x", 1)
    path.write_bytes(changed)
    assert open_source(path).fingerprint != source.fingerprint


def test_records_in_memory_are_told_apart():
    assert Memory(RECORDS).fingerprint != Memory(RECORDS[1:]).fingerprint


DAMAGED = {
    "a line without an end": (".jsonl", b"a" * 90000, "a line has more than"),
    "a packed line without an end": (".jsonl.gz", gzip.compress(b"a" * 90000), "a line has more than"),
    "a long line": (".txt", b"a" * 30000, "line 1: the line has more than"),
    "deep JSON": (".jsonl", b"[" * 10000, "line 1: the record is nested more than 40 levels deep"),
    "rather deep JSON": (".jsonl", b'{"text": "a", "x": ' + b"[" * 50 + b"]" * 50 + b"}", "nested more than 40"),
    "a zstd bomb": (".jsonl.zst", zstandard.compress(b"a\n" * 100000), "unpacks to more than 20 times its size;"),
    "a gzip bomb": (".txt.gz", gzip.compress(b"a\n" * 100000), "unpacks to more than 20 times its size;"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_no_memory_holds_is_a_sentence(what, tmp_path, monkeypatch):
    for name, value in {"records.LONGEST": 20000, "records.LONGEST_SKIPPED": 50000}.items():
        monkeypatch.setattr(f"act.data.{name}", value)
    for name, value in {"unpacking.UNPACKED": 100_000, "unpacking.UNPACKED_RATIO": 20}.items():
        monkeypatch.setattr(f"act.data.{name}", value)
    kind, content, message = DAMAGED[what]
    (tmp_path / f"bad{kind}").write_bytes(content)
    assert message in reason(tmp_path / f"bad{kind}")


def test_a_line_that_is_too_long_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("act.data.records.LONGEST", 1000)
    (tmp_path / "long.txt").write_bytes(b"a\n" + b"b" * 3000 + b"\nc\n")
    first, second, third = open_source(tmp_path / "long.txt").read()
    assert (first.record, third.record) == ({"text": "a"}, {"text": "c"}) and third.place.endswith("line 3")
    assert "line 2: the line has more than" in f"{second.place}: {second.record}"


def test_a_parquet_file_that_repeats_a_long_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("act.data.unpacking.DICTIONARY", 10000)
    monkeypatch.setattr("act.data.records.LONGEST", 20000)
    table = datasets.Dataset.from_list([{"text": "a" * 100000}] * 3).data.table
    parquet.write_table(table, tmp_path / "bomb.parquet", compression="zstd")
    assert "unpacks to more than 500 times its size" in reason(tmp_path / "bomb.parquet")
    monkeypatch.setattr("act.data.unpacking.UNPACKED_RATIO", 10**6)
    assert "row 2: the record has more than" in reason(tmp_path / "bomb.parquet")


@pytest.mark.parametrize("packed", ["snappy", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_rows_that_may_repeat_a_dictionary_are_read_a_few_at_a_time(packed, version, tmp_path, monkeypatch):
    monkeypatch.setattr("act.data.unpacking.UNPACKED", 1 << 20)
    words = pyarrow.array([random.randbytes(50_000).hex()] * 40)
    table = pyarrow.table({"text": words, "number": range(40), "none": pyarrow.array([None] * 40, "string")})
    parquet.write_table(table, tmp_path / "x.parquet", compression=packed, data_page_version=version)
    assert parquet_rows_together(tmp_path / "x.parquet") == (1 << 20) // 100_000
    assert [record for _, record in read(tmp_path / "x.parquet")] == table.to_pylist()
    parquet.write_table(table, tmp_path / "x.parquet", compression=packed, use_dictionary=False)
    assert parquet_rows_together(tmp_path / "x.parquet") == ROWS_TOGETHER


@pytest.mark.parametrize("packed", ["zstd", "lz4"])
@pytest.mark.parametrize("writer", [ipc.new_stream, ipc.new_file])
@pytest.mark.parametrize("dictionary", [False, True])
def test_an_arrow_file_that_unpacks_without_end_is_refused(packed, writer, dictionary, tmp_path, monkeypatch):
    texts = pyarrow.array(["a" * 100_000, "b"])
    table = pyarrow.table({"text": texts.dictionary_encode() if dictionary else texts, "number": [1, 2]})
    with writer(tmp_path / "x.arrow", table.schema, options=ipc.IpcWriteOptions(compression=packed)) as file:
        file.write_table(table)
    unpacking.require_no_arrow_bomb(tmp_path / "x.arrow")
    if not dictionary:
        assert [record for _, record in read(tmp_path / "x.arrow")] == table.to_pylist()
    for name, value in {"UNPACKED": 90_000, "UNPACKED_RATIO": 20}.items():
        monkeypatch.setattr(f"act.data.unpacking.{name}", value)
    assert "unpacks to more than 20 times its size; take out" in reason(tmp_path / "x.arrow")


@pytest.mark.parametrize("writer", [ipc.new_stream, ipc.new_file])
@pytest.mark.parametrize("nested", [False, True])
def test_an_arrow_file_that_repeats_its_dictionary_is_refused(writer, nested, tmp_path, monkeypatch):
    indices = pyarrow.array([0] * 1000 + [None], "int8")
    texts = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["a" * 1000]))
    table = pyarrow.table({"text": pyarrow.ListArray.from_arrays([0, 1001], texts) if nested else texts})
    with writer(tmp_path / "x.arrow", table.schema) as file:
        file.write_table(table)
    unpacking.require_no_arrow_bomb(tmp_path / "x.arrow")
    for name, value in {"UNPACKED": 900_000, "UNPACKED_RATIO": 200}.items():
        monkeypatch.setattr(f"act.data.unpacking.{name}", value)
    assert "unpacks to more than 200 times its size; take out" in reason(tmp_path / "x.arrow")
