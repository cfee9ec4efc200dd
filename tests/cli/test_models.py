"""The language model behind a memory: which is loaded, when, and that another one is refused."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cli_fixtures import Memtok

from memtoken_cli import methods
from memtoken_cli.engine import models
from memtoken_cli.io.artifact import read_header

MEMORY = "prompts.memory.safetensors"


@dataclass
class Fake:
    """What the commands ask of a backbone."""

    name: str
    fingerprint: str = "f" * 64
    tokenizer_digest: str = "t" * 64
    dtype: str = "torch.float32"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, toy: None) -> list[tuple[str, str | None, bool]]:
    """The toy method as one that reads a model; the models asked for, in order."""
    import memtok_toy

    monkeypatch.setattr(memtok_toy, "SPEC", replace(memtok_toy.SPEC, needs_model=True))
    methods.discover.cache_clear()
    asked: list[tuple[str, str | None, bool]] = []

    def load(name: str, device: str | None = None, trust_remote_code: bool = False) -> Fake:
        asked.append((name, device, trust_remote_code))
        return Fake(name, fingerprint=("a" if name == "other" else "f") * 64)

    monkeypatch.setattr(models, "load", load)
    return asked


def compress(memtok: Memtok, *more: str) -> None:
    ran = memtok("compress", "prompts.jsonl", "--ratio", "1", "--method", "toy", *more)
    assert ran.code == 0, ran.err


def test_the_model_is_recorded_and_found_again(memtok: Memtok, shots: Path, loaded: list[object]) -> None:
    compress(memtok, "--model", "mine", "--device", "cpu")
    header = read_header(MEMORY)
    assert header.model is not None and header.model.name == "mine"
    assert (header.model.fingerprint, header.model.tokenizer) == ("f" * 64, "t" * 64)
    assert memtok("generate", "card", "--memory", MEMORY, "--trust-remote-code").code == 0
    assert loaded == [("mine", "cpu", False), ("mine", None, True)]


def test_the_default_model_and_a_repeat_loads_none(memtok: Memtok, shots: Path, loaded: list[object]) -> None:
    compress(memtok)
    assert loaded == [("smollm2-135m", None, False)]
    compress(memtok)
    assert len(loaded) == 1


def test_another_model_is_refused(memtok: Memtok, shots: Path, loaded: list[object]) -> None:
    compress(memtok, "--model", "mine")
    ran = memtok("generate", "card", "--memory", MEMORY, "--model", "other")
    assert (ran.code, ran.out) == (3, b"")
    assert "ffffffffffff" in ran.err and "aaaaaaaaaaaa" in ran.err and "hint: --model mine" in ran.err
    assert memtok("generate", "card", "--memory", MEMORY, "--model", "copy").code == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["compress", "missing.jsonl", "--ratio", "2", "--method", "toy"],
        ["compress", "prompts.jsonl", "--ratio", "2", "--method", "toy", "widht=2"],
        ["compress", "prompts.jsonl", "--ratio", "2", "--method", "toy", "--out", "no/m"],
        ["compress", "prompts.jsonl", "--ratio", "2", "--method", "toy", "--dry-run"],
        ["generate", "-", "--memory", MEMORY],
        ["generate", "q", "--memory", MEMORY, "labels=missing.txt"],
        ["evaluate", MEMORY, "--data", "missing.jsonl"],
    ],
)
def test_no_model_is_loaded_before_all_is_checked(
    memtok: Memtok, shots: Path, loaded: list[object], argv: list[str]
) -> None:
    compress(memtok)
    before = len(loaded)
    assert memtok(*argv, stdin='{"no": 1}').code in (0, 2, 3)
    assert len(loaded) == before
