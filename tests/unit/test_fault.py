"""Failing on purpose: the k-th operation, and no other."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memtoken_cli.io import atomic, fault

WRITE = "import sys; from memtoken_cli.io import atomic; atomic.write_bytes(sys.argv[1], b'new contents')"
OPERATIONS = 5  # two halves of the write, fsync, rename, fsync of the folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault, "_done", 0)


def run(path: Path, setting: str) -> int:
    env = {"MEMTOK_FAULT": setting, "PYTHONPATH": str(Path(fault.__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", WRITE, str(path)], env=env, check=False).returncode


def test_counting_tells_how_many_operations_there_are(tmp_path: Path) -> None:
    assert run(tmp_path / "a", f"count:{tmp_path / 'n'}") == 0
    assert (tmp_path / "n").read_text() == str(OPERATIONS)
    assert (tmp_path / "a").read_bytes() == b"new contents"


@pytest.mark.parametrize("k", range(1, OPERATIONS + 1))
def test_killed_at_any_operation_the_file_is_the_old_or_the_new_one(tmp_path: Path, k: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    assert run(path, f"kill:{k}") == -signal.SIGKILL
    assert path.read_bytes() == (b"new contents" if k == OPERATIONS else b"old")
    atomic.write_bytes(path, b"again")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"again"


@pytest.mark.parametrize("k", range(1, OPERATIONS + 1))
def test_a_full_disk_at_any_operation_leaves_no_part(
    tmp_path: Path, k: int, monkeypatch: pytest.MonkeyPatch, counted: None
) -> None:
    path = tmp_path / "a"
    monkeypatch.setenv(fault.VARIABLE, f"enospc:{k}")
    with pytest.raises(OSError) as caught:
        atomic.write_bytes(path, b"new contents")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename
    if k == OPERATIONS:  # the rename was done
        assert path.read_bytes() == b"new contents"
    else:
        assert list(tmp_path.iterdir()) == []


def test_without_the_variable_nothing_is_counted(tmp_path: Path, counted: None) -> None:
    atomic.write_bytes(tmp_path / "a", b"x")
    assert fault._done == 0
