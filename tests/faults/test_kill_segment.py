"""`memtok segment --memory` killed at any write, fsync or rename: the bank is the old or the new one, and
the same command ends with the same bytes.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
from forking import FULL, forked, operations
from tiny_segment import Stub, write_walk

from memtoken_cli import methods
from memtoken_cli.cli import run
from memtoken_cli.methods.memprompttss import model

BANK = "b.safetensors"
LINE = ("segment", "series.csv", "--prompts", "--memory", BANK, "-q")


def command(folder: Path, cached: bool) -> None:
    """What the shell runs; raises OSError where the disk was full, as `forked` expects."""
    os.chdir(folder)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    said = folder / "said"
    with open(said, "w") as sys.stderr:
        code = run([*LINE, "cache=kept" if cached else "cache=off"])
    if code and "No space" in said.read_text():
        raise OSError("No space")
    assert code == 0, said.read_text()
    said.unlink()


def fresh(folder: Path, old: bytes | None = None) -> Path:
    folder.mkdir()
    write_walk(folder / "series.csv", 300)
    (folder / "series.prompts.jsonl").write_text('{"row": 20, "label": "a"}\n{"row": 200, "label": "b"}\n')
    if old is not None:
        (folder / BANK).write_bytes(old)
    return folder


@pytest.mark.parametrize("existed", [False, True])
def test_killed_at_every_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool) -> None:
    monkeypatch.setattr(model, "load_model", lambda name: Stub(name))
    methods.load("memprompttss")  # what a command imports is then inherited by every child
    import memtoken_cli.methods.memprompttss.product  # noqa: F401

    old = None
    if existed:
        folder = fresh(tmp_path / "old")
        (folder / "series.prompts.jsonl").write_text('{"row": 20, "label": "a"}\n')
        assert forked(lambda: command(folder, False)) == 0
        old = (folder / BANK).read_bytes()
    whole = fresh(tmp_path / "whole", old)
    count = operations(lambda: command(whole, not existed))
    new = (whole / BANK).read_bytes()
    assert count >= (4 if existed else 8) and new != old
    for k in range(1, count + 1):
        full = [("enospc", FULL)] if existed else []
        for fault, ended in [("kill", -signal.SIGKILL), *full]:
            folder = fresh(tmp_path / f"{fault}{k}", old)
            assert forked(lambda f=folder: command(f, not existed), fault, k) == ended, k
            found = (folder / BANK).read_bytes() if (folder / BANK).exists() else None
            assert found in (old, new), k
            assert forked(lambda f=folder: command(f, not existed)) == 0, k
            assert (folder / BANK).read_bytes() == new, k
            left = {path.name for path in folder.iterdir()} - {"said", f".{BANK}.lock", "kept"}
            assert left == {BANK, "series.csv", "series.prompts.jsonl"}, k
