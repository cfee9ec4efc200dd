"""Stops at any place of a stream, and what is counted; the command line's own tests are in tests/cli."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_rmt
from cli_fixtures import Memtok, memtok  # noqa: F401

from memtoken_cli.methods.rmt import sampling, session_file, streaming
from memtoken_cli.methods.rmt.generate_config import MINE, ROLLBACK, GenerateKeys

S = "s.safetensors"
TEXT = ("some text, é and 日本 " * 30 + "字" * 600 + " and words " * 60).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_rmt.artifact(tmp_path_factory.mktemp("model")))


@contextmanager
def stopping_at(count: int) -> Iterator[Callable[[], int]]:
    """A signal that comes before the count-th time that it is asked for."""
    asked = 0

    def ask() -> int:
        nonlocal asked
        asked += 1
        return signal.SIGTERM if asked >= count else 0

    yield ask


@pytest.mark.parametrize("policy", ["rmt", "armt"])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    memtok: Memtok,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    monkeypatch.setattr(streaming, "LONG", 40)
    path = str(tiny_rmt.artifact(tmp_path / "m", f"rmt.policy={policy}", "rmt.d_mem=4"))
    line = ("generate", "-", "--out", S, "max_new_tokens=0")
    more = TEXT[:700]
    assert memtok(*line, "--memory", path, stdin=TEXT + more).code == 0
    whole = Path(S).read_bytes()
    seen, count = set(), 1
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(streaming, "signals", lambda count=count: stopping_at(count))
            ran = memtok(*line, "--memory", path, stdin=TEXT)
        if ran.code == 0:
            break
        assert ran.code == 143 and ran.out == b""
        read = session_file.opened(S).read
        seen.add(session_file.opened(S).session.read[0].segments)
        assert f"tail -c +{read + 1} INPUT" in ran.err
        assert memtok(*line, "--memory", S, stdin=(TEXT + more)[read:]).code == 0
        assert Path(S).read_bytes() == whole, count
        count += 19
    assert count > 50 and len(seen) > 2


def test_a_stop_inside_a_piece_leaves_it_whole(
    memtok: Memtok,  # noqa: F811
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read of the piece is taken back: its text waits, and is read again."""
    monkeypatch.setattr(streaming, "LONG", 40)
    monkeypatch.setattr(streaming, "signals", lambda: stopping_at(12))
    assert memtok("generate", "-", "--memory", model, "--out", S, "max_new_tokens=0", stdin=TEXT).code == 143
    found = session_file.opened(S)
    (read,) = found.session.read
    assert (read.tokens, read.segments, found.read) == (0, 0, len(TEXT))
    assert found.tail.encode() == TEXT
    monkeypatch.undo()


def test_text_that_waited_is_cut_as_it_would_have_been(memtok: Memtok, model: str) -> None:  # noqa: F811
    """A file whose tail is longer than a piece, as a stop leaves it, then a prompt."""
    found = session_file.opened(model)
    session_file.save(found.session, "late.safetensors", TEXT.decode(), len(TEXT))
    assert memtok("generate", "-", "--memory", model, "--out", S, "max_new_tokens=0", stdin=TEXT).code == 0
    answers = [
        memtok("generate", "q", "--memory", m, "--out", f"a{m}", "max_new_tokens=9")
        for m in (S, "late.safetensors")
    ]
    assert answers[0].out.splitlines()[0] == answers[1].out.splitlines()[0]
    assert Path(f"a{S}").read_bytes() == Path("alate.safetensors").read_bytes()


def test_save_every_writes_each_so_many_segments(
    memtok: Memtok,  # noqa: F811
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved, save = [], session_file.save

    def spy(session, *rest):
        saved.append(session.read[0].segments)
        return save(session, *rest)

    monkeypatch.setattr(session_file, "save", spy)
    line = ("generate", "-", "--memory", model, "--out", S, "max_new_tokens=0")
    assert memtok(*line, "save_every=20", stdin=TEXT).code == 0
    assert len(saved) > 3 and all(b - a >= 20 for a, b in pairwise(saved[:-1]))


def test_the_keys_are_those_that_a_session_obeys() -> None:
    """But for what only Python can give."""
    mine = {"stop", "beams", *MINE, *ROLLBACK}
    python = {"seed", "pad_token_id", "watermarking_config"}
    assert set(GenerateKeys.model_fields) - mine == set(sampling.KEYS) - python
    assert set(ROLLBACK) <= set(sampling.REASONS)


def test_short_names_and_line_ends() -> None:
    keys = GenerateKeys(stop="a\\nb", beams=3, suffix="\\tx")
    assert keys.generation() == {
        "max_new_tokens": 256,
        "history": 2048,
        "stop_strings": "a\nb",
        "num_beams": 3,
    }
    assert keys.suffix == "\tx"
