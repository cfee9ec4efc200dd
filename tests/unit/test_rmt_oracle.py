"""Every memory policy against the naive reference of its equations: outputs, states and gradients."""

import pytest
import torch
from rmt_policies import FAMILIES, gradients, made, naive, pieces, rows, run

from memtoken_cli.engine.between import between
from memtoken_cli.methods.rmt.policy import select

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
POLICIES = ("rmt", "static", "prmt", "armt")
POSITIONS = ("contiguous", "pinned", "zero", "offset:9")
LAYOUTS = [
    (policy, mask, positions, align)
    for policy in POLICIES
    for mask in ("causal", "blocks")
    for positions in POSITIONS
    for align in ("left", "right", "center")
    if (policy, positions) != ("armt", "zero")
]
COVERING = LAYOUTS[::7]  # seven shares no factor with the number of layouts in any direction


def close(found, expected, dtype):
    """Absolute, or relative to the largest value of a tensor where that is above one."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.is_floating_point():
            assert a.dtype == dtype
            scale = max(1.0, b.detach().abs().max().item())
            torch.testing.assert_close(a, b, atol=CLOSE[dtype] * scale, rtol=0)


def agree(of):
    dtype, ids = of.backbone.dtype, rows()
    found, expected = run(of, ids), naive(of, ids)
    close(found[0], expected[0], dtype)
    close(found[1], expected[1], dtype)
    mine, theirs = gradients(of, *found), gradients(of, *expected)
    close(mine.values(), theirs.values(), dtype)
    silent = [name for name in of.parameters if not theirs[name].abs().max() > 0]
    assert not silent, "a gradient that is zero proves nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, policy, dtype):
    agree(made(family, dtype, policy=policy))


@pytest.mark.parametrize(("policy", "mask", "positions", "align"), LAYOUTS)
def test_layouts(policy, mask, positions, align):
    agree(made(policy=policy, mask=mask, positions=positions, align=align))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("policy", "mask", "positions", "align"), COVERING)
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_layouts_of_families(family, policy, mask, positions, align, dtype):
    agree(made(family, dtype, policy=policy, mask=mask, positions=positions, align=align))


def test_the_covering_sample_covers():
    for place in range(4):
        assert {x[place] for x in COVERING} == {x[place] for x in LAYOUTS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {"policy": "rmt", "state_norm": "final"},
        {"policy": "rmt", "state_norm": "none"},
        {"policy": "prmt", "state_norm": "final"},
        {"policy": "prmt", "state_norm": "none"},
        {"policy": "armt", "normalise": False, "slots": 3},
        {"policy": "armt", "gate_z": True},
        {"policy": "rmt", "slots": 1, "segment": 1},
        {"policy": "armt", "slots": 1, "segment": 1},
    ],
    ids=lambda x: "-".join(map(str, x.values())),
)
def test_options(options, dtype):
    agree(made("qwen2", dtype, **options))


@pytest.mark.parametrize(("chunk", "mask"), [(1, "causal"), (3, "blocks")])
@pytest.mark.parametrize("positions", ["contiguous", "pinned"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_piece_by_piece(family, policy, mask, positions, chunk):
    """open, feed, close: the same logits and the same state through a cache."""
    of = made(family, policy=policy, mask=mask, positions=positions)
    ids = rows((12, 12), seed=3)
    expected, last = naive(of, ids)
    table, state, logits = torch.tensor(ids), of.policy.start(2), []
    for start in range(0, 12, of.policy.size):
        opened = of.policy.open(state, 2)
        part = table[:, start : start + of.policy.size]
        logits += [of.policy.feed(opened, x) for x in part.split(chunk, 1)]
        state = of.policy.close(opened)
    close(torch.cat(logits, 1), torch.stack(expected), torch.float32)
    close(state, last, torch.float32)
    assert torch.equal(select(state, [1])[0][0], state[0][1])


def naive_xl(of, ids):
    """(logits of a row, the inputs of every layer at the last C positions): no empty columns anywhere."""
    C, model, logits = of.config.slots, of.backbone.model, []
    kept = [torch.zeros(0, of.backbone.dims.width, dtype=of.backbone.dtype)] * of.backbone.dims.layers

    def enter(layer, h):
        text = h[0, len(kept[layer]) :]
        both = torch.cat([kept[layer], text])
        new.append(both[-C:].detach())
        return both[None]

    for piece in pieces(ids, of.config.segment, of.config.align):
        new, c = [], len(kept[0])
        text = model.get_input_embeddings()(torch.tensor(piece))
        x, T = torch.cat([torch.zeros(c, text.shape[1], dtype=text.dtype), text])[None], c + len(piece)
        mask = torch.full((1, 1, T, T), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        place = torch.arange(C - c, C + len(piece))[None]
        with between(of.backbone.layers, enter):
            out = model(inputs_embeds=x, position_ids=place, attention_mask=mask, use_cache=False)
        logits.append(out.logits[0, c:])
        kept = new
    return torch.cat(logits), torch.stack(kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slots", [3, 6, 9])
@pytest.mark.parametrize("align", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_xl(family, align, slots, dtype):
    """With fewer, more and many more cached positions than a segment has tokens."""
    of, ids = made(family, dtype, policy="xl", slots=slots, align=align), rows()
    logits, (inputs, filled) = run(of, ids)
    expected = [naive_xl(of, row) for row in ids]
    close(logits, [x for x, _ in expected], dtype)
    assert filled.tolist() == [min(len(row), slots) for row in ids]
    for row, (_, kept) in enumerate(expected):
        close([inputs[row, :, slots - kept.shape[1] :]], [kept], dtype)
    mine, theirs = (gradients(of, x, ()) for x in (logits, [x for x, _ in expected]))
    close(mine.values(), theirs.values(), dtype)
