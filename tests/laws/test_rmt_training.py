"""A recurrent memory's run that was cut short ends with the bytes of one that was not."""

import shutil
from pathlib import Path

import pytest

from memtoken_cli.cli import run

TINY = str(Path(__file__).parents[2] / "recipes" / "rmt" / "tiny.yaml")
SHORT = ["train.steps=6", "train.save_every=2", "train.log_every=1", "train.batch=8", "-q"]
# a check every other step: the curriculum changes on the way
STAGES = ["curriculum.check_every=2", "curriculum.advance_at=0.01", "curriculum.warmup=2"]


@pytest.mark.parametrize("policy", ["rmt", "armt", "xl"])
def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, policy: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ["train", TINY, *SHORT, *STAGES, f"rmt.policy={policy}", "rmt.state_noise=0.1"]
    assert run([*command, "--out", str(whole)]) == 0
    shutil.copytree(whole, cut)
    (cut / "memory.safetensors").unlink()
    shutil.rmtree(cut / "checkpoints" / "step-000006")
    assert run([*command, "--out", str(cut)]) == 0
    for name in ("memory.safetensors", "events.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
