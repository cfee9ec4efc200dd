"""`memtok bank ... --in-place` killed at any write, fsync or rename: the bank is the old or the new one, and
the same command ends with the same bytes.
"""

import os
import signal
import sys
from pathlib import Path

from forking import FULL, forked, operations
from random_bank import bank

from memtoken_cli import methods
from memtoken_cli.cli import run

FILE = "b.safetensors"
LINE = ("bank", "remove", FILE, "rhymes", "--in-place", "-q")


def command(folder: Path) -> None:
    """What the shell runs; raises OSError where the disk was full, as `forked` expects."""
    os.chdir(folder)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    said = folder / "said"
    with open(said, "w") as sys.stderr:
        code = run(LINE)
    if code and "No space" in said.read_text():
        raise OSError("No space")
    assert code == 0, said.read_text()
    said.unlink()


def fresh(folder: Path) -> tuple[Path, bytes]:
    folder.mkdir()
    bank("antonyms", "rhymes", "style").save(folder / FILE)
    return folder, (folder / FILE).read_bytes()


def test_killed_at_every_operation(tmp_path: Path) -> None:
    methods.load("tokmem")  # what a command imports is then inherited by every child
    import memtoken_cli.methods.tokmem.operations  # noqa: F401

    folder, old = fresh(tmp_path / "whole")
    count = operations(lambda: command(folder))
    new = (folder / FILE).read_bytes()
    assert count >= 4 and new != old
    for k in range(1, count + 1):
        for fault, ended in (("kill", -signal.SIGKILL), ("enospc", FULL)):
            folder, _ = fresh(tmp_path / f"{fault}{k}")
            assert forked(lambda f=folder: command(f), fault, k) == ended, k
            assert (folder / FILE).read_bytes() in (old, new), k
            assert forked(lambda f=folder: command(f)) == 0, k
            assert (folder / FILE).read_bytes() == new, k
            left = {path.name for path in folder.iterdir()} - {"said", f".{FILE}.lock"}
            assert left == {FILE}, k
