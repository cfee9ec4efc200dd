"""`memtok bank export --to official`: what is written is read back to the same outputs; what is refused."""

import json
from pathlib import Path

import pytest
import tiny_rmt
import torch
from cli_fixtures import Memtok

from memtoken_cli.io import artifact
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt import export, model_file
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.policy import Policy
from memtoken_cli.methods.rmt.run import built
from memtoken_cli.recipe.schema import load

OUT = "official.safetensors"
WRITE = ("--to", "official", "--out", OUT)
BACK = "to read it back: "


def trained(folder: Path, *overrides: str) -> str:
    return str(tiny_rmt.artifact(folder, "rmt.state_norm=final", "rmt.d_mem=4", *overrides))


@torch.no_grad()
def read(policy: Policy) -> list[torch.Tensor]:
    """Logits and the last state of two whole segments and a short one."""
    ids_BT = torch.randint(2, 250, (2, 39), generator=torch.Generator().manual_seed(1))
    state, found = policy.start(2), []
    for part in ids_BT.split(16, 1):
        n = part.shape[1]
        logits, state = policy.segment(part, torch.full((2,), n), state, torch.arange(n))
        found.append(logits)
    return [*found, *state]


@pytest.mark.parametrize("more", [(), ("rmt.mask=blocks", "rmt.positions=contiguous")])
@pytest.mark.parametrize("policy", ["rmt", "armt"])
def test_what_is_exported_is_read_back(
    memtok: Memtok, tmp_path: Path, policy: str, more: tuple[str, ...]
) -> None:
    path = trained(tmp_path / "run", f"rmt.policy={policy}", *more)
    ran = memtok("bank", "export", path, *WRITE)
    assert (ran.code, ran.text) == (0, f"{OUT}\n"), ran.err
    written = Path(OUT).read_bytes()
    keys = ran.err.strip().removeprefix(BACK).split()
    back = built(load(tmp_path / "run" / "tiny.yaml", [*keys, "seed=9"]), "cpu")
    own = model_file.open_model(path, "cpu").policy
    for a, b in zip(read(back.policy), read(own), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    again = memtok("bank", "export", path, *WRITE, "--json")
    assert again.code == 0 and "already done" in again.err
    told = json.loads(again.out)
    assert (told["path"], told["bytes"], told["segment"]) == (OUT, len(written), 16)
    assert Path(OUT).read_bytes() == written
    other = trained(tmp_path / "other", f"rmt.policy={policy}", "seed=5")
    assert memtok("bank", "export", other, *WRITE).code == 0 and Path(OUT).read_bytes() != written


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["export", "PATH", "--to", "hf", "--out", OUT], 2, "--to official"),
        (["export", "PATH", *WRITE, "--recouple"], 2, "--recouple"),
        (["export", "PATH", *WRITE, "slots=3"], 2, "slots"),
        (["export", "PATH", "--to", "official", "--out", "PATH"], 2, "left alone"),
        (["export", "PATH", "--to", "official", "--out", "notes.txt"], 2, "left alone"),
        (["export", "PATH", "--to", "official", "--out", "no/folder"], 2, "no/folder"),
        (["export", "session", *WRITE], 3, "not a trained recurrent memory"),
        (["remove", "PATH", "x", "--in-place"], 2, "no rows to remove"),
        (["list", "PATH"], 3, "lists no rows"),
    ],
)
def test_what_is_wrong_is_said(memtok: Memtok, tmp_path: Path, argv: list[str], code: int, said: str) -> None:
    path = trained(tmp_path / "run")
    Path("notes.txt").write_text("mine")
    read = ("generate", "a", "--memory", path, "--out", "session", "max_new_tokens=0")
    assert memtok(*read).code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    ran = memtok("bank", *(path if word == "PATH" else word for word in argv))
    assert (ran.code, ran.out) == (code, b"") and said in ran.err, ran.err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_learned_gain_has_no_place_there(memtok: Memtok, tmp_path: Path) -> None:
    ran = memtok("bank", "export", str(tiny_rmt.artifact(tmp_path / "run")), *WRITE)
    assert ran.code == 2 and "memory.gain_D" in ran.err and not Path(OUT).exists()


def test_low_rank_parts_have_no_place_there(memtok: Memtok, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    ran = memtok("bank", "export", trained(tmp_path / "run", "rmt.trained=lora"), *WRITE)
    assert ran.code == 2 and "low-rank" in ran.err and not Path(OUT).exists()


@pytest.mark.parametrize(
    "said",
    [
        {"state_norm": "none"},
        {"sink": "bos"},
        {"positions": "zero"},
        {"positions": "offset:9"},
        {"policy": "armt", "gate_z": True},
    ],
)
def test_what_would_come_out_otherwise_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"no place for rmt.{list(said)[-1]}="):
        export.check(Config.model_validate(said))
    export.check(Config(gate_z=True))
    export.check(Config(policy="armt", state_norm="none"))


def test_the_artifact_is_left_as_it_was(memtok: Memtok, tmp_path: Path) -> None:
    path = trained(tmp_path / "run")
    digest = artifact.sha256_of(path)
    memtok("bank", "export", path, *WRITE)
    assert artifact.sha256_of(path) == digest
