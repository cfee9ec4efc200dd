"""Shots, queries, templates, and how they become tokens. The tokenizer here is one character a token."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data.shots import (
    Shot,
    Shots,
    Template,
    answer_ids,
    balanced,
    default_template,
    iter_queries,
    query_ids,
    read_queries,
    read_shots,
    render,
)
from memtoken_cli.io.errors import DataError, UsageError

PAIRS = (
    b'{"input": "a b", "output": "x"}\n\n{"input": "c", "output": "y", "id": 7}\n'
    b'{"input": "d", "output": "x"}\n'
)


class Characters:
    """A tokenizer with one id a character; `turns` makes its chat template, BOS is id 1 if it adds one."""

    def __init__(self, bos: bool = True, chat: bool = True, default_system: str = "") -> None:
        self.bos_token_id = 1 if bos else None
        self.chat_template = "yes" if chat else None
        self._system = default_system

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        head = [1] if add_special_tokens and self.bos_token_id else []
        return head + [ord(c) + 2 for c in text]

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        assert not tokenize
        turns = list(conversation)
        if self._system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self._system})
        if any(t["role"] == "system" for t in turns[1:]):
            raise ValueError("a system turn must come first")
        text = "".join(f"<{t['role']}>\n{t['content']}<end>\n" for t in turns)
        return text + ("<assistant>\n" if add_generation_prompt else "")

    def decode(self, ids: list[int]) -> str:
        return "".join("^" if i == 1 else chr(i - 2) for i in ids)


def write(tmp_path: Path, data: bytes, name: str = "shots.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def pairs(*outputs: str) -> Shots:
    return Shots([Shot(f"q{i}", o, i + 1) for i, o in enumerate(outputs)], "pairs", "here", "0")


def test_pairs(tmp_path: Path) -> None:
    shots = read_shots(write(tmp_path, PAIRS))
    assert shots.items == [Shot("a b", "x", 1), Shot("c", "y", 3), Shot("d", "x", 4)]
    assert (shots.kind, shots.labels, shots.outputs) == ("pairs", ("x", "y"), ("x", "y"))


def test_the_digest_is_of_the_contents(tmp_path: Path) -> None:
    one = read_shots(write(tmp_path, PAIRS)).sha256
    assert one == read_shots(write(tmp_path, PAIRS.replace(b"\n", b"\r\n"), "other.jsonl")).sha256
    assert one != read_shots(write(tmp_path, PAIRS.replace(b"a b", b"a c"))).sha256


def test_text_records(tmp_path: Path) -> None:
    shots = read_shots(write(tmp_path, b'{"text": "one"}\n{"text": "two\\nlines"}\n'))
    assert [s.input for s in shots.items] == ["one", "two\nlines"]
    assert (shots.kind, shots.items[0].output, shots.labels) == ("text", None, ())


def test_messages(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    line = json.dumps({"messages": turns}).encode()
    shots = read_shots(write(tmp_path, line + b"\n" + line))
    assert shots.kind == "messages"
    assert shots.items[1] == Shot("u", "a", 2, tuple(turns))


def test_plain_text_is_split_on_blank_lines(tmp_path: Path) -> None:
    shots = read_shots(write(tmp_path, b"\n\none\ntwo\n \t\n\nthree", "notes.txt"))
    assert shots.items == [Shot("one\ntwo", None, 3), Shot("three", None, 7)]
    assert shots.kind == "plain"


def test_the_kind_is_told_by_contents_where_the_name_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_shots(write(tmp_path, PAIRS, "prompts")).kind == "pairs"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(PAIRS)))
    shots = read_shots("-")
    assert (shots.kind, shots.source) == ("pairs", "<stdin>")


def test_labels_are_a_closed_set_only_where_they_repeat_and_are_short() -> None:
    assert pairs("x", "y", "x").labels == ("x", "y")
    assert pairs("x", "y", "z").labels == ()
    assert pairs("x", "y", "z").outputs == ("x", "y", "z")
    assert pairs("x" * 200, "x" * 200).labels == ()
    assert pairs("x\ny", "x\ny").labels == ()


def test_queries(tmp_path: Path) -> None:
    queries = read_queries(write(tmp_path, b'{"input": "a", "output": "x"}\n\n{"input": "b", "id": 3}\n'))
    assert [(q.input, q.output, q.line) for q in queries] == [("a", "x", 1), ("b", None, 3)]
    assert queries[1].record == {"input": "b", "id": 3}
    bare = read_queries(write(tmp_path, b"how are you\n\n{ is a brace\n", "q.txt"))
    assert [(q.input, q.line) for q in bare] == [("how are you", 1), ("{ is a brace", 3)]


def test_bad_queries_can_be_passed_over_by_the_caller(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"input": "a"}\nbad\n{"input": ""}\n{"input": "b"}\n')
    errors: list[DataError] = []
    assert [q.input for q in iter_queries(path, errors.append)] == ["a", "b"]
    assert [e.where for e in errors] == [f"{path}:2", f"{path}:3"]


def test_balanced_takes_each_label_in_turn_and_its_earliest_first() -> None:
    shots = pairs("x", "x", "x", "y", "z", "y")
    assert balanced(shots, 3) == [0, 3, 4]
    assert balanced(shots, 5) == [0, 1, 3, 4, 5]
    assert balanced(shots, 99) == list(range(6))
    assert balanced(shots, 0) == []


def test_which_label_is_left_out_depends_on_the_seed_only() -> None:
    shots = pairs(*"abcdefgh", *"abcdefgh")
    drawn = {tuple(balanced(shots, 3, seed)) for seed in range(8)}
    assert len(drawn) > 1
    assert balanced(shots, 3, 5) == balanced(shots, 3, 5)


def test_the_default_template() -> None:
    template = Template()
    assert template.shot(Shot("a", "x", 1)) == ("Input: a\nOutput:", " x\n\n")
    assert (template.query("a"), template.answer("x"), template.end) == (
        "Input: a\nOutput:",
        " x\n\n",
        "\n\n",
    )


def test_the_whitespace_before_the_output_is_part_of_the_answer() -> None:
    template = Template("{input} =>\n {output};")
    assert (template.query("a"), template.answer("x")) == ("a =>", "\n x;")


def test_escapes_are_decoded_only_where_a_template_is_typed() -> None:
    typed = r"Q: {input}\n\tA: {output}\\n\x"
    assert Template.parse(typed).text == "Q: {input}\n\tA: {output}\\n\\x"
    assert Template(typed).text == typed
    assert Template.parse("chat").chat


def test_doubled_braces_are_braces() -> None:
    assert Template('{{"q": "{input}", "a": "{output}"}}').shot(Shot("{input}", "{x}", 1)) == (
        '{"q": "{input}", "a": "',
        '{x}"}',
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no fields",
        "{input}",
        "{output}",
        "{output} {input}",
        "{input}{input}{output}",
        "{input} {output} {x}",
        "{input} {output",
        "{input} }{output}",
        "{input!r} {output}",
        "{input:>5} {output}",
        "{input.a} {output}",
        "{} {output}",
        "{0}{input}{output}",
        "{input[0]}{output}",
    ],
)
def test_bad_templates(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(text)
    assert caught.value.hint


WORDS = st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=12)


@given(WORDS, WORDS, WORDS, st.text(max_size=12), st.text(max_size=12))
def test_a_shot_is_its_query_and_its_answer(front: str, gap: str, end: str, text: str, label: str) -> None:
    template = Template(f"{front}{{input}}{gap}{{output}}{end}")
    before, after = template.shot(Shot(text, label, 1))
    assert before + after == front + text + gap + label + end
    assert before == template.query(text) == front + text + gap.rstrip()
    assert after == template.answer(label)
    assert Template.parse(template.text) == template


@given(st.text(max_size=30))
def test_any_template_is_one_or_a_usage_error(text: str) -> None:
    try:
        template = Template.parse(text)
    except UsageError:
        return
    assert template.chat or template.query("q").startswith(template.front)


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=2, max_size=4), st.booleans())
def test_a_query_reads_as_a_shot_does(texts: list[tuple[str, str]], chat: bool) -> None:
    template = Template("chat") if chat else Template()
    tokenizer = Characters(default_system="Be kind.")
    shots = Shots([Shot(i, o, n) for n, (i, o) in enumerate(texts)], "pairs", "here", "0")
    rendered = render(shots, template, tokenizer)
    assert [s.start for s in rendered.spans] == [rendered.head, *(s.end for s in rendered.spans[:-1])]
    assert rendered.spans[-1].end == len(rendered.ids)
    for span, (text, label) in zip(rendered.spans, texts, strict=True):
        assert rendered.ids[span.start : span.answer] == query_ids(template, tokenizer, text)
        assert rendered.ids[span.answer : span.end] == answer_ids(template, tokenizer, label)


def test_the_prompt_has_one_bos_and_the_instruction_in_front() -> None:
    tokenizer = Characters()
    rendered = render(pairs("x", "y"), Template(), tokenizer, "Say the label.")
    text = tokenizer.decode(rendered.ids)
    assert text == "^Say the label.\n\nInput: q0\nOutput: x\n\nInput: q1\nOutput: y\n\n"
    assert tokenizer.decode(rendered.ids[: rendered.head]) == "^Say the label.\n\n"
    assert render(pairs("x", "y"), Template(), Characters(bos=False)).head == 0


def test_chat_is_one_conversation_with_one_system_turn() -> None:
    tokenizer = Characters(bos=False, default_system="Be kind.")
    text = tokenizer.decode(render(pairs("x", "y"), Template("chat"), tokenizer).ids)
    turns = "<user>\nq0<end>\n<assistant>\nx<end>\n<user>\nq1<end>\n<assistant>\ny<end>\n"
    assert text == "<system>\nBe kind.<end>\n" + turns
    told = tokenizer.decode(render(pairs("x", "y"), Template("chat"), tokenizer, "Label.").ids)
    assert told == "<system>\nLabel.<end>\n" + turns


def test_running_text_is_all_answer() -> None:
    tokenizer = Characters(bos=False)
    shots = Shots([Shot("one", None, 1), Shot("two\n", None, 3)], "plain", "here", "0")
    rendered = render(shots, default_template(shots), tokenizer)
    assert tokenizer.decode(rendered.ids) == "one\n\ntwo\n\n"
    assert all(s.start == s.answer for s in rendered.spans)
    assert tokenizer.decode(query_ids(default_template(shots), tokenizer, "what?")) == "what?"


def test_the_default_template_fits_the_kind() -> None:
    shot = Shot("u", "a", 1, ({"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}))
    assert default_template(Shots([shot, shot], "messages", "here", "0")).chat
    assert default_template(pairs("x", "y")) == Template()


def test_what_a_chat_template_cannot_do_is_named() -> None:
    with pytest.raises(DataError, match="no chat template"):
        render(pairs("x", "y"), Template("chat"), Characters(chat=False))
    system: Any = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    )
    shots = Shots([Shot("u", "a", 7, system)] * 2, "messages", "f.jsonl", "0")
    with pytest.raises(DataError, match="a system turn must come first") as caught:
        render(shots, Template("chat"), Characters())
    assert caught.value.where == "f.jsonl:7"


class Forgetful(Characters):
    """A chat template that changes earlier turns when later ones come."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        text = super().apply_chat_template(
            conversation, tokenize=tokenize, add_generation_prompt=add_generation_prompt
        )
        return f"{len(conversation)} turns: {text}"


def test_a_chat_template_that_cannot_be_joined_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be joined"):
        render(pairs("x", "y"), Template("chat"), Forgetful())
