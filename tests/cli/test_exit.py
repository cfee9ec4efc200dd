"""How a command ends: exit codes, the form of errors, tracebacks on request, signals and closed pipes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_fixtures import SHOTS, TOY, Memtok, install

from memtoken_cli import cli, methods
from memtoken_cli.io.errors import Locked, PartialFailure, UsageError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, toy: None) -> "pytest.MonkeyPatch":
    return monkeypatch


def fail_with(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(name: str) -> None:
        raise error

    patch.setattr(methods, "load", load)


TOY_METHOD = ("--method", "toy")
COMPRESS = ("compress", "prompts.jsonl", "--ratio", "2", *TOY_METHOD)


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [
        (UsageError("wrong", where="r.yaml:3"), 2, "error: wrong in r.yaml:3"),
        (PartialFailure("1 of 2"), 4, "error: 1 of 2"),
        (Locked("held by 7"), 75, "error: held by 7"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (cli.Terminated(), 143, "error: terminated"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "error: x: No such file or directory"),
        (OSError(28, "No space left on device", "x"), 75, "error: x: No space left on device"),
        (OSError(30, "Read-only file system", "x"), 2, "error: x: Read-only file system"),
        (OSError(5, "Input/output error", "x"), 1, "error: x: Input/output error"),
        (SystemExit(141), 141, None),
        (SystemExit(), 0, None),
    ],
)
def test_exit_codes(
    memtok: Memtok,
    shots: Path,
    failing: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    first: str | None,
) -> None:
    fail_with(failing, error)
    ran = memtok(*COMPRESS)
    assert (ran.code, ran.out) == (code, b"")
    assert ran.err.splitlines()[:1] == ([first] if first else [])


def test_a_bug_is_one_line_and_a_traceback_only_on_request(
    memtok: Memtok, shots: Path, failing: pytest.MonkeyPatch
) -> None:
    fail_with(failing, ValueError("two\nlines"))
    ran = memtok(*COMPRESS)
    assert ran.code == 1 and ran.err.startswith("error: bug: ValueError: two lines in test_exit.py:")
    assert len(ran.err.splitlines()) == 2 and "-vv" in ran.err.splitlines()[1]
    assert "Traceback" not in memtok(*COMPRESS, "-v").err
    for argv in ((*COMPRESS, "-vv"), ("-v", *COMPRESS, "--verbose")):
        assert "Traceback" in memtok(*argv).err
    failing.setenv("MEMTOK_DEBUG", "1")
    ran = memtok(*COMPRESS)
    assert ran.code == 1 and "Traceback" in ran.err


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    memtok: Memtok, shots: Path, failing: pytest.MonkeyPatch
) -> None:
    fail_with(failing, UsageError("a\x1b[2Jb"))
    assert memtok(*COMPRESS).err.splitlines()[0] == r"error: a\x1b[2Jb"


@pytest.mark.parametrize(
    "argv", [[], ["nope"], ["inspect"], ["compress", "--seed", "x", "a"], ["inspect", "a", "b"]]
)
def test_usage_errors_have_the_projects_form(memtok: Memtok, argv: list[str]) -> None:
    ran = memtok(*argv)
    lines = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, b"")
    assert lines[0].startswith("error: ") and lines[-1].startswith("hint: memtok ") and "--help" in lines[-1]


def test_version(memtok: Memtok) -> None:
    ran = memtok("--version")
    assert (ran.code, ran.text) == (0, "memtok 0.1.0\n")


def test_common_options_may_stand_before_the_command(memtok: Memtok, toy: None, shots: Path) -> None:
    memtok(*COMPRESS)
    assert memtok("-q", "--json", *COMPRESS).text.startswith("{")


def environment(tmp_path: Path) -> dict[str, str]:
    install(tmp_path / "site")
    root = str(Path(cli.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(TOY), root])}


def start(tmp_path: Path, *argv: str, **streams: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "memtoken_cli", *argv]
    # a shell starts background jobs with SIGINT ignored, and children inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), **streams)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_process(tmp_path: Path, shots: Path, number: int, code: int) -> None:
    fifo = tmp_path / "shots.jsonl"
    os.mkfifo(fifo)
    process = start(
        tmp_path, "compress", "shots.jsonl", "--ratio", "2", "--method", "toy", stderr=subprocess.PIPE
    )
    with open(fifo, "w"):  # returns once the command has opened it to read, and so is past its start
        time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err and err.startswith(b"error: ")


@pytest.mark.parametrize(
    "argv", [["--help"], ["compress", "--help"], ["compress", "p.jsonl", "--ratio", "1", *TOY_METHOD]]
)
def test_a_closed_pipe_is_141_and_silent(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "p.jsonl").write_text(SHOTS)
    reader, writer = os.pipe()
    os.close(reader)
    process = start(tmp_path, *argv, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_closed_standard_streams_are_empty_ones(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m memtoken_cli generate --memory - <&- >&-'
    ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(tmp_path), capture_output=True)
    assert (ran.returncode, ran.stderr.splitlines()[0][:7]) == (2, b"error: ")
    assert b"bug" not in ran.stderr
