"""New backbones: every family from a recipe's section, a tokenizer of whole words, and a first training."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memtoken_cli.engine import fresh
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.fresh import Lesson, Pretraining, new_backbone
from memtoken_cli.engine.task import At
from memtoken_cli.io.errors import UsageError
from memtoken_cli.recipe.sections import NewModel, TrainSection

VOCABULARY = ("<pad>", "<unk>", "<s>", "</s>", "one", "two", "three", ";")


def size(**changed: object) -> NewModel:
    small = {"new": "llama", "layers": 2, "width": 16, "heads": 2, "context": 32}
    return NewModel.model_validate(small | changed)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_every_family(family: str, tmp_path: Path) -> None:
    backbone = new_backbone(size(new=family), VOCABULARY, 0)
    dims = backbone.dims
    assert (dims.layers, dims.heads, dims.width, dims.vocab, dims.context) == (2, 2, 16, 8, 32)
    assert dims.windows == (None, None)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    folder = fresh.save(backbone, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("two one ; nine", return_tensors="pt").input_ids
    assert ids.tolist() == [[2, 5, 4, 7, 1]]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, backbone.model(ids).logits)


def test_sizes_and_seeds() -> None:
    grouped = new_backbone(size(kv_heads=1, ffn=24, vocab=11), VOCABULARY, 0)
    assert (grouped.dims.kv_heads, grouped.dims.vocab) == (1, 11)
    assert grouped.model.model.layers[0].mlp.up_proj.weight.shape == (24, 16)
    assert new_backbone(size(), VOCABULARY, 0).fingerprint == new_backbone(size(), VOCABULARY, 0).fingerprint
    assert new_backbone(size(), VOCABULARY, 0).fingerprint != new_backbone(size(), VOCABULARY, 1).fingerprint
    with pytest.raises(UsageError, match="no room for the task's 8 words"):
        new_backbone(size(vocab=5), VOCABULARY, 0)


def test_new_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_backbone(size(), VOCABULARY, 0)
    assert torch.equal(torch.rand(3), expected)


def lessons(at: At, generator: torch.Generator) -> Lesson:
    """After `one` comes `two`, after `two` comes `three`, ...: a count that goes round."""
    start = torch.randint(3, (4, 1), generator=generator)
    ids = (start + torch.arange(6)) % 3 + 4
    return Lesson(ids[:, :-1], torch.arange(5), ids[:, 1:])


def test_pretraining_learns_and_moves_every_parameter(tmp_path: Path) -> None:
    backbone = new_backbone(size(), VOCABULARY, 0)
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    task = Pretraining.of(backbone, lessons, TrainSection(steps=40, lr=1e-2))
    with run_dir(tmp_path / "run", "recipe: 1\n") as rundir:
        last = fit(task, rundir, log_every=10).last
    assert last["loss"] < 0.3 < math.log(8) and last["accuracy"] > 0.9
    assert all(not torch.equal(before[n], p) for n, p in backbone.model.named_parameters())


def test_the_loss_counts_the_wanted_columns_only() -> None:
    backbone = new_backbone(size(), VOCABULARY, 0)
    task = Pretraining.of(backbone, lessons, TrainSection(steps=1))
    ids = torch.tensor([[3, 4, 5, 3]])
    loss = task.loss(Lesson(ids, torch.tensor([1, 3]), torch.tensor([[5, 4]])))
    logits = backbone.model(ids).logits[0].log_softmax(-1)
    assert loss.count == 2
    torch.testing.assert_close(loss.total, -(logits[1, 5] + logits[3, 4]))
