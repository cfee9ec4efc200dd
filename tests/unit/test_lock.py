"""One process a run directory; a dead one never blocks."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memtoken_cli.io import lock
from memtoken_cli.io.errors import Locked
from memtoken_cli.io.lock import run_lock

HOLD = """
import sys
from memtoken_cli.io.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(directory: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], env=env, text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with hold(tmp_path) as process:
        with pytest.raises(Locked, match=f"in use by process {process.pid}"), run_lock(tmp_path):
            pass
        process.communicate("")
    with run_lock(tmp_path):
        pass


def test_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    with hold(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with run_lock(tmp_path):
        assert (tmp_path / lock.NAME).read_text() == str(os.getpid())


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(Locked), run_lock(tmp_path):
        pass


def test_the_directory_is_made_and_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), run_lock(tmp_path / "new"):
        raise ValueError("stop")
    with run_lock(tmp_path / "new"):
        pass


def test_a_file_can_be_waited_for(tmp_path: Path) -> None:
    path, held = tmp_path / "bank", threading.Event()

    def hold_a_while() -> None:
        with lock.file_lock(path):
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold_a_while)
    other.start()
    assert held.wait(30)
    with pytest.raises(Locked), lock.file_lock(path):
        pass
    with lock.file_lock(path, wait=30):
        assert (tmp_path / f".bank{lock.NAME}").read_text() == str(os.getpid())
    other.join()
