"""`memtok compress` killed at any write, fsync or rename is finished by the same command, with the same
bytes; so with a full disk. The artifact is whole or not there at every moment.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from forking import FULL, forked, operations
from tiny import save, tiny_llama
from tiny_prompt import records

from memtoken_cli import methods
from memtoken_cli.cli import run
from memtoken_cli.engine import models
from memtoken_cli.io import artifact

OUT = "prompts.memory.safetensors"
LINE = ("compress", "prompts.jsonl", "--ratio", "4", "--model", "model", "--device", "cpu", "-q")


def command(folder: Path, *more: str) -> None:
    """What the shell runs, in a child; raises OSError where the disk was full, as `forked` expects."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    said = folder / "said"
    with open(said, "w") as sys.stderr:
        code = run([*LINE, *more])
    if code and "No space" in said.read_text():
        assert code == 75
        raise OSError("No space")
    assert code == 0, said.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the model and the shots lie; children link to them."""
    folder = tmp_path_factory.mktemp("place")
    save(tiny_llama(), folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records(6)))
    # what a command imports is then inherited by every child
    methods.load("compact")
    models.load(str(folder / "model"), "cpu")
    return folder


@pytest.fixture(scope="module")
def fresh(place, tmp_path_factory):
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        for part in ("model", "prompts.jsonl"):
            (folder / part).symlink_to(place / part)
        return folder

    return make


def left(folder: Path) -> dict[str, bytes]:
    """Files that the command made; leftovers would show as differences."""
    given = ("model", "prompts.jsonl", "said")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in given}


@pytest.fixture(scope="module")
def whole(fresh):
    """What an uninterrupted command leaves, and how many operations it takes."""
    folder = fresh("whole")
    count = operations(lambda: command(folder))
    files = left(folder)
    assert list(files) == [OUT] and artifact.read(folder / OUT)[0].method == "compact"
    assert count >= 4
    return files, count


def test_killed_at_every_operation(whole, fresh):
    files, count = whole
    for k in range(1, count + 1):
        folder = fresh(f"kill{k}")
        assert forked(lambda f=folder: command(f), "kill", k) == -signal.SIGKILL, k
        if OUT in left(folder):
            assert left(folder)[OUT] == files[OUT], k
        assert forked(lambda f=folder: command(f)) == 0, k
        assert left(folder) == files, k


def test_disk_full_at_every_operation(whole, fresh):
    files, count = whole
    for k in range(1, count + 1):
        folder = fresh(f"full{k}")
        assert forked(lambda f=folder: command(f), "enospc", k) == FULL, k
        assert left(folder) in ({}, files), k
        assert forked(lambda f=folder: command(f)) == 0, k
        assert left(folder) == files, k


def test_replacing_an_artifact_loses_neither(whole, fresh):
    """Killed while another request's artifact is replaced: the old one or the new one, never a mixture."""
    files, count = whole
    for k in range(1, count + 1):
        folder = fresh(f"again{k}")
        assert forked(lambda f=folder: command(f, "--seed", "5")) == 0
        old = left(folder)[OUT]
        assert old != files[OUT]
        assert forked(lambda f=folder: command(f), "kill", k) == -signal.SIGKILL, k
        assert left(folder)[OUT] in (old, files[OUT]), k
        assert forked(lambda f=folder: command(f)) == 0, k
        assert left(folder) == files, k


def test_done_again_writes_nothing(whole, fresh):
    folder = fresh("done")
    assert forked(lambda: command(folder)) == 0
    assert forked(lambda: command(folder), "kill", 1) == 0
    assert left(folder) == whole[0]
