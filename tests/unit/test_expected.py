"""Expected attention: its queries before rotation, the mean rotation and its scores, against plain versions
that know the model's inside, and against attention itself."""

import pytest
import torch
from tiny_prompt import FAMILIES, family, rendered, shots
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from memtoken_cli.data.render import Template
from memtoken_cli.engine.contest import context
from memtoken_cli.engine.expected import (
    EPSILON,
    FUTURE,
    SINKS,
    Queries,
    ahead,
    expected_attention,
    score,
    statistics,
)
from memtoken_cli.engine.memory import LayerKV
from memtoken_cli.engine.rivals import RIVALS, SAFE
from memtoken_cli.engine.turn import Turning

ROTARY = [name for name in FAMILIES if name != "learned-positions"]


def inside(backbone, ids):
    """Queries before rotation [H,T,D] a layer, noted where the model makes them in its own forward."""
    H, found, hooks = backbone.dims.heads, [], []

    def note(_module, _args, out):
        if out.dim() == 4:  # a norm over heads
            found.append(out[0])
            return
        q = out[0, :, : backbone.dims.width] if backbone.model.config.model_type == "gpt2" else out[0]
        found.append(q.reshape(len(ids), H, -1).transpose(0, 1))

    for layer in backbone.layers:
        if backbone.model.config.model_type == "gpt2":
            hooks.append(layer.attn.c_attn.register_forward_hook(note))
        else:
            attention = layer.self_attn
            last = attention.q_norm if "q_norm" in dict(attention.named_children()) else attention.q_proj
            hooks.append(last.register_forward_hook(note))
    with torch.no_grad():
        backbone.model(torch.tensor([list(ids)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_queries_before_rotation_are_the_models(name):
    backbone = family(name)
    ids = rendered(backbone).ids
    theirs = inside(backbone, ids)
    if name == "sinks":  # its rotation also scales, which stays
        theirs = [q * backbone.model.model.rotary_emb.attention_scaling for q in theirs]
    for ours, q_HTD in zip(statistics(backbone, ids, name in ROTARY), theirs, strict=True):
        for h, q_TD in enumerate(q_HTD[:, SINKS:].double()):
            torch.testing.assert_close(ours.mean_HD[h].double(), q_TD.mean(0), atol=1e-5, rtol=1e-4)
            cov_DD = torch.cov(q_TD.T, correction=0)
            torch.testing.assert_close(ours.cov_HDD[h].double(), cov_DD, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["gqa", "qkv-bias"])
def test_the_mean_rotation_is_the_models(name):
    backbone, t = family(name), 37
    x_1TD = torch.randn(1, FUTURE, backbone.dims.head_dim, generator=torch.Generator().manual_seed(0))
    x_1TD[:] = x_1TD[:, :1].clone()
    cos, sin = backbone.model.model.rotary_emb(x_1TD, torch.arange(t, t + FUTURE)[None])
    turned, _ = apply_rotary_pos_emb(x_1TD[:, None], x_1TD[:, None], cos, sin)
    turning = Turning.of(backbone, FUTURE, FUTURE)
    for mean_DD in ahead(turning, t):
        torch.testing.assert_close((x_1TD[0, 0] @ mean_DD.float()), turned[0, 0].mean(0), atol=1e-4, rtol=0)


def naive(backbone, ids, number, n, h):
    """exp(mu k + k'Sk/2) over its sum for query head h and key/value head n of a Llama, one key at a time."""
    t, layer = len(ids), backbone.layers[number].self_attn
    q_TD = inside(backbone, ids)[number][h, SINKS:]
    cos, sin = backbone.model.model.rotary_emb(q_TD[None], torch.arange(t, t + FUTURE)[None])
    eye = torch.eye(q_TD.shape[1])[None, :, None].expand(-1, -1, FUTURE, -1)
    turned, _ = apply_rotary_pos_emb(eye, eye, cos, sin)
    R_DD = turned[0].mean(1).double()  # unit vectors in rows, turned
    mu_D = q_TD.double().mean(0) @ R_DD
    S_DD = R_DD.T @ torch.cov(q_TD.double().T, correction=0) @ R_DD
    keys = list(backbone.prefill(ids).layers[number].heads())[n][0].double()[SINKS:]
    logits = [layer.scaling * k @ mu_D + layer.scaling**2 * (k @ S_DD @ k) / 2 for k in keys]
    return torch.stack(logits).softmax(0)


@pytest.mark.parametrize("name", ["gqa", "mqa", "qkv-bias"])
def test_scores_are_the_plain_ones(name):
    backbone = family(name)
    ids = rendered(backbone).ids
    memory = backbone.prefill(ids)
    G = backbone.dims.heads // backbone.dims.kv_heads
    for number, score_NM in enumerate(expected_attention(backbone, memory, ids)):
        for n, (_, v_MD, *_) in enumerate(memory.layers[number].heads()):
            share = sum(naive(backbone, ids, number, n, n * G + g) for g in range(G)) / G
            wanted = (share + EPSILON) * v_MD[SINKS:].double().norm(dim=1)
            torch.testing.assert_close(score_NM[n, SINKS:].double(), wanted, atol=1e-6, rtol=2e-3)
            assert score_NM[n, :SINKS].min() > score_NM[:, SINKS:].max()


@pytest.mark.parametrize("sink", [None, 1.5])
def test_the_closed_form_is_the_mean_over_many_queries(sink):
    """E exp(q k) by drawing queries from the Gaussian that the closed form assumes."""
    generator = torch.Generator().manual_seed(0)
    M, D, scaling = 9, 4, 0.3
    k, v = torch.randn(2 * M, D, generator=generator), torch.randn(2 * M, D, generator=generator)
    mean, half = torch.randn(4, D, generator=generator), torch.randn(4, D, D, generator=generator) / 2
    sinks = None if sink is None else torch.full((4,), sink)
    queries = Queries(mean, half @ half.transpose(1, 2), scaling, sinks)
    found = score(LayerKV(k, v, (M, M)), queries)
    drawn = mean[:, None] + torch.randn(4, 400_000, D, generator=generator) @ half.transpose(1, 2)
    for n in range(2):
        k_MD, v_MD = k.view(2, M, D)[n, SINKS:], v.view(2, M, D)[n, SINKS:]
        z_GM = (drawn[2 * n : 2 * n + 2] @ k_MD.T * scaling).exp().mean(1)
        rest = z_GM.sum(1, keepdim=True) + (0 if sink is None else torch.tensor(sink).exp())
        wanted = ((z_GM / rest).mean(0) + EPSILON) * v_MD.norm(dim=1)
        torch.testing.assert_close(found[n, SINKS:], wanted, rtol=2e-2, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_head_keeps_its_safe_share_and_the_layer_its_budget(name):
    ctx = context(family(name), shots(), Template())
    memory = RIVALS["expected"].make(ctx, 40).memory
    for kv, whole in zip(memory.layers, ctx.full.layers, strict=True):
        slots = min(40, whole.sizes[0])
        assert sum(kv.sizes) == slots * len(kv.sizes)
        assert min(kv.sizes) >= int(SAFE * slots)
        assert torch.isfinite(kv.k_XD).all()
    assert name != "mha" or not all(kv.uniform for kv in memory.layers), "the rest goes where it counts"


def test_a_prompt_of_sinks_alone_is_kept():
    backbone = family("gqa")
    ids = rendered(backbone).ids[:SINKS]
    assert [x.shape for x in expected_attention(backbone, backbone.prefill(ids), ids)] == [(2, SINKS)] * 2
