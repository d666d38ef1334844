"""Records through the idioms of published chat templates: nothing of a prompt or answer is lost without a word."""

from __future__ import annotations

import datasets
import pytest
from support import CHAT_TEMPLATE, train_tokenizer
from tokenizers import processors

from act import ActError, Corpus

GENERATION = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
LLAMA = (  # Llama 3.1: trims, writes one call as JSON with parameters, and results as JSON
    "{% if tools %}<|system|>\n{% for t in tools %}{{ t | tojson(indent=4) }}\n{% endfor %}</s>{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' and 'tool_calls' in m %}<|assistant|>\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "</s>{% elif m.role == 'tool' %}<|user|>\n{% if m.content is mapping or m.content is iterable %}"
    "{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}</s>"
    "{% else %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>{% endif %}{% endfor %}" + GENERATION
)
QWEN3 = (  # thoughts of the last answer only, from its own field or from the content
    "{% if tools %}<|system|>\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}</s>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% set c = m.content or '' %}"
    "{% set r = '' %}{% if m.reasoning_content is string %}{% set r = m.reasoning_content %}"
    "{% elif '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}<think>\n{{ r.strip('\n') }}\n</think>\n\n{% endif %}{{ c }}"
    '{% for call in m.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", "arguments": '
    "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}"
    "{{ call.function.arguments | tojson }}{% endif %}}</tool_call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}"
    + GENERATION
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}" + GENERATION
)
MISTRAL = (  # no generation prompt; calls need ids of nine characters; the system text goes into a last question only
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools and m == asked[-1] %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
    "[INST]{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}{% if m.tool_calls[0].id is not defined or m.tool_calls[0].id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "[CALLS][{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}]</s>"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
DEEPSEEK_V3 = (  # joins the arguments to a text, so they must be JSON
    "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}<|assistant|>\n"
    "{% for call in m.tool_calls %}{{ call.type + '|' + call.function.name + '\n```json\n' + call.function.arguments + "
    "'\n```' }}{% endfor %}</s>{% else %}<|{{ m.role }}|>\n{{ m.content }}</s>{% endif %}{% endfor %}" + GENERATION
)
DEEPSEEK_R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}{% else %}<|assistant|>\n"
    "{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}" + GENERATION
)
HARMONY = (  # GPT-OSS: channels, and another token after the last answer
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}<|assistant|>analysis:"
    "{{ m.thinking }}</s>{% endif %}<|assistant|>final:{{ m.content }}{% if loop.last %}<pad>{% else %}</s>{% endif %}"
    "{% else %}<|{{ m.role }}|>{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COMMAND_R = (
    "{% if documents %}<|system|>\n{% for d in documents %}Document {{ loop.index0 }}: {{ d.title }}\n{{ d.text }}\n"
    "{% endfor %}</s>{% endif %}" + CHAT_TEMPLATE
)
MULTIMODAL = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}"
    "</s>\n{% endfor %}" + GENERATION
)
DROPPING = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
)

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "the weather", "parameters": {"type": "object"}},
}
CITY = {"city": "Zürich", "days": 3}


def calling(arguments, **more):
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call], **more}


@pytest.fixture(scope="module")
def with_template():
    plain = train_tokenizer(["a b c"])

    def made(template):
        plain.chat_template = template
        return plain

    return made


def read(record, tokenizer, **options):
    """The prompt and the answer of a record, as texts."""
    (encoded,) = Corpus.from_records([record], tokenizer, **options).encoder([record])
    if isinstance(encoded, ActError):
        raise encoded
    ids = encoded.input_ids
    assert encoded.answers[-1][1] in (len(ids), len(ids) - 1)
    return tokenizer.decode(ids[: encoded.start]), tokenizer.decode(ids[encoded.start : encoded.end])


JSON = '{"city": "Zürich", "days": 3}'


