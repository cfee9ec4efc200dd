"""Baselines: their budgets, and their scores against attention weights that the model itself gives out."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2

from memtoken_cli.data.render import Template, render
from memtoken_cli.data.shots import Shot, Shots
from memtoken_cli.engine.contest import context
from memtoken_cli.engine.rivals import POOL, RIVALS, WINDOW, rivals
from memtoken_cli.engine.watch import context_attention, repeat_attention, watch
from memtoken_cli.io.errors import UsageError

SHOTS = Shots([Shot(f"text {i}", ("ab", "cd", "e")[i % 3], i) for i in range(12)], "pairs", "x", "")
EVICTIONS = ("random", "uniform", "knorm", "snapkv", "h2o", "kvzip", "expected")
FAMILIES = [tiny_llama, tiny_qwen2, tiny_gemma3, tiny_gpt2]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def ctx(request):
    return context(request.param(), SHOTS, Template())


@pytest.fixture(scope="module")
def llama():
    return context(tiny_llama(), SHOTS, Template())


def weights(backbone, ids, first=0):
    """Attention weights [H,T,T] a layer, by the model's own eager attention."""
    backbone.model.set_attn_implementation("eager")
    out = backbone.model(torch.tensor([list(ids)]), output_attentions=True, use_cache=False)
    backbone.model.set_attn_implementation("sdpa")
    return [a[0, :, first:] for a in out.attentions]


def kept(memory, whole, layer, head):
    """Indices of the whole memory's tokens that a head kept."""
    ours = memory.layers[layer].k_XD.split(memory.layers[layer].sizes)[head]
    theirs = whole.layers[layer].k_XD.split(whole.layers[layer].sizes)[head]
    return [int((theirs == key).all(1).nonzero()[0, 0]) for key in ours]


@pytest.mark.parametrize("name", EVICTIONS)
def test_budget_sink_and_position(ctx, name):
    slots = ctx.tokens // 4
    memory = RIVALS[name].make(ctx, slots).memory
    assert memory.next_position == ctx.tokens
    budget = [min(slots, kv.sizes[0]) * len(kv.sizes) for kv in ctx.full.layers]
    assert sum(sum(kv.sizes) for kv in memory.layers) == sum(budget)
    if name != "kvzip":
        assert [sum(kv.sizes) for kv in memory.layers] == budget
        assert all(kv.uniform for kv in memory.layers) or name == "expected"
    for layer in range(len(memory.layers)):
        for head in range(len(memory.layers[layer].sizes)):
            found = kept(memory, ctx.full, layer, head)
            assert found == sorted(set(found))
            assert 0 in found or ctx.backbone.dims.windows[layer] is not None


@pytest.mark.parametrize("name", EVICTIONS)
def test_a_budget_of_everything_keeps_everything(llama, name):
    memory = RIVALS[name].make(llama, llama.tokens).memory
    for kept_kv, kv in zip(memory.layers, llama.full.layers, strict=True):
        assert torch.equal(kept_kv.k_XD, kv.k_XD)
        assert torch.equal(kept_kv.v_XD, kv.v_XD)


def test_watched_context_is_the_models_own_attention(ctx):
    def add(total_NS, weight_NGCS, first):
        total_NS += weight_NGCS.sum((1, 2))

    found = context_attention(ctx.backbone, ctx.rendered.ids, add)
    for total_NS, weight_HTT in zip(found, weights(ctx.backbone, ctx.rendered.ids), strict=True):
        N = len(total_NS)
        expected = weight_HTT.sum(1).view(N, -1, ctx.tokens).sum(1)
        torch.testing.assert_close(total_NS, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_gpt2])
def test_watched_repetition_is_the_models_own_attention(make):
    backbone = make()
    ids, ask = backbone.tokenizer.encode("Input: abc\nOutput: d\n\n"), [7, 8, 9]
    found = repeat_attention(backbone, backbone.prefill(ids), ids, ask)
    attention = weights(backbone, [*ids, *ask, *ids], first=len(ids))
    for best_NM, weight_HTS in zip(found, attention, strict=True):
        expected = weight_HTS[..., : len(ids)].amax(1).view(len(best_NM), -1, len(ids)).amax(1)
        torch.testing.assert_close(best_NM, expected, atol=1e-5, rtol=1e-4)


