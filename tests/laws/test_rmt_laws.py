"""Recurrent memory under the engine's laws: none of it is the backbone, its read block is a prefix, frozen
stays frozen, what is trained moves, files keep it."""

import hashlib
from pathlib import Path

import pytest
import torch
from rmt_policies import FAMILIES, gentle, made, rows, run
from tiny import save as save_model
from tiny import tiny_gpt2, tiny_llama

from memtoken_cli.engine import seeds
from memtoken_cli.engine.adam import Adam
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.packed import Packed
from memtoken_cli.engine.task import At
from memtoken_cli.methods.rmt.model_file import open_model, save
from memtoken_cli.methods.rmt.run import Bench, built, learning
from memtoken_cli.recipe.schema import Recipe, parse

RECIPE = """
method: rmt
model: {new: llama, layers: 2, width: 16, heads: 2, context: 64}
task: {name: copy, length: 6}
rmt: {slots: 2, segment: 6, d_mem: 8}
curriculum: {start: 4, step: 2, mix: 1}
train: {steps: 2, batch: 4}
"""
every = pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "static"])
recurrent = pytest.mark.parametrize("policy", ["rmt", "prmt", "armt"])


def recipe(*overrides: str) -> Recipe:
    return parse(RECIPE, "tiny.yaml", overrides)