@pytest.mark.parametrize(
    ("template", "record", "prompt", "answer"),
    [
        (LLAMA, {"messages": [ASK, SAY], "tools": [TOOL]}, '"name": "weather"', "yo</s>"),
        (LLAMA, {"messages": [ASK, SAY], "tools": '[{"name": "weather"}]'}, '"name": "weather"', "yo</s>"),
        (LLAMA, {"messages": [ASK, calling(CITY, content=None)]}, "", f'{{"name": "weather", "parameters": {JSON}}}</s>'),
        (LLAMA, {"messages": [ASK, calling(JSON)]}, "", f'{{"name": "weather", "parameters": {JSON}}}</s>'),
        (LLAMA, {"messages": [ASK, calling(CITY), {"role": "tool", "content": 'a "b"\n'}, SAY]}, r"a \"b\"", "yo</s>"),
        (LLAMA, {"messages": [{"role": "system", "content": " be brief \n"}, ASK, SAY]}, "be brief</s>", "yo</s>"),
        (QWEN3, {"messages": [ASK, SAY]}, "", "<think>\n\n</think>\n\nyo</s>"),
        (QWEN3, {"messages": [ASK, {**SAY, "content": "<think>why</think>yo"}]}, "", "<think>\nwhy\n</think>\n\nyo</s>"),
        (QWEN3, {"messages": [ASK, {**SAY, "thinking": "why"}]}, "", "<think>\nwhy\n</think>\n\nyo</s>"),
        (QWEN3, {"messages": [ASK, {**SAY, "content": "<think>why</think>so"}, ASK, SAY]}, "\nso</s>", "<think>\n\n</think>\n\nyo</s>"),
        (QWEN3, {"messages": [ASK, SAY], "chat_template_kwargs": {"enable_thinking": False}}, "</think>\n\n", "yo</s>"),
        (QWEN3, {"messages": [ASK, calling(JSON)]}, "", f'"arguments": {JSON}}}</tool_call></s>'),
        (GEMMA, {"messages": [ASK, SAY]}, "", "yo</s>"),
        (MISTRAL, {"messages": [ASK, SAY]}, "[INST]hi[/INST]", " yo</s>"),
        (MISTRAL, {"messages": [ASK, calling(JSON)], "tools": [TOOL]}, "[TOOLS]", f'"arguments": {JSON}}}]</s>'),
        (DEEPSEEK_V3, {"messages": [ASK, calling(CITY)]}, "", f"weather\n```json\n{JSON}\n```</s>"),
        (DEEPSEEK_R1, {"messages": [ASK, {**SAY, "content": "<think>why</think>so"}, ASK, SAY]}, "so</s>", "yo</s>"),
        (HARMONY, {"messages": [ASK, SAY]}, "", "final:yo<pad>"),
        (HARMONY, {"messages": [ASK, {**SAY, "reasoning_content": "why"}]}, "", "analysis:why</s><|assistant|>final:yo<pad>"),
        (COMMAND_R, {"messages": [ASK, SAY], "documents": [{"title": "t", "text": "facts."}]}, "facts.", "yo</s>"),
        (MULTIMODAL, {"messages": [{**ASK, "content": [{"type": "text", "text": " a "}]}, SAY]}, "\na</s>", "yo</s>"),
        (CHAT_TEMPLATE, {"messages": [{**ASK, "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "image": None}]}, SAY]}, "\na b</s>", "yo</s>"),
        (CHAT_TEMPLATE, {"messages": [{**ASK, "content": ["a ", "b"]}, SAY]}, "\na b</s>", "yo</s>"),
        (CHAT_TEMPLATE, {"messages": [ASK, {**SAY, "content": [{"type": "text", "text": "yo"}]}]}, "", "yo</s>"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "system": "short", "history": [["a", "b"]]}, "<|system|>\nshort</s>\n<|user|>\na</s>\n<|assistant|>\nb</s>\n<|user|>\nhi", "yo</s>"),
        (CHAT_TEMPLATE, {"instruction": "do", "input": "it", "output": "yo", "system_prompt": "short"}, "short</s>\n<|user|>\ndo\n\nit</s>", "yo</s>"),
        (CHAT_TEMPLATE, {"messages": [{"role": "system", "content": "short"}, ASK, SAY], "system": "short"}, "", "yo</s>"),
        (CHAT_TEMPLATE, {"messages": [ASK, SAY, {**ASK, "content": "more"}, {**SAY, "weight": 1}]}, "more", "yo</s>"),
    ],
)  # fmt: skip
def test_all_of_the_record_is_read(template, record, prompt, answer, with_template):
    before, after = read(record, with_template(template))
    assert prompt in before and after.endswith(answer)
    assert before + after == before + after.replace("None", "")


@pytest.mark.parametrize(
    ("template", "record", "message"),
    [
        (CHAT_TEMPLATE, {"messages": [ASK, SAY], "tools": [TOOL]}, r"'weather' of the column tools.*ignore_columns=\['tools'\]"),
        (CHAT_TEMPLATE, {"messages": [ASK, SAY], "documents": [{"text": "facts."}]}, "of the column documents"),
        (CHAT_TEMPLATE, {"messages": [ASK, SAY], "tools": "weather"}, "tools is 'weather'; expected a list"),
        (CHAT_TEMPLATE, {"messages": [ASK, calling(CITY)]}, r"its tool_calls is 'weather'.*\(ignore_columns=\['tool_calls'\]\)"),
        (CHAT_TEMPLATE, {"messages": [ASK, calling(CITY), ASK, SAY]}, "leaves out or rewrites message 1 by 'assistant'"),
        (CHAT_TEMPLATE, {"messages": [ASK, {**SAY, "reasoning_content": "why"}]}, "its reasoning_content is 'why'"),
        (CHAT_TEMPLATE, {"messages": [ASK, SAY], "chat_template_kwargs": {"thinking": 1}}, "no setting 'thinking'"),
        (CHAT_TEMPLATE, {"messages": [ASK, {**SAY, "prefix": True}]}, "prefix is set.*prompt and completion"),
        (CHAT_TEMPLATE, {"messages": [ASK, SAY], "continue_final_message": True}, "continue_final_message is set"),
        (CHAT_TEMPLATE, {"messages": [ASK, {**SAY, "weight": 0}]}, "its flags .*answer_turns='all'"),
        (CHAT_TEMPLATE, {"messages": [ASK, {**SAY, "weight": 0.5}]}, "weight of message 1 is 0.5; expected 0"),
        (CHAT_TEMPLATE, {"messages": [ASK, {"role": "assistant", "content": None}]}, "has no answer"),
        (CHAT_TEMPLATE, {"messages": [{"role": "user"}, SAY]}, "message 0 by 'user' has the content None; expected text"),
        (CHAT_TEMPLATE, {"messages": [ASK, {"role": "assistant", "content": None}, ASK, SAY]}, "message 1 by 'assistant' is empty"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "history": [["a", None]]}, "message 1 by 'assistant' is empty"),
        (CHAT_TEMPLATE, {"messages": [ASK, {**SAY, "audio": {"id": "a"}}]}, "message 1 has audio; only text can be read"),
        (CHAT_TEMPLATE, {"messages": [{**ASK, "content": []}, SAY]}, "message 0 by 'user' has the content"),
        (QWEN3, {"messages": [ASK, SAY], "enable_thinking": False}, "the setting enable_thinking.* as chat_template_kwargs"),
        (CHAT_TEMPLATE, {"messages": [ASK, SAY], "images": [{"bytes": b"a"}]}, "column images"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "options": [3, 4]}, "column options"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "reasoning": "why"}, "column reasoning"),
        (CHAT_TEMPLATE, {"messages": [SAY]}, "nothing comes before its answer"),
        (MULTIMODAL, {"messages": [{**ASK, "content": [{"type": "image_url", "image_url": "x"}]}, SAY]}, "a part of type 'image_url'"),
        (DROPPING, {"messages": [{"role": "system", "content": "short"}, ASK, SAY]}, "leaves out or rewrites message 0 by 'system', 'short'"),
        (GEMMA, {"messages": [{"role": "system", "content": "short"}, ASK, SAY]}, "System role not supported; move the system text into the first message by the user"),
        (MISTRAL, {"messages": [{"role": "system", "content": "short"}, ASK, SAY]}, "'short'; move it into another message"),
        (GEMMA, {"messages": [ASK, ASK, SAY]}, "roles must alternate.*; change them, or give the record as prompt"),
        (MISTRAL, {"messages": [ASK, {**calling(JSON), "tool_calls": [{"id": "1", "function": {"name": "w", "arguments": "{}"}}]}]}, "Tool call IDs should be"),
        (DEEPSEEK_R1, {"messages": [ASK, {**SAY, "content": "<think>why</think>yo"}]}, "its content is '<think>why</think>yo', and the template writes 'yo</s>'"),
        (DEEPSEEK_R1 + "{% if add_generation_prompt %}<think>\n{% endif %}", {"messages": [ASK, SAY]}, r"ends the prompt with '<think>\\n' where the whole record has 'yo</s>'"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "context": "Ann is 7."}, r"column context may belong to the prompt.*\(ignore_columns=\['context'\]\)"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "input": "it"}, "column input"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "choices": ["red", "blue"], "functions": [TOOL]}, "columns choices, functions"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "notes": "Ann is 7. She likes it."}, "column notes"),
        *(
            (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", name: value}, rf"column {name} .*ignore_columns=\['{name}'\]\)")
            for name, value in {"opa": "red", "A": 3, "n": 3, "B": True, "option_a": 0.5, "answerC": "red", "sentence1": "It is.", "hypothesis": "it is",
                "code": "x=1", "word": "red", "prefix": "re", "completion_suffix": "d", "ending0": "runs", "context": 7, "tokens": ["a", "b"],
                "picture": {"bytes": b"a"}, "source": "Ann is 7. " * 9, "metadata": {"story": "Ann is 7. " * 9}}.items()
        ),
        (CHAT_TEMPLATE, {"question": "which 10?", "answer": "B", "A": "1", "B": "0", "C": "red", "D": "10"}, "columns A, B, C may"),
        (CHAT_TEMPLATE, {"prompt": "hi", "completion": " yo", "sentence2": "it is"}, "column sentence2"),
        (CHAT_TEMPLATE, {"text": "hi", "A": "red"}, "column A "),
        *(
            (CHAT_TEMPLATE, {"messages": [{**ASK, key: value}, SAY]}, rf"message 0 by 'user' has {key}, which .*\(ignore_columns=\['{key}'\]\)")
            for key, value in {"context": "The long story", "documents": [{"text": "facts."}], "attachments": ["a.txt"], "tools": [TOOL],
                "notes": "red", "source": "Ann is 7. " * 9}.items()
        ),
        (CHAT_TEMPLATE, {"messages": [ASK, {**SAY, "citations": ["red"], "prefix": "re"}]}, "message 1 by 'assistant' has citations, prefix"),
        (CHAT_TEMPLATE, {"messages": [{**calling(CITY), **ASK}, SAY]}, "message 0 by 'user' has tool_calls"),
        (CHAT_TEMPLATE, {"messages": [{**ASK, "content": [{"type": "text", "text": "a", "context": "red"}]}, SAY]}, "message 0 by 'user' has context"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "history": [{**ASK, "context": "red"}, SAY]}, "message 0 by 'user' has context"),
        (CHAT_TEMPLATE, {"prompt": "hi", "completion": " yo", "system": "short"}, "column system"),
        (CHAT_TEMPLATE, {"text": "hi", "system": "short"}, "column system"),
        (CHAT_TEMPLATE, {"messages": [{"role": "system", "content": "long"}, ASK, SAY], "system": "short"}, "column system"),
        (CHAT_TEMPLATE, {"messages": [ASK, SAY], "history": [["a", "b"]]}, "column history"),
        (CHAT_TEMPLATE, {"question": "hi", "answer": "yo", "history": "none"}, "history is 'none'; expected messages"),
        (CHAT_TEMPLATE, {"instruction": "do", "input": {"a": "b"}, "output": "yo"}, "input must be a string"),
        (CHAT_TEMPLATE, {"input_ids": [5, 6], "attention_mask": [1, 0]}, "leave the padding out"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused(template, record, message, with_template):
    with pytest.raises(ActError, match=message):
        read(record, with_template(template))


@pytest.mark.parametrize(
    "more",
    [
        {"id": "a b c.", "source": "A long name of a source, with a full stop.", "ability": "sums", "level": 3},
        {"prompt_id": "f2ca1bb6c7e907d06dafe4687e579fce", "system_id": "x y", "meta": {"note": "It is long. Yes."}},
        {"prompt": "hi", "context": "", "tools": [], "history": None, "system": " ", "context_length": 5},
        {"solution": "Since it is so.", "chosen": ["It is so."], "area": "linear algebra", "link": "https://example.org/a"},
        {"text": "Below is a question: hi\n\n### Answer: yo"},
        {"A": "hi", "sentence1": "yo", "turn": 2, "redacted": False, "n_examples": 3, "add_generation_prompt": False, "has_context": True, "created_at": "2024-01-01 10:00"},
        {"messages": [{**ASK, "name": "Ann", "id": "1 2", "index": 0, "context": "hi", "documents": [], "source": "a web page"},
            {**SAY, "tool_call_id": "x", "end_turn": True, "prefix": False, "content": [{"type": "text", "text": "yo", "cache_control": {"type": "ephemeral"}}]}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
    ],
)  # fmt: skip
def test_what_only_describes_a_record_is_no_obstacle(more, with_template):
    tokenizer = with_template(CHAT_TEMPLATE)
    assert read({"messages": [ASK, SAY], **more}, tokenizer) == read({"messages": [ASK, SAY]}, tokenizer)


def test_columns_and_keys_of_messages_can_be_ignored_on_purpose(with_template):
    tokenizer = with_template(CHAT_TEMPLATE)
    asked = {**ASK, "content": [{"type": "text", "text": "hi", "note": "red"}], "context": "red"}
    record = {"messages": [asked, {**SAY, "reasoning_content": "why"}], "tools": [TOOL], "context": "Ann is 7."}
    ignored = {"ignore_columns": ["tools", "context", "note", "reasoning_content"]}
    assert read(record, tokenizer, **ignored) == read({"messages": [ASK, SAY]}, tokenizer)
    assert Corpus.from_records([record], tokenizer, **ignored).identity()["ignore_columns"] == sorted(*ignored.values())
    with pytest.raises(ActError, match="expected a list of names"):
        Corpus.from_records([record], tokenizer, ignore_columns="tools")


def test_a_message_that_is_not_learned_is_no_answer(with_template):
    turns = [ASK, {**SAY, "content": "no", "weight": 0}, ASK, SAY]
    corpus = Corpus.from_records([{"messages": turns}], with_template(CHAT_TEMPLATE), answer_turns="all")
    assert [text for text, counted in next(corpus.spans(1)) if counted] == ["yo</s>"]


def test_nulls_of_a_table_are_as_good_as_keys_that_are_not_there(with_template, tmp_path):
    tokenizer = with_template(QWEN3)
    tools = [{"function": {"name": name, "parameters": {"properties": {key: {"type": "string"}}}}, "type": "function"} for name, key in (("a", "x"), ("b", "y"))]  # fmt: skip
    records = [
        {"messages": [ASK, {**calling({"city": "Bern"}), "content": ""}], "tools": tools},
        {"messages": [ASK, {**SAY, "reasoning_content": "why"}], "tools": None},
        {"messages": [ASK, {**calling({"days": "3"}), "content": ""}], "tools": None},
    ]
    datasets.Dataset.from_list(records).to_parquet(str(tmp_path / "table.parquet"))
    for found, record in zip(Corpus.from_file(tmp_path / "table.parquet", tokenizer).encoded(), records, strict=True):
        (expected,) = Corpus.from_records([record], tokenizer).encoded()
        assert tokenizer.decode(found.input_ids) == tokenizer.decode(expected.input_ids)


def test_a_text_that_brings_what_the_tokenizer_adds_gets_it_once():
    tokenizer = train_tokenizer(["a b c"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<pad> $A", special_tokens=[("<pad>", 0)]
    )
    for plain in ({"text": "a b"}, {"prompt": "a", "completion": " b"}, {"prompt": "", "completion": "a b"}):
        first = next(iter(plain))
        both = [plain, {**plain, first: f"<pad>{plain[first]}"}]
        if plain.get("prompt") == "":
            both[1] = {"prompt": "", "completion": "<pad>a b"}
        once, again = Corpus.from_records(both, tokenizer).encoded()
        assert once.input_ids.tolist() == again.input_ids.tolist() and once.input_ids.tolist().count(0) == 1
        assert once.answer.tolist() == again.answer.tolist() and not once.answer[0]


def test_labels_of_tokenised_records_are_their_mask(tokenizer):
    ids = [10, 11, 12]
    for more in ({"labels": [-100, 11, 12]}, {"completion_mask": [0, 1, 1]}, {"loss_mask": [0, 1, 1]}):
        (found,) = Corpus.from_records([{"input_ids": ids, **more, "attention_mask": [1, 1, 1]}], tokenizer).encoded()
        assert found.answer.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("template", "told"), [("HEADER", "so '<|assistant|>', which it writes"), ("WITH", ""), ("MISTRAL", "")]
)
def test_a_header_that_counts_as_an_answer_is_told_once(caplog, template, told):
    plain = train_tokenizer(["What is two plus three?"])
    headers = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>{% endfor %}"
    plain.chat_template = {"HEADER": headers, "WITH": headers + GENERATION, "MISTRAL": MISTRAL}[template]
    list(Corpus.from_records([{"question": "two plus three?", "answer": "five"}] * 3, plain).encoded())
    said = [record.getMessage() for record in caplog.records if "add_generation_prompt" in record.getMessage()]
    assert len(said) == bool(told) and all(told in each for each in said)
