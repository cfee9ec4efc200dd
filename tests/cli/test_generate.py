"""`memtok generate`: one query, many, bad ones, and the options. The method is the toy."""

import json
from pathlib import Path

import pytest
from cli_fixtures import Memtok

pytestmark = pytest.mark.usefixtures("toy")

MEMORY = "prompts.memory.safetensors"


@pytest.fixture
def memory(memtok: Memtok, shots: Path) -> str:
    assert memtok("compress", "prompts.jsonl", "--ratio", "1", "--method", "toy").code == 0
    return MEMORY


def rows(out: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_one_query(memtok: Memtok, memory: str) -> None:
    ran = memtok("generate", "lost card", "--memory", memory)
    assert (ran.code, ran.text, ran.err) == (0, "card\n", "")
    ran = memtok("generate", "lost card", "--memory", memory, "--json")
    assert json.loads(ran.out) == {"input": "lost card", "output": "card"}


def test_labels_give_scores(memtok: Memtok, memory: str) -> None:
    Path("labels.txt").write_text("rate\n\ncard\n")
    ran = memtok("generate", "lost card", "--memory", memory, "labels=labels.txt", "--json")
    row = json.loads(ran.out)
    assert row["output"] == "card" and list(row["scores"]) == ["rate", "card"]
    ran = memtok("generate", "lost card", "--memory", memory, "labels=memory", "--json")
    assert list(json.loads(ran.out)["scores"]) == ["card", "rate"]


def test_a_label_that_stands_twice_is_named(memtok: Memtok, memory: str) -> None:
    Path("labels.txt").write_text("rate\ncard\nrate\n")
    ran = memtok("generate", "x", "--memory", memory, "labels=labels.txt")
    assert ran.code == 3 and "in labels.txt:3" in ran.err


@pytest.mark.parametrize("argv", [["-"], []])
def test_rows_from_standard_input_in_order(memtok: Memtok, memory: str, argv: list[str]) -> None:
    lines = "lost card\n\nthe rate\nmy card\n"
    for batch in ("1", "2", "32"):
        ran = memtok("generate", *argv, "--memory", memory, f"batch={batch}", stdin=lines)
        assert [row["output"] for row in rows(ran.out)] == ["card", "rate", "card"]
    ran = memtok("generate", *argv, "--memory", memory, stdin='{"input": "the rate", "id": 3}\n')
    assert rows(ran.out) == [{"input": "the rate", "output": "rate"}]


def test_out_writes_a_file_and_prints_its_path(memtok: Memtok, memory: str) -> None:
    ran = memtok("generate", "-", "--memory", memory, "--out", "a.jsonl", stdin="the rate\n")
    assert (ran.code, ran.text) == (0, "a.jsonl\n")
    assert rows(Path("a.jsonl").read_bytes()) == [{"input": "the rate", "output": "rate"}]


BAD = '{"input": "my card"}\n{"input": 3}\nnot json\n{"input": "the rate"}\n'


def test_a_bad_line_ends_it(memtok: Memtok, memory: str) -> None:
    ran = memtok("generate", "-", "--memory", memory, "batch=1", stdin=BAD)
    assert ran.code == 3 and "in <stdin>:2" in ran.err.splitlines()[0]
    assert [row["output"] for row in rows(ran.out)] == ["card"]


@pytest.mark.parametrize("batch", ["2", "3", "32"])
def test_what_precedes_a_bad_line_in_its_batch_is_answered(memtok: Memtok, memory: str, batch: str) -> None:
    lines = "my card\nthe rate\nlost card\n".replace("lost", "\0lost")
    ran = memtok("generate", "-", "--memory", memory, f"batch={batch}", stdin=lines)
    assert ran.code == 3 and "in <stdin>:3" in ran.err
    assert [row["output"] for row in rows(ran.out)] == ["card", "rate"]


def test_skipped_lines_are_counted(memtok: Memtok, memory: str) -> None:
    ran = memtok("generate", "-", "--memory", memory, "errors=skip", stdin=BAD)
    assert ran.code == 4 and "error: 2 of 4 queries were skipped" in ran.err
    assert "in <stdin>:2" in ran.err and "in <stdin>:3" in ran.err
    assert [row["output"] for row in rows(ran.out)] == ["card", "rate"]


def test_a_query_that_cannot_be_answered_is_named_or_skipped(memtok: Memtok, memory: str) -> None:
    lines = "my card\n" + "x" * 201 + "\nthe rate\n"
    ran = memtok("generate", "-", "--memory", memory, stdin=lines)
    assert ran.code == 3 and "in <stdin>:2" in ran.err
    ran = memtok("generate", "-", "--memory", memory, "errors=skip", stdin=lines)
    assert ran.code == 4 and "1 of 3" in ran.err
    assert [row["output"] for row in rows(ran.out)] == ["card", "rate"]
    ran = memtok("generate", "-", "--memory", memory, "errors=skip", "--out", "a.jsonl", stdin=lines)
    assert ran.code == 4 and len(rows(Path("a.jsonl").read_bytes())) == 2


def test_prompts_that_look_like_something_else(memtok: Memtok, memory: str) -> None:
    for argv in (
        ["-5", "--memory", memory],
        ["--memory", memory, "--", "x=3 what is it?"],
        ["--memory", memory, "--", "--json"],
    ):
        ran = memtok("generate", *argv)
        assert ran.code == 0, ran.err
    ran = memtok("generate", "x=3 what is it?", "--memory", memory)
    assert ran.code == 2 and "unknown key x" in ran.err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["q"], 2, "no memory"),
        (["q", "--memory", "missing"], 3, "missing"),
        (["q", "--memory", "prompts.jsonl"], 3, "prompts.jsonl"),
        (["q", "r", "--memory", MEMORY], 2, "quote the prompt"),
        (["", "--memory", MEMORY], 2, "empty"),
        (["a\udcff", "--memory", MEMORY], 2, "not UTF-8"),
        (["-", "--memory", MEMORY], 3, "standard input is empty"),
        (["-", "--memory", "-"], 2, "both"),
        (["--memory", "-"], 2, "both"),
        (["q", "--memory", MEMORY, "max_new_token=3"], 2, "max_new_tokens"),
        (["q", "--memory", MEMORY, "top_p=2"], 2, "top_p"),
        (["q", "--memory", MEMORY, "errors=ignore"], 2, "errors"),
        (["q", "--memory", MEMORY, "labels=missing.txt"], 3, "missing.txt"),
        (["q", "--memory", MEMORY, "--memory", MEMORY], 2, "joined"),
    ],
)
def test_what_is_wrong_is_said(memtok: Memtok, memory: str, argv: list[str], code: int, said: str) -> None:
    ran = memtok("generate", *argv)
    assert (ran.code, ran.out) == (code, b"")
    assert said in ran.err and ran.err.startswith("error: ") and "Traceback" not in ran.err


def test_no_prompt_on_a_terminal_is_an_error(memtok: Memtok, memory: str) -> None:
    ran = memtok("generate", "--memory", memory, tty=("stdin",))
    assert ran.code == 2 and "no prompt" in ran.err
