"""Training a backend: the same bytes from the same seed, going on in the middle of a bank, the best epoch,
and contestants that are trained once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_memprompt import BACKENDS, Here, recipe

from memtoken_cli.io.artifact import read_header
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss.learn import renamed
from memtoken_cli.methods.memprompttss.paper_exam import exam
from memtoken_cli.methods.memprompttss.placement import CORRECT, LABEL, say, stacked
from memtoken_cli.methods.memprompttss.train import open_trained, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    return train(recipe(), Here(folder)), folder


def test_same_seed_same_bytes_and_a_finished_run_is_left_alone(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    path, folder = trained
    assert train(recipe(), Here(tmp_path)).read_bytes() == path.read_bytes()
    here = Here(folder)
    stamp = path.stat().st_mtime_ns
    assert train(recipe("data.seeds=3", "data.paper.budget=0.1"), here) == path
    assert path.stat().st_mtime_ns == stamp and any("already done" in note for note in here.notes)
    with pytest.raises(UsageError, match="blocks"):
        train(recipe("memprompttss.blocks=1"), Here(folder))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupted_run_goes_on_in_the_middle_of_a_bank(backend: str, tmp_path: Path) -> None:
    """With the tokens, the best weights and the curve that it had."""
    said = recipe(
        f"memprompttss.backend={backend}", "train.epochs=2", "train.iterations=4", "train.save_every=1"
    )
    whole = train(said, Here(tmp_path / "whole"))
    cut = tmp_path / "cut"
    train(said, Here(cut))
    steps = sorted((cut / "checkpoints").iterdir())
    values = json.loads((steps[0] / "state.json").read_text())["values"]["task"]
    assert int(steps[0].name[5:]) % 4 != 0 and values["keeps"] > 0, "a checkpoint between two iterations"
    (cut / "memory.safetensors").unlink()
    for later in steps[1:]:
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    again = train(said, Here(cut))
    assert again.read_bytes() == whole.read_bytes()
    assert (cut / "events.jsonl").read_bytes() == (tmp_path / "whole/events.jsonl").read_bytes()


def test_the_best_epoch_is_kept_and_patience_ends_training(tmp_path: Path) -> None:
    said = recipe("train.epochs=8", "train.patience=2", "train.lr=2.0", "train.clip=0")
    here = Here(tmp_path)
    header = json.loads(_header(train(said, here)))["about"]
    losses = [one["loss"] for one in header["curve"]]
    assert header["epoch"] == losses.index(min(losses)) + 1
    assert len(losses) == header["epoch"] + 2 < 8 and any("training ends" in note for note in here.notes)
    assert {"channels", "mean", "std", "classes", "data", "config", "majority"} <= header.keys()


def _header(path: Path) -> str:
    return read_header(path, verify=True).model_dump_json()


def hashes(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def test_renamed_classes_keep_what_is_said_true() -> None:
    y = torch.randint(0, 4, (3, 50), generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    told = stacked([say(torch.arange(50), one, 4, 0.0, draw) for one in y])
    other, names = renamed(told, y, 4, draw)
    assert len({tuple(row.tolist()) for row in names}) == 3 and not torch.equal(names, y)
    label, right = told.kind_BP == LABEL, told.aspect_BP == CORRECT
    assert torch.equal(other.value_BP[~label], told.value_BP[~label])
    rows = torch.arange(3)[:, None].expand_as(label)
    true = names[rows, told.row_BP]
    assert torch.equal(other.value_BP[label & right], true[label & right])
    assert bool((other.value_BP[label & ~right] != true[label & ~right]).all())
    for b in range(3):
        assert len(set(zip(y[b].tolist(), names[b].tolist(), strict=True))) == len(set(y[b].tolist()))


def test_the_released_column_trains_too(tmp_path: Path) -> None:
    said = recipe("memprompttss.paper_compat=true")
    assert not said.config.time_attention and said.config.select_on == "test"
    trained = open_trained(train(said, Here(tmp_path)))
    assert trained.config.dead_tail and len(trained.about["curve"]) == 1


def test_an_exam_trains_its_contestants_once(tmp_path: Path) -> None:
    said = recipe(
        "data.contestants=[fill, majority, prompttss, memprompt, bank_off, bank_shuffled, paper_compat]"
    )
    rows = exam(said, Here(tmp_path))
    assert [row["method"] for row in rows] == list(said.data.contestants)
    assert all(len(row["levels"]) == 2 and len(row["iterations"]) == 2 for row in rows)
    folder = tmp_path / "runs" / "memprompttss-tiny"
    files = [folder / name / "memory.safetensors" for name in (".", "prompttss", "paper_compat")]
    before, stamps = hashes(files), [f.stat().st_mtime_ns for f in files]
    assert exam(said, Here(tmp_path)) == rows and [f.stat().st_mtime_ns for f in files] == stamps
    assert len(set(before)) == 3
    short = exam(recipe("data.smoke=true", "data.contestants=[memprompt]", "train.epochs=50"), Here(tmp_path))
    assert len(short) == 1 and (tmp_path / "runs" / "memprompttss-tiny-smoke" / "memory.safetensors").exists()
    with pytest.raises(UsageError, match="no contestant 'fil'"):
        exam(recipe("data.contestants=[fil]"), Here(tmp_path))
