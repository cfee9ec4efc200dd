"""A run's directory: claims, checkpoints, damage, events, starting over."""

import json
import os

import pytest
import torch
import yaml

from memtoken_cli.engine.checkpoint import Checkpoint, RunDir, differences, run_dir
from memtoken_cli.io.errors import DataError, Locked, UsageError

RECIPE = "method: toy\ntrain:\n  steps: 6\n  lr: 0.1\n"


def state(step, regular=True):
    tensors = {"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)}
    return Checkpoint(step, tensors, {"note": f"at {step}", "x": 0.1 + step}, regular)


def names(path):
    return sorted(p.name for p in (path / "checkpoints").iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    with run_dir(tmp_path / "run", RECIPE) as run:
        assert run.load() is None
        run.save(state(2))
        found = run.load()
    assert found.step == 2
    assert found.values == {"note": "at 2", "x": 2.1}
    assert {n: x.tolist() for n, x in found.tensors.items()} == {"w": [[2.0] * 3] * 2, "n": 2}
    assert (tmp_path / "run" / "recipe.lock.yaml").read_text() == RECIPE


def test_the_same_state_gives_the_same_bytes(tmp_path):
    for name in "ab":
        with run_dir(tmp_path / name, RECIPE) as run:
            run.save(state(2))
    for file in ("state.safetensors", "state.json"):
        paths = [tmp_path / name / "checkpoints/step-000002" / file for name in "ab"]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_two_regular_ones_are_kept_and_a_forced_one_until_the_next(tmp_path):
    with run_dir(tmp_path, RECIPE) as run:
        for step, regular in ((2, True), (4, True), (5, False)):
            run.save(state(step, regular))
        assert names(tmp_path) == ["step-000002", "step-000004", "step-000005"]
        run.save(state(6))
        assert names(tmp_path) == ["step-000004", "step-000006"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "tail", "gone", "empty"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, file, damage):
    warnings = []
    with run_dir(tmp_path, RECIPE, warn=warnings.append) as run:
        for step in (2, 4):
            run.log({"step": step})
            run.save(state(step))
        path = tmp_path / "checkpoints/step-000004" / file
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage in ("flip", "tail"):
            at = len(data) // 2 if damage == "flip" else len(data) - 3
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        else:
            path.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
        found = run.load()
        assert found.step == 2 and found.tensors["n"] == 2
        assert len(warnings) == 1 and "step-000004" in warnings[0]
        assert names(tmp_path) == ["step-000002"], "a damaged one must not count among those kept"
        assert (tmp_path / "events.jsonl").read_text() == '{"step": 2}\n'


def test_all_damaged_is_an_error_with_the_way_out(tmp_path):
    with run_dir(tmp_path, RECIPE) as run:
        run.save(state(2))
        (tmp_path / "checkpoints/step-000002/state.json").write_text("{")
        with pytest.raises(DataError, match="--fresh"):
            run.load()


def test_events_after_the_checkpoint_are_cut_back(tmp_path):
    with run_dir(tmp_path, RECIPE) as run:
        run.log({"step": 1})
        run.save(state(1))
        run.log({"step": 2})
        with open(tmp_path / "events.jsonl", "a") as stream:
            stream.write('{"torn')
        run.load()
        assert (tmp_path / "events.jsonl").read_text() == '{"step": 1}\n'


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    with run_dir(tmp_path, RECIPE) as run:
        run.save(state(2))
        (tmp_path / "checkpoints/.step-000004.host.1.0.tmp").mkdir()
        run.load()
        assert names(tmp_path) == ["step-000002"]


def test_another_recipe_is_refused_with_the_differences(tmp_path):
    with run_dir(tmp_path, RECIPE):
        pass
    changed = yaml.safe_dump({"method": "toy", "train": {"steps": 7, "lr": 0.1}, "seed": 1})
    with pytest.raises(UsageError) as error, run_dir(tmp_path, changed):
        pass
    assert "train.steps: 6 -> 7" in error.value.message
    assert "seed: None -> 1" in error.value.message
    assert "lr" not in error.value.message
    assert "--fresh" in error.value.hint


def test_the_same_recipe_written_otherwise_is_the_same(tmp_path):
    with run_dir(tmp_path, RECIPE):
        pass
    with run_dir(tmp_path, "# a comment\ntrain: {lr: 0.1, steps: 6}\nmethod: toy\n"):
        pass
    assert (tmp_path / "recipe.lock.yaml").read_text() == RECIPE


def test_fresh_removes_what_memtok_made_and_nothing_else(tmp_path):
    with run_dir(tmp_path, RECIPE) as run:
        run.log({"step": 1})
        run.save(state(1))
        run.artifact.write_bytes(b"result")
    (tmp_path / "notes.txt").write_text("mine")
    with run_dir(tmp_path, "method: other\n", fresh=True) as run:
        assert run.load() is None
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == [
        "notes.txt",
        "recipe.lock.yaml",
    ]


def test_a_folder_with_foreign_results_is_not_taken_over(tmp_path):
    (tmp_path / "memory.safetensors").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"memory\.safetensors"), run_dir(tmp_path, RECIPE):
        pass
    assert (tmp_path / "memory.safetensors").read_bytes() == b"precious"


def test_one_run_a_directory(tmp_path):
    with run_dir(tmp_path, RECIPE) as run:
        run.save(state(1))
        with pytest.raises(Locked, match=str(os.getpid())), run_dir(tmp_path, RECIPE, fresh=True):
            pass
        assert run.load().step == 1


def test_other_ranks_write_nothing(tmp_path):
    run = RunDir(tmp_path, writes=False)
    run.log({"step": 1})
    run.save(state(1))
    assert not any(tmp_path.iterdir())


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    with run_dir(tmp_path, RECIPE) as run:
        run.save(state(2))
        before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoints/step-000002").iterdir()}
        monkeypatch.setenv("MEMTOK_FAULT", "enospc:1")
        monkeypatch.setattr("memtoken_cli.io.fault._done", 0)
        with pytest.raises(OSError, match="No space left"):
            run.save(state(4))
        monkeypatch.delenv("MEMTOK_FAULT")
        assert names(tmp_path) == ["step-000002"]
        assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoints/step-000002").iterdir()} == before
        run.save(state(4))
        assert run.load().step == 4


def test_events_hold_no_number_json_lacks(tmp_path):
    with run_dir(tmp_path, RECIPE) as run:
        with pytest.raises(ValueError, match="JSON"):
            run.log({"loss": float("nan")})
        run.log({"loss": 0.1})
    assert json.loads((tmp_path / "events.jsonl").read_text()) == {"loss": 0.1}


def test_differences_are_dotted_and_in_order():
    assert differences({"a": {"b": 1, "c": [1]}, "z": 1}, {"a": {"b": 2, "c": [1]}, "d": None}) == [
        "a.b: 1 -> 2",
        "z: 1 -> None",
    ]
    assert differences(1, 2) == ["recipe: 1 -> 2"]
