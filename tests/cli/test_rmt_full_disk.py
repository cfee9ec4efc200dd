"""A full disk under `memtok generate` of a session: what is told, and that going on as told loses nothing."""

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_rmt
from cli_fixtures import Memtok, Ran

from memtoken_cli.commands import streaming as command
from memtoken_cli.io import artifact, fault, sink
from memtoken_cli.io.errors import Full
from memtoken_cli.methods.rmt import streaming

S = "s.safetensors"
OPERATIONS = 5  # of one file: two halves, fsync, rename, fsync of the folder
TEXT = "some text, é and 日本 " * 120
LINE = ("generate", "-", "--out", S, "max_new_tokens=0")
READ = (*LINE, "--memory", "MODEL")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_rmt.artifact(tmp_path_factory.mktemp("model")))


@pytest.fixture
def full(memtok: Memtok, model: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """full(K, *argv, stdin): a command whose K-th operation on files finds no space."""

    def call(k: int, *argv: str, stdin: str = "") -> Ran:
        with monkeypatch.context() as patch:
            patch.setenv(fault.VARIABLE, f"enospc:{k}")
            patch.setattr(fault, "_done", 0)
            return memtok(*(model if word == "MODEL" else word for word in argv), stdin=stdin)

    return call


def told(ran: Ran) -> tuple[str, str]:
    """Its error and its hint."""
    assert (ran.code, ran.out) == (Full.exit_code, b""), ran.err
    error, hint = ran.err.splitlines()
    assert error == f"error: {S} is not written: No space left on device"
    return error, hint


@pytest.mark.parametrize("k", range(1, OPERATIONS))
@pytest.mark.parametrize("existed", [False, True])
def test_the_same_command_again_is_as_if_nothing_had_been(
    full: Callable[..., Ran], memtok: Memtok, model: str, existed: bool, k: int
) -> None:
    memory = model
    if existed:  # a session that goes on in its own file
        assert memtok(*LINE, "--memory", model, stdin=TEXT).code == 0
        memory = S
    before = Path(S).read_bytes() if existed else None
    _, hint = told(full(k, *LINE, "--memory", memory, stdin="more of it"))
    assert "the same command again on the same input" in hint and "resumes" not in hint
    assert [p.name for p in Path().iterdir()] == ([S] if existed else [])
    assert (Path(S).read_bytes() if existed else None) == before
    assert memtok(*LINE, "--memory", memory, stdin="more of it").code == 0
    read = artifact.read_header(S).about["counts"]["bytes"]
    assert read == len("more of it") + existed * len(TEXT.encode())


def test_after_a_first_write_the_rest_is_told(
    full: Callable[..., Ran], memtok: Memtok, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 500)  # bytes that come at once
    assert memtok(*LINE, "--memory", model, stdin=TEXT).code == 0
    whole = Path(S).read_bytes()
    Path(S).unlink()
    _, hint = told(full(OPERATIONS + 1, *READ, "save_every=60", stdin=TEXT))
    read = artifact.read_header(S).about["counts"]["bytes"]
    assert 0 < read < len(TEXT.encode())
    assert f"tail -c +{read + 1} INPUT | memtok generate - --memory {S}" in hint
    assert memtok(*LINE, "--memory", S, stdin=TEXT.encode()[read:]).code == 0
    assert Path(S).read_bytes() == whole


def test_a_prompt_that_is_in_the_file_is_not_given_again(full: Callable[..., Ran], memtok: Memtok) -> None:
    line = ("generate", TEXT, "--out", S, "max_new_tokens=0", "--memory", "MODEL")
    assert "run the same command again: no" in told(full(1, *line, "save_every=60"))[1]
    assert "the prompt is in" in told(full(OPERATIONS + 1, *line, "save_every=60"))[1]


def test_a_stop_that_could_not_save_does_not_say_that_it_did(
    full: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stopping() -> Iterator[Callable[[], int]]:
        yield lambda: signal.SIGTERM

    monkeypatch.setattr(streaming, "signals", stopping)
    told(full(1, *READ, stdin=TEXT))
    assert not Path(S).exists()


def test_the_text_that_was_written_stands(full: Callable[..., Ran]) -> None:
    ran = full(1, "generate", "go", "--memory", "MODEL", "--out", S, "max_new_tokens=5")
    assert ran.code == Full.exit_code and ran.out and f"{S} is not written" in ran.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_really_full(memtok: Memtok, model: str) -> None:
    ran = memtok("generate", "-", "--memory", model, "--out", "/dev/full", "max_new_tokens=0", stdin=TEXT)
    assert (ran.code, ran.out) == (Full.exit_code, b"")
    assert ran.err.startswith(
        "error: /dev/full is not written: No space left on device\nhint: free some space"
    )


def test_a_full_standard_output(memtok: Memtok, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "standard output")

    monkeypatch.setattr(sink, "_stdout", no_space)
    line = ("generate", "go", "--memory", model, "max_new_tokens=5")
    ran = memtok(*line)
    assert (
        ran.code == Full.exit_code
        and "standard output: No space" in ran.err
        and "same command again" in ran.err
    )
    ran = memtok(*line, "--out", S)
    assert ran.code == Full.exit_code and f"--memory {S} goes on" in ran.err and "again" not in ran.err
    assert artifact.read_header(S).about["counts"]["tokens"] > len("go")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(
    memtok: Memtok, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.os, "access", lambda path, mode: False)
    ran = memtok("generate", "-", "--memory", model, "--out", S, "max_new_tokens=0", stdin=b"\xff")
    assert ran.code == 2 and "is not writable" in ran.err