def weights(backbone: CausalLM) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode() + x.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("policy", [{"policy": "rmt"}, {"policy": "none"}])
@pytest.mark.parametrize("mask", ["causal", "blocks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_law_1_no_memory_and_one_segment_are_the_backbone(family, mask, policy):
    of = made(family, **policy, mask=mask, slots=0, segment=8)
    ids = torch.tensor(rows((8, 8, 8)))
    count, wanted = torch.full((3,), 8), torch.arange(8)
    with torch.no_grad():
        logits, state = of.policy.segment(ids, count, of.policy.start(3), wanted)
        expected = of.backbone.model(input_ids=ids, use_cache=False).logits
        assert torch.equal(logits, expected)
        opened = of.policy.open(of.policy.start(3), 3)
        torch.testing.assert_close(of.policy.feed(opened, ids), expected, atol=1e-5, rtol=1e-5)
    assert state == ()


@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny_llama(kv_heads=1), tiny_gpt2])
@pytest.mark.parametrize("mask", ["causal", "blocks"])
def test_law_4_an_open_segment_is_a_memory_of_layers(make, mask):
    """The read block's own keys and values: what `prefill_embeds` makes of it; a pack reads them as well."""
    of = made(gentle(make()), mask=mask, slots=3)
    memory, ids = of.parameters["memory.init_MD"].detach(), rows((4,))[0]
    with torch.no_grad():
        opened = of.policy.open(of.policy.start(1), 1)
        layers = of.backbone.kept(opened.cache, 3)
        if mask == "causal":
            for kv, own in zip(of.backbone.prefill_embeds(memory).layers, layers.layers, strict=True):
                torch.testing.assert_close(own.k_XD, kv.k_XD, atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(own.v_XD, kv.v_XD, atol=1e-6, rtol=1e-5)
        read = of.backbone.run(Packed.rows([ids], layers.next_position), layers, torch.arange(4))
        fed = of.policy.feed(opened, torch.tensor([ids]))
        whole, _ = of.policy.segment(
            torch.tensor([ids]), torch.tensor([4]), of.policy.start(1), torch.arange(4)
        )
    assert layers.next_position == 3 and layers.slots == 3
    torch.testing.assert_close(read, fed[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read, whole[0], atol=1e-5, rtol=1e-5)


def trained_on(said: Recipe, folder: Path | None = None) -> tuple[Bench, str, set[str], set[str]]:
    """Two steps of a recipe by the trainer's optimiser: the bench, the hash before them, and which trainable
    parameters had a gradient in the first step, and in either."""
    bench = built(said, "cpu")
    before = weights(bench.backbone)
    task = learning(said, bench)
    found: list[set[str]] = []
    for parameter in task.parameters.values():
        parameter.requires_grad_(True)
    adam = Adam(
        task.parameters, {n: p.detach().clone() for n, p in task.parameters.items()}, 0.0, (0.9, 0.99)
    )
    for step in range(2):
        at = At(step + 1, "train", step, 2)
        task.loss(task.batch(at, seeds.generator(step))).total.backward()
        gradients = {n: p.grad for n, p in task.parameters.items() if p.grad is not None}
        found.append({n for n, g in gradients.items() if bool(g.abs().sum() > 0)})
        adam.step(gradients, 1e-2)
        for parameter in task.parameters.values():
            parameter.grad = None
    assert task.parameters.keys() == found[0] | found[1]
    return bench, before, found[0], found[0] | found[1]


def on_disk(folder: Path, *overrides: str) -> Recipe:
    """A recipe whose backbone is a model in a folder."""
    saved = save_model(tiny_llama(), folder / "model")
    new = "{new: llama, layers: 2, width: 16, heads: 2, context: 64}"
    return parse(RECIPE.replace(new, f"{{name: {saved}}}"), "tiny.yaml", overrides)


@every
def test_law_7_the_backbone_stays_frozen_and_its_memory_moves(policy, tmp_path):
    bench, before, first, both = trained_on(on_disk(tmp_path, f"rmt.policy={policy}", "rmt.trained=memory"))
    assert weights(bench.backbone) == before
    assert all(p.grad is None for p in bench.backbone.model.parameters())
    assert both == bench.policy.parameters().keys()
    if policy == "armt":
        assert first == {"armt.0.v", "armt.1.v"}, "W_v = 0 hides all others in the first step"
    else:
        assert first == both


@every
def test_law_7_all_of_a_model_moves(policy):
    bench, before, _, both = trained_on(recipe(f"rmt.policy={policy}"))
    assert weights(bench.backbone) != before
    assert both >= {f"weights.{name}" for name, _ in bench.backbone.model.named_parameters()}


@recurrent
def test_law_7_low_rank_parts_move_and_the_rest_is_frozen(policy, tmp_path):
    pytest.importorskip("peft")
    said = on_disk(tmp_path, f"rmt.policy={policy}", "rmt.trained=lora", "rmt.rank=2")
    frozen = {name: x.clone() for name, x in built(said, "cpu").backbone.model.state_dict().items()}
    bench, _, _, both = trained_on(said)
    after = bench.backbone.model.state_dict()
    held = {name.replace(".base_layer.", "."): x for name, x in after.items() if "lora_" not in name}
    assert held.keys() == frozen.keys()
    assert all(torch.equal(held[name], x) for name, x in frozen.items())
    assert len([name for name in both if name.startswith("lora.")]) == 2 * 7 * 2


@recurrent
def test_law_6_a_file_keeps_everything(policy, tmp_path):
    said = recipe(f"rmt.policy={policy}")
    bench, *_ = trained_on(said)
    parameters = learning(said, bench).parameters
    save(tmp_path / "memory.safetensors", bench.backbone, bench.policy, parameters, said, {})
    opened = open_model(tmp_path / "memory.safetensors", "cpu")
    assert weights(opened.backbone) == weights(bench.backbone)
    for name, x in bench.policy.parameters().items():
        assert torch.equal(opened.policy.parameters()[name], x), name
    ids, count, wanted = torch.tensor(rows((6, 6))) % 12, torch.tensor([6, 3]), torch.arange(6)
    found = []
    for parameter in parameters.values():
        parameter.requires_grad_(False)  # products of matrices that train are rounded in another order
    with torch.no_grad():
        for policy_ in (bench.policy, opened.policy):
            policy_.training = False
            state = policy_.segment(ids, count, policy_.start(2), None)[1]
            found.append(policy_.segment(ids, count, state, wanted)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("mask", ["causal", "blocks"])
def test_law_10_prmt_of_one_layer_is_rmt(mask):
    """Norms of the state off: what the last layer makes is what the only layer makes."""
    backbone = gentle(tiny_llama(layers=1))
    one, two = (made(backbone, policy=p, mask=mask, state_norm="none") for p in ("prmt", "rmt"))
    two.parameters["memory.init_MD"].data = one.parameters["memory.init_LMD"].data[0].clone()
    (layer_logits, (layer_state,)), (logits, (state,)) = (run(of, rows()) for of in (one, two))
    for a, b in zip([*layer_logits, layer_state[:, 0]], [*logits, state], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
