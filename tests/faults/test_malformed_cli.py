"""Malformed shots, queries and artifacts through the command line: exit 3 with the line named, or 4 where
bad queries are skipped; never a traceback, never a result of half the input.
"""

from pathlib import Path

import pytest
from cli_fixtures import SHOTS as GOOD_SHOTS
from cli_fixtures import Memtok, memtok, toy  # noqa: F401
from faults.test_malformed_inputs import (
    ARTIFACTS,
    GOOD,
    GOOD_MESSAGES,
    JSONL,
    MESSAGES,
    QUERIES,
    SHOTS,
    WHOLE,
    cases,
)

pytestmark = pytest.mark.usefixtures("toy")
COMPRESS = ("compress", "in.jsonl", "--ratio", "2", "--method", "toy")


def refused(ran: object, where: str, code: int = 3) -> None:
    assert ran.code == code
    first, *rest = ran.err.splitlines()
    assert first.startswith("error: ") and where in first, ran.err
    assert "Traceback" not in ran.err and len(rest) <= 1 and len(ran.err) < 1500


@pytest.mark.parametrize("data", cases(JSONL))
def test_lines_that_are_no_json(memtok: Memtok, data: bytes) -> None:  # noqa: F811
    Path("in.jsonl").write_bytes(GOOD + b"\n" + data)
    ran = memtok(*COMPRESS)
    refused(ran, "in.jsonl:3")
    assert ran.out == b"" and [p.name for p in Path().iterdir()] == ["in.jsonl"]
    refused(memtok("compress", "-", *COMPRESS[2:], stdin=GOOD + b"\n" + data), "<stdin>:3")


@pytest.mark.parametrize("data", cases(SHOTS))
def test_records_that_are_no_shots(memtok: Memtok, data: bytes) -> None:  # noqa: F811
    Path("in.jsonl").write_bytes(GOOD + data)
    refused(memtok(*COMPRESS), "in.jsonl:2")
    refused(memtok(*COMPRESS, "--dry-run"), "in.jsonl:2")


@pytest.mark.parametrize("data", cases(MESSAGES))
def test_conversations_that_are_none(memtok: Memtok, data: bytes) -> None:  # noqa: F811
    Path("in.jsonl").write_bytes(GOOD_MESSAGES + data)
    refused(memtok(*COMPRESS), "in.jsonl:2")


@pytest.mark.parametrize("data", cases(WHOLE))
def test_files_without_two_shots(memtok: Memtok, data: bytes) -> None:  # noqa: F811
    Path("in.jsonl").write_bytes(data)
    refused(memtok(*COMPRESS), "in.jsonl")


@pytest.fixture
def memory(memtok: Memtok) -> bytes:  # noqa: F811
    Path("in.jsonl").write_text(GOOD_SHOTS)
    assert memtok(*COMPRESS).code == 0
    return Path("in.memory.safetensors").read_bytes()


@pytest.mark.parametrize("data", cases(JSONL | QUERIES))
def test_queries(memtok: Memtok, memory: bytes, data: bytes) -> None:  # noqa: F811
    line = ("generate", "-", "--memory", "in.memory.safetensors", "batch=1")
    good = b'{"input": "my card"}\n'
    ran = memtok(*line, stdin=good + data)
    refused(ran, "<stdin>:2")
    assert len(ran.out.splitlines()) == 1, "what was answered before is not lost"
    ran = memtok(*line, "errors=skip", stdin=good + data.rstrip(b"\n") + b"\n" + good)
    assert ran.code in (3, 4) and "Traceback" not in ran.err
    assert "<stdin>:2" in ran.err
    if ran.code == 4:
        assert 1 <= len(ran.out.splitlines()) <= 2 and "were skipped" in ran.err


@pytest.mark.parametrize("spoil", [pytest.param(f, id=name) for name, f in ARTIFACTS.items()])
def test_artifacts(memtok: Memtok, memory: bytes, spoil: object) -> None:  # noqa: F811
    assert callable(spoil)
    bad = spoil(memory.replace(b"prefix", b"layers"))  # which it names as the port of its own
    bad = bad.replace(b"layers", b"prefix")
    assert bad != memory
    Path("bad").write_bytes(bad)
    for argv in (("generate", "my card", "--memory", "bad"), ("evaluate", "bad", "--data", "in.jsonl")):
        ran = memtok(*argv)
        assert ran.code in (2, 3) and ran.out == b"", ran.err
        assert "bad" in ran.err and "Traceback" not in ran.err and "bug" not in ran.err
    ran = memtok("generate", "my card", "--memory", "-", stdin=bad)
    assert ran.code == 3 and ran.out == b"" and "Traceback" not in ran.err


def test_the_same_with_nothing_wrong(memtok: Memtok, memory: bytes) -> None:  # noqa: F811
    """What the tests above would see of good input."""
    ran = memtok("generate", "-", "--memory", "in.memory.safetensors", stdin=b'{"input": "my card"}\n')
    assert (ran.code, ran.err) == (0, "") and len(ran.out.splitlines()) == 1
