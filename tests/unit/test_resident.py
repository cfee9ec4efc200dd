"""The most memory that was held: counted anew, not another process's, None where nobody knows."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import memtoken_cli
from memtoken_cli.engine import resident

MIB = 2**20
linux = pytest.mark.skipif(not os.access(resident.CLEAR, os.W_OK), reason="no /proc/self/clear_refs")


@linux
def test_what_was_held_before_does_not_count() -> None:
    held = bytearray(96 * MIB)
    del held
    peak = resident.above()
    assert peak() < 8 * MIB
    held = bytearray(24 * MIB)
    del held
    assert 23 * MIB < peak() < 40 * MIB  # the kernel counts in portions


@linux
def test_a_process_does_not_begin_with_what_its_parent_held() -> None:
    held = bytearray(64 * MIB)
    code = "from memtoken_cli.engine import resident; print(resident.most())"
    environment = {"PYTHONPATH": str(Path(memtoken_cli.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert MIB < int(ran.stdout) < len(held)


def test_where_nothing_can_be_counted_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The most of a process tells nothing until it rises."""
    told = SimpleNamespace(ru_maxrss=1000)
    monkeypatch.setattr(resident, "CLEAR", tmp_path / "no" / "file")
    monkeypatch.setattr(resident, "STATUS", tmp_path / "none")
    monkeypatch.setattr(resident.sys, "platform", "linux")
    monkeypatch.setattr(resident.resource, "getrusage", lambda who: told)
    peak = resident.above()
    assert peak() is None and resident.most() == 1000 * 1024
    told.ru_maxrss = 1500
    assert peak() == 500 * 1024
    monkeypatch.setattr(resident.sys, "platform", "darwin")
    assert resident.most() == 1500
    (tmp_path / "none").write_text("VmPeak:\t 99 kB\nVmHWM:\t 40 kB\nVmRSS:\t 30 kB\n")
    peak = resident.above()
    assert peak() is None
    (tmp_path / "none").write_text("VmHWM:\t 45 kB\nVmRSS:\t 30 kB\n")
    assert peak() == 15 * 1024
