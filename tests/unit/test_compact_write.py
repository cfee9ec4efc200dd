"""From a whole prompt to its memory in two forwards: budgets, what is reported, and the same bytes twice."""

import pytest
import torch
from tiny_prompt import FAMILIES, family, referred, rendered, shots, weights_hash

from memtoken_cli.engine.attend import Read
from memtoken_cli.engine.backbone import hides
from memtoken_cli.methods.compact.config import Config
from memtoken_cli.methods.compact.estimate import MOST, estimate, left_out
from memtoken_cli.methods.compact.reference import asked
from memtoken_cli.methods.compact.write import write

BUDGETS = [
    Config(),
    Config(bias="none"),
    Config(budget="adashare"),
    Config(budget="uniform"),
    Config(budget="uniform", bias="none", dtype="float32"),
    Config(cap=1.5),
]


def written(name, slots, config):
    backbone = family(name)
    full = backbone.prefill(rendered(backbone).ids)
    return full, write(backbone, full, referred(backbone), slots, config)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("config", BUDGETS, ids=lambda c: f"{c.budget}-{c.bias}-{c.cap}")
def test_never_more_than_the_budget(name, config):
    slots, backbone = 20, family(name)
    full, found = written(name, slots, config)
    sizes = [size for kv in found.memory.layers for size in kv.sizes]
    whole = [size for kv in full.layers for size in kv.sizes]
    if config.budget == "uniform":
        assert sizes == [min(slots, size) for size in whole]
    elif config.cap is None:
        assert sum(sizes) == slots * len(sizes)  # a short sliding window leaves its share to the others
    else:
        assert max(sizes) <= config.cap * slots
        assert sum(sizes) == slots * len(sizes) or min(whole) < slots
    for kept, kv, picked in zip(found.memory.layers, full.layers, found.chosen, strict=True):
        assert kept.sizes == tuple(map(len, picked))
        assert kept.k_XD.dtype == getattr(torch, config.dtype)
        if config.bias == "mass":  # otherwise it is folded into the keys
            assert torch.equal(kept.k_XD, kv.take(picked).k_XD.to(kept.k_XD.dtype)), "keys are the prompt's"
        assert (kept.bias_X is not None) == (config.bias == "mass")
        assert (kept.pos_X is not None) == (kv.pos_X is not None)
        assert all(int(head[0]) == 0 for head in picked), "the sink stays"
    assert found.memory.next_position == len(rendered(backbone).ids)


def lost(name, slots, config, most):
    """(the estimate, the same one row at a time), of a memory fitted to `most` of the shots at most."""
    backbone, prompt = family(name), rendered(family(name))
    reference = referred(backbone, most=most)
    full = backbone.prefill(prompt.ids)
    found = write(backbone, full, reference, slots, config)
    told = estimate(backbone, full, found.memory, found.chosen, prompt, shots(), reference)
    left = left_out(prompt, shots(), reference)
    assert not set(left) & set(reference.shots)
    rows = asked(prompt, shots(), left) if left else reference.take(range(MOST))
    kls = []
    for r in range(len(rows.packed.lengths)):
        row = rows.take([r])
        teacher_WV = backbone.run(row.packed, full, row.answers_W, row.hidden_ST).log_softmax(-1)
        hidden = hides(row.hidden_FT, full, found.chosen)
        packing, position_BT = row.packed.packing(backbone.device), row.packed.position_F[None]
        reader = Read(found.memory.layers, packing, position_BT, hidden)
        said_WV = backbone.run_with(row.packed, reader, row.answers_W).log_softmax(-1)
        kls.append((teacher_WV.exp() * (teacher_WV - said_WV)).sum(-1))
    return told, float(torch.cat(kls).mean())


@pytest.mark.parametrize("name", ["gqa", "sliding"])
@pytest.mark.parametrize(("most", "where"), [(4, "held out"), (60, "fitted")])
def test_what_a_memory_loses_is_told_on_other_shots_where_there_are_any(name, most, where):
    (loss, said), naive = lost(name, 20, Config(dtype="float32"), most)
    assert said == where
    assert loss == pytest.approx(naive, abs=2e-4)


def test_the_report_is_what_happened():
    _, found = written("gqa", 20, Config(dtype="float32"))
    assert len(found.report["fit_error"]) == family("gqa").dims.layers
    assert set(found.report["seconds"]) == {"score", "fit"}


@pytest.mark.parametrize("name", ["gqa", "mqa", "sliding"])
def test_the_fit_is_better_than_dropping_the_rest(name):
    """Smaller KL to the whole prompt than the same tokens with the values they had."""
    backbone, reference = family(name), referred(family(name))
    for config in (Config(dtype="float32"), Config(dtype="float32", budget="uniform", bias="none")):
        full, found = written(name, 40, config)
        dropped = [kv.take(picked) for kv, picked in zip(full.layers, found.chosen, strict=True)]
        packing = reference.packed.packing(backbone.device)
        teacher = backbone.run(reference.packed, full, reference.answers_W, reference.hidden_ST)
        wanted, kls = teacher.log_softmax(-1), []
        for layers in (found.memory.layers, tuple(dropped)):
            reader = Read(layers, packing, reference.packed.position_F[None])
            said = backbone.run_with(reference.packed, reader, reference.answers_W).log_softmax(-1)
            kls.append(float((wanted.exp() * (wanted - said)).sum(-1).mean()))
        assert kls[0] < kls[1]


def test_more_slots_lose_less():
    losses = [lost("gqa", slots, Config(dtype="float32"), 60)[0][0] for slots in (10, 60, 382)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-3


@pytest.mark.parametrize("config", BUDGETS[:2] + BUDGETS[4:5], ids=lambda c: f"{c.budget}-{c.bias}")
def test_same_seed_same_bytes_and_frozen_weights(config):
    before = weights_hash(family("gqa"))
    first, again = (written("gqa", 20, config)[1].memory.tensors() for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert weights_hash(family("gqa")) == before