def test_a_window_hides_memory_from_what_is_read_later():
    backbone = tiny_gemma3(window=8)
    ids, more = list(range(4, 24)), list(range(30, 42))

    def add(total_NS, weight_NGCS, first):
        total_NS += weight_NGCS.sum((1, 2))

    found = watch(backbone, more, backbone.prefill(ids), add)
    attention = weights(backbone, [*ids, *more], first=len(ids))
    for total_NS, weight_HTS in zip(found, attention, strict=True):
        expected = weight_HTS.sum(1).view(2, 2, -1).sum(1)[:, -total_NS.shape[1] :]
        torch.testing.assert_close(total_NS, expected, atol=1e-5, rtol=1e-4)


def test_repetition_in_chunks_where_the_context_is_short():
    backbone = tiny_gpt2(context=64)
    ids = list(range(4, 44))
    found = repeat_attention(backbone, backbone.prefill(ids), ids, [7, 8])
    assert [x.shape for x in found] == [(4, 40)] * 2
    assert all((x > 0).all() for x in found)


def test_knorm_keeps_the_smallest_keys(llama):
    memory = RIVALS["knorm"].make(llama, 20).memory
    keys = llama.full.layers[1].k_XD.view(2, llama.tokens, -1)[1]
    smallest = keys[1:].norm(dim=1).argsort()[:19] + 1
    assert kept(memory, llama.full, 1, 1) == [0, *sorted(smallest.tolist())]


def test_h2o_is_half_recent_half_heavy(llama):
    memory = RIVALS["h2o"].make(llama, 20).memory
    received = weights(llama.backbone, llama.rendered.ids)[0][:2].sum((0, 1))
    T = llama.tokens
    heavy = received[1 : T - 10].argsort(descending=True)[:9] + 1
    assert kept(memory, llama.full, 0, 0) == [0, *sorted(heavy.tolist()), *range(T - 10, T)]


def test_snapkv_pools_what_the_last_window_looks_at(llama):
    slots, T = 80, llama.tokens
    memory = RIVALS["snapkv"].make(llama, slots).memory
    seen = weights(llama.backbone, llama.rendered.ids)[0][2:, T - WINDOW :].sum((0, 1))
    pooled = torch.stack([seen[max(0, j - POOL // 2) : j + POOL // 2 + 1].max() for j in range(T)])
    found = kept(memory, llama.full, 0, 1)
    assert found[0] == 0
    assert found[-WINDOW:] == list(range(T - WINDOW, T))
    chosen, left = found[1:-WINDOW], set(range(1, T - WINDOW)) - set(found)
    assert pooled[chosen].min() >= pooled[sorted(left)].max() - 1e-6


def test_kvzip_spends_its_budget_where_attention_is(llama):
    memory = RIVALS["kvzip"].make(llama, llama.tokens // 4).memory
    assert len({size for kv in memory.layers for size in kv.sizes}) > 1


def test_random_is_seeded(llama):
    def draw(seed):
        return kept(RIVALS["random"].make(replace(llama, seed=seed), 20).memory, llama.full, 0, 0)

    assert draw(1) == draw(1) != draw(2)


def test_uniform_is_evenly_spaced(llama):
    found = kept(RIVALS["uniform"].make(llama, 11).memory, llama.full, 1, 0)
    gaps = [b - a for a, b in pairwise(found)]
    assert (found[0], found[-1]) == (0, llama.tokens - 1)
    assert max(gaps) - min(gaps) <= 1


def test_fewer_is_as_many_balanced_shots_as_fit(llama):
    one = llama.rendered.spans[0].end - llama.rendered.spans[0].start
    made = RIVALS["fewer"].make(llama, llama.rendered.head + 3 * one + 4)
    chosen = made.about["shots"]
    assert sorted(SHOTS.items[i].output for i in chosen) == ["ab", "cd", "e"]
    some = Shots([SHOTS.items[i] for i in chosen], "pairs", "x", "")
    ids = render(some, Template(), llama.backbone.tokenizer).ids
    assert made.memory.next_position == len(ids) == made.memory.slots
    assert torch.equal(made.memory.layers[0].k_XD, llama.backbone.prefill(ids).layers[0].k_XD)


def test_fewer_without_room_for_a_shot_is_none(llama):
    made = RIVALS["fewer"].make(llama, 5)
    assert made.about["shots"] == []
    assert made.memory.next_position == llama.rendered.head == 1


def test_none_without_a_head_is_empty():
    assert RIVALS["none"].make(context(tiny_qwen2(), SHOTS, Template()), 9).memory.slots == 0


def test_an_unknown_baseline_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean snapkv"):
        rivals(["none", "snapvk"])
