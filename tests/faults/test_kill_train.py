"""A run killed at any write, fsync or rename is finished by the same command, with the same bytes; so
with a full disk. Children are forked from this process, so that hundreds of them take seconds.
"""

import signal

import pytest
from forking import FULL, forked, operations
from toy_task import ToyTask

from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.fit import fit
from memtoken_cli.io import atomic

RECIPE = "method: toy\nsteps: 6\n"


def command(path):
    """What a `train` command does: open, fit, write the result last; a finished run is left alone."""
    with run_dir(path, RECIPE) as run:
        task = ToyTask(batch_size=2)
        fit(task, run, seed=1, save_every=2, log_every=1)
        if not run.artifact.exists():
            atomic.write_bytes(run.artifact, b"".join(w.numpy().tobytes() for w in task.weights().values()))


def child(path, what="", k=0):
    return forked(lambda: command(path), what, k)


def contents(path):
    """Every file but the lock, by name; leftovers would show as differences."""
    return {
        str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run's files, and how many counted operations it takes."""
    # what the first step imports is then inherited by every child
    command(tmp_path_factory.mktemp("warm"))
    path = tmp_path_factory.mktemp("whole") / "run"
    count = operations(lambda: command(path))
    files = contents(path)
    assert sorted(files) == [
        "checkpoints/step-000004/state.json",
        "checkpoints/step-000004/state.safetensors",
        "checkpoints/step-000006/state.json",
        "checkpoints/step-000006/state.safetensors",
        "events.jsonl",
        "memory.safetensors",
        "recipe.lock.yaml",
    ]
    return files, count


def test_the_run_has_many_points_to_die_at(whole):
    assert whole[1] > 60


def test_killed_at_every_operation(whole, tmp_path):
    files, count = whole
    for k in range(1, count + 1):
        path = tmp_path / f"kill{k}"
        assert child(path, "kill", k) == -signal.SIGKILL, k
        assert child(path) == 0, k
        assert contents(path) == files, k


def test_killed_again_and_again(whole, tmp_path):
    """Each try gets a little further than its predecessor's last checkpoint, or at least does no harm."""
    files, count = whole
    path = tmp_path / "run"
    for k in range(3, count, 5):
        assert child(path, "kill", k) in (-signal.SIGKILL, 0), k
    assert child(path) == 0
    assert contents(path) == files


def test_disk_full_at_every_operation(whole, tmp_path):
    files, count = whole
    for k in range(1, count + 1):
        path = tmp_path / f"full{k}"
        assert child(path, "enospc", k) == FULL, k
        for name, data in contents(path).items():
            if name.startswith("checkpoints/") and name in files:
                assert data == files[name], (k, name)
        assert child(path) == 0, k
        assert contents(path) == files, k


def test_a_finished_run_writes_nothing(whole, tmp_path):
    path = tmp_path / "run"
    assert child(path) == 0
    assert child(path, "kill", 1) == 0
    assert contents(path) == whole[0]
