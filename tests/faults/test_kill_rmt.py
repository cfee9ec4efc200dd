"""`memtok generate` of a session under faults: killed or on a full disk at any operation, signals while
standard input is idle, a reader that goes away. The file is the old one or a whole new one.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_rmt
from forking import FULL, forked, operations

from memtoken_cli.cli import run
from memtoken_cli.io import artifact
from memtoken_cli.methods.rmt import session_file

S = "s.safetensors"
TEXT = "some text, é and 日本 " * 120  # five pieces, more than 200 segments


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tiny_rmt.artifact(tmp_path_factory.mktemp("model")))
    folder = tmp_path_factory.mktemp("warm")
    assert forked(lambda: command(folder, path)) == 0
    session_file.opened(path)  # what a command imports is then inherited by every child
    return path


def command(folder: Path, memory: str) -> None:
    """What the shell runs; raises OSError where the disk was full, as `forked` expects."""
    os.chdir(folder)
    Path("text").write_text(TEXT)
    said = Path("said")
    with open("text") as sys.stdin, open(os.devnull, "w") as sys.stdout, open(said, "w") as sys.stderr:
        code = run(["generate", "-", "--memory", memory, "--out", S, "max_new_tokens=0", "save_every=60"])
    if code and "No space" in said.read_text():
        raise OSError("No space")
    assert code == 0, said.read_text()


def content(folder: Path) -> bytes | None:
    return (folder / S).read_bytes() if (folder / S).exists() else None


@pytest.mark.parametrize("existed", [False, True])
def test_killed_or_full_at_every_operation(tmp_path: Path, model: str, existed: bool) -> None:
    old, memory = None, model
    if existed:  # a session that goes on in its own file
        (tmp_path / "old").mkdir()
        assert forked(lambda: command(tmp_path / "old", model)) == 0
        old, memory = content(tmp_path / "old"), S

    def fresh(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if old is not None:
            (folder / S).write_bytes(old)
        return folder

    states: list[bytes | None] = [old]

    def noted() -> None:
        write = session_file.save

        def spy(*args: object) -> object:
            found = write(*args)  # type: ignore[arg-type]
            Path(f"state{len(list(Path().glob('state*')))}").write_bytes(Path(S).read_bytes())
            return found

        session_file.save = spy  # type: ignore[assignment]
        command(fresh("whole"), memory)

    assert forked(noted) == 0
    states += [path.read_bytes() for path in sorted((tmp_path / "whole").glob("state*"))]
    assert len(set(states)) >= 3
    count = operations(lambda: command(fresh("count"), memory))
    assert count >= 4 * (len(states) - 1)
    for k in range(1, count + 1):
        full = [("enospc", FULL)] if existed else []
        for fault, ended in [("kill", -signal.SIGKILL), *full]:
            folder = fresh(f"{fault}{k}")
            assert forked(lambda f=folder: command(f, memory), fault, k) == ended, k
            found = content(folder)
            assert found in states, (fault, k)
            if found is not None and k % 5 == 0:
                session_file.opened(str(folder / S))
            left = {path.name for path in folder.iterdir()} - {S, "text", "said"}
            assert all(fault == "kill" and name.startswith(f".{S}.") for name in left), left


class Child:
    """A command in a forked process, its standard input a pipe that stays open."""

    def __init__(self, folder: Path, *argv: str, stdout: int | None = None) -> None:
        read, self.input = os.pipe()
        self.folder = folder
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.input)
                os.chdir(folder)
                sys.stdin = open(read)  # noqa: SIM115
                sys.stdout = open(os.devnull, "w") if stdout is None else open(stdout, "w")  # noqa: SIM115
                sys.stderr = open("said", "w")  # noqa: SIM115
                code = run(["generate", *argv])
                sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(read)

    def ended(self) -> int:
        """Its exit code. A child that does not end by itself is killed."""
        for _ in range(600):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.input)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("it did not end")

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()


def until(holds: Callable[[], bool]) -> None:
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def bytes_of(path: Path) -> int:
    return int(artifact.read_header(path).about["counts"]["bytes"])


def idle(path: Path, cut: int) -> bool:
    """Whether all that came is in the file, less than a piece of it as text: the next thing is to wait."""
    counts = artifact.read_header(path).about["counts"] if path.exists() else {"bytes": 0, "tokens": 0}
    return counts["bytes"] > cut - 4 and counts["bytes"] - counts["tokens"] < 650


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_standard_input_is_idle(tmp_path: Path, model: str, number: int, code: int) -> None:
    """All that came is saved, but for the half of a character; the rest then goes on to the same bytes."""
    data = TEXT.encode()
    cut = data.index("本".encode()) + 1 + len(data) // 2 // 23 * 23
    while data[cut] & 0xC0 != 0x80:
        cut += 1
    child = Child(tmp_path, "-", "--memory", model, "--out", S, "max_new_tokens=0", "save_every=1")
    os.write(child.input, data[:cut])
    until(lambda: idle(tmp_path / S, cut))
    time.sleep(0.3)
    os.kill(child.pid, number)
    assert child.ended() == code
    read = bytes_of(tmp_path / S)
    assert cut - 4 < read < cut and f"tail -c +{read + 1}" in child.said
    assert child.said.startswith("error: ") and S in child.said

    for memory, out, part in ((S, S, data[read:]), (model, "whole", data)):
        after = Child(tmp_path, "-", "--memory", memory, "--out", out, "max_new_tokens=0")
        os.write(after.input, part)
        os.close(after.input)
        after.input = os.open(os.devnull, os.O_RDONLY)
        assert after.ended() == 0
    assert (tmp_path / S).read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_signal_before_anything_came(tmp_path: Path, model: str) -> None:
    child = Child(tmp_path, "-", "--memory", model, "--out", S, "max_new_tokens=0")
    until((tmp_path / "said").exists)
    time.sleep(0.3)  # wherever this is: before, in or after opening the model
    os.kill(child.pid, signal.SIGTERM)
    assert child.ended() in (143, -signal.SIGTERM)


def test_a_signal_in_the_middle_of_a_long_piece(tmp_path: Path, model: str) -> None:
    """A piece of 16,384 characters is read whole or not at all; what is in the file is what was counted."""
    data = ("word " * 120 + "x" * 40_000).encode()
    child = Child(tmp_path, "-", "--memory", model, "--out", S, "max_new_tokens=0", "save_every=1")
    os.write(child.input, data)
    until((tmp_path / S).exists)
    os.kill(child.pid, signal.SIGTERM)
    assert child.ended() == 143
    found = session_file.opened(str(tmp_path / S))
    (read,) = found.session.read
    assert found.read == len(data)
    assert read.tokens + len(found.tail) == len(data)
    assert found.tail == data.decode()[read.tokens :]


def test_a_reader_that_goes_away(tmp_path: Path, model: str) -> None:
    away, stdout = os.pipe()
    os.close(away)
    child = Child(tmp_path, "hello", "--memory", model, "--out", S, "max_new_tokens=500", stdout=stdout)
    os.close(stdout)
    assert child.ended() == 141
    (read,) = session_file.opened(str(tmp_path / S)).session.read
    assert 5 < read.tokens < 500
    assert child.said == ""


def test_generating_stops_at_a_signal(tmp_path: Path, model: str) -> None:
    out, stdout = os.pipe()
    argv = ("hello", "--memory", model, "--out", S, "max_new_tokens=1000000", "suppress_tokens=[258]")
    child = Child(tmp_path, *argv, stdout=stdout)
    os.close(stdout)
    shown = os.read(out, 1)
    os.kill(child.pid, signal.SIGTERM)
    while more := os.read(out, 2**16):
        shown += more
    os.close(out)
    assert child.ended() == 143
    session = session_file.opened(str(tmp_path / S)).session
    ids = session.read[0].newest_T.tolist()
    text = session.backbone.tokenizer.decode(ids[len("hello") :], skip_special_tokens=True)
    assert text.startswith(shown.decode()) and len(shown) > 0
    assert json.loads(json.dumps(session.read[0].segments)) >= 0
