"""Reading a memory, three ways: `attend` by the fused kernel, `naive` in plain softmax, and a loop over
every query and key in float64 that says what both mean. Outputs and gradients.
"""

import itertools
import math

import pytest
import torch

from memtoken_cli.engine.attend import Packing, Site, attend, naive
from memtoken_cli.engine.memory import LayerKV
from memtoken_cli.engine.packed import Packed

N, D, WINDOW = 2, 8, 6
LENGTHS = (3, 5, 1, 4)
START = 9  # where queries begin: the memory lies before


def tree(T: int) -> torch.Tensor:
    """[B,T,T]: causal, but the third token does not see the second, as siblings of a tree do not."""
    mask = torch.ones(T, T, dtype=torch.bool).tril().expand(len(LENGTHS), -1, -1).clone()
    mask[:, 2:4, 1] = False
    return mask


def packing(trees: bool) -> tuple[Packing, torch.Tensor]:
    rows = Packed.rows([[0] * n for n in LENGTHS], START)
    rows.mask_BTT = tree(max(LENGTHS)) if trees else None
    return rows.packing(torch.device("cpu")), rows.position_F[None]


def site(packed=True, G=2, trees=False, window=None, softcap=None, sinks=False, rows=1, seed=0) -> Site:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    if packed:
        pack, position_BT = packing(trees)
        mask, B, T, U = None, 1, sum(LENGTHS), sum(LENGTHS)
    else:
        pack, B, T, U = None, rows, 4, 7
        position_BT = torch.arange(START, START + T).expand(B, T)
        mask = torch.ones(T, U, dtype=torch.bool).tril(U - T).expand(B, T, U).clone()
        mask[-1, :, 0] = False  # left padding
    sink_H = draw(N * G) if sinks else None
    q, k, v = draw(B, N * G, T, D), draw(B, N, U, D), draw(B, N, U, D)
    return Site(1, torch.nn.Identity(), q, k, v, mask, 0.4, softcap, window, sink_H, position_BT, pack)


def memory(sizes=(5, 2), bias=True, pos=False, seed=1) -> LayerKV:
    generator = torch.Generator().manual_seed(seed)
    k_XD, v_XD = (torch.randn(sum(sizes), D, generator=generator).requires_grad_() for _ in "kv")
    bias_X = torch.randn(sum(sizes), generator=generator).requires_grad_() if bias else None
    pos_X = torch.cat([torch.arange(m) * 2 for m in sizes]).int() if pos else None
    return LayerKV(k_XD, v_XD, tuple(sizes), bias_X, pos_X)


def hidden(layer: int, head: int, start: int, stop: int) -> torch.Tensor:
    """Every third pairing, another pattern in each head; never a query's whole memory."""
    size = (5, 2)[head]
    place = torch.arange(start, stop)[:, None] + torch.arange(size)[None]
    return (place + head + layer) % 3 == 0


def loop(s: Site, kv: LayerKV, hides=None) -> torch.Tensor:
    """What attention over a memory is: one query, one head at a time."""
    B, H, T, _ = s.q_BHTD.shape
    G, out = H // N, torch.zeros(B, T, H, D, dtype=torch.float64)
    heads = list(kv.heads())
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        flat, q = b * T + t, s.q_BHTD[b, h, t].double()
        k_MD, v_MD, bias_M, pos_M = heads[h // G]
        logits, values = [], []

        def weigh(key, value, bias=0.0, q=q, logits=logits, values=values):
            logit = float(q @ key.double()) * s.scaling
            logits.append((logit if s.softcap is None else s.softcap * math.tanh(logit / s.softcap)) + bias)
            values.append(value.double())

        at = int(s.position_F[flat])
        for m in range(len(k_MD)):
            if hides is not None and hides(s.layer, h // G, flat, flat + 1)[0, m]:
                continue
            if s.window is not None and pos_M is not None and at - int(pos_M[m]) >= s.window:
                continue
            weigh(k_MD[m], v_MD[m], 0.0 if bias_M is None else float(bias_M[m]))
        for u in range(s.k_BNUD.shape[2]):
            if s.packing is None:
                seen = bool(s.mask_BTU[b, t, u])
            else:
                p = s.packing
                same_row = int(p.rows_F[u]) == int(p.rows_F[t])
                mask_TT = p.mask_BTT.expand(len(LENGTHS), -1, -1)[p.rows_F[t]]
                seen = same_row and bool(mask_TT[p.cols_F[t], p.cols_F[u]])
                seen = seen and (s.window is None or at - int(s.position_F[u]) < s.window)
            if seen:
                weigh(s.k_BNUD[b, h // G, u], s.v_BNUD[b, h // G, u])
        if s.sink_H is not None:
            logits.append(float(s.sink_H[h]))
            values.append(torch.zeros(D, dtype=torch.float64))
        weight = torch.tensor(logits, dtype=torch.float64).softmax(0)
        out[b, t, h] = (weight[:, None] * torch.stack(values)).sum(0)
    return out


def leaves(s: Site, kv: LayerKV) -> list[torch.Tensor]:
    named = [s.q_BHTD, s.k_BNUD, s.v_BNUD, kv.k_XD, kv.v_XD, kv.bias_X, s.sink_H]
    return [x for x in named if x is not None]


CASES = {
    "packed": ({}, {}, None),
    "trees": ({"trees": True}, {}, None),
    "one row": ({"packed": False}, {}, None),
    "rows": ({"packed": False, "rows": 3}, {}, None),
    "no bias": ({}, {"bias": False}, None),
    "uniform": ({}, {"bias": False, "sizes": (4, 4)}, None),
    "uniform, bias": ({}, {"sizes": (4, 4)}, None),
    "empty head": ({}, {"sizes": (5, 0)}, None),
    "empty": ({}, {"sizes": (0, 0), "bias": False}, None),
    "hidden": ({"trees": True}, {}, hidden),
    "hidden, no bias": ({}, {"bias": False}, hidden),
    "window": ({"window": WINDOW}, {"pos": True}, None),
    "window, trees, hidden": ({"window": WINDOW, "trees": True}, {"pos": True}, hidden),
    "window, uniform": ({"window": WINDOW}, {"pos": True, "bias": False, "sizes": (4, 4)}, None),
    "window of 2": ({"window": 2}, {"pos": True}, None),
    "no groups": ({"G": 1}, {}, None),
    "groups of 3": ({"G": 3}, {"bias": False, "sizes": (3, 3)}, None),
    "softcap": ({"softcap": 0.8}, {}, hidden),
    "softcap, rows": ({"softcap": 0.8, "packed": False, "rows": 2}, {}, None),
    "sinks": ({"sinks": True}, {}, None),
    "sinks, window, trees": ({"sinks": True, "window": WINDOW, "trees": True}, {"pos": True}, hidden),
}


@pytest.mark.parametrize("name", CASES)
def test_both_ways_are_the_plain_loop(name):
    given, kept, hides = CASES[name]
    s, kv = site(**given), memory(**kept)
    with torch.no_grad():
        expected = loop(s, kv, hides)
        for way in (naive, attend):
            torch.testing.assert_close(way(s, kv, hides).double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_both_ways_have_the_same_gradients(name):
    given, kept, hides = CASES[name]
    s, kv = site(**given), memory(**kept)
    weight = torch.randn(naive(s, kv, hides).shape, generator=torch.Generator().manual_seed(2))
    found = [
        torch.autograd.grad((way(s, kv, hides) * weight).sum(), leaves(s, kv), allow_unused=True)
        for way in (naive, attend)
    ]
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None and a.numel():
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
            assert a.abs().max() > 0 or name.startswith("empty")


def test_a_window_and_hidden_tokens_make_a_difference():
    """The cases above would not notice a loop that, like both ways, forgot them."""
    plain = naive(site(), memory(pos=True))
    assert not torch.allclose(plain, naive(site(window=WINDOW), memory(pos=True)))
    assert not torch.allclose(plain, naive(site(), memory(pos=True), hidden))
    assert not torch.allclose(plain, naive(site(trees=True), memory(pos=True)))
    assert not torch.allclose(plain, naive(site(softcap=0.8), memory(pos=True)))
    assert not torch.allclose(plain, naive(site(), memory(bias=False)))


def test_hidden_tokens_may_hold_anything():
    s, kv = site(), memory()
    before = attend(s, kv, hidden)
    k_XD, v_XD = kv.k_XD.detach().clone(), kv.v_XD.detach().clone()
    unseen = torch.stack([hidden(1, 0, q, q + 1)[0] for q in range(sum(LENGTHS))])
    q = 0
    k_XD[:5][unseen[q]] = 50.0
    v_XD[:5][unseen[q]] = -1e3
    after = attend(s, LayerKV(k_XD, v_XD, kv.sizes, kv.bias_X), hidden)
    assert torch.equal(before[0, q, :2], after[0, q, :2])
    other = next(i for i in range(len(unseen)) if not torch.equal(unseen[i], unseen[q]))
    assert not torch.allclose(before[0, other, :2], after[0, other, :2])


def test_chunks_are_whole_rows_and_change_nothing(monkeypatch):
    s, kv = site(), memory()
    whole = attend(s, kv, hidden)
    monkeypatch.setattr("memtoken_cli.engine.attend.CHUNK", 5)
    cut = site()
    chunks = cut.packing.chunks
    assert [(start, stop) for start, stop, _ in chunks] == [(0, 3), (3, 8), (8, 13)]
    assert len(s.packing.chunks) == 1
    torch.testing.assert_close(attend(cut, kv, hidden), whole, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_stays_close():
    s, kv = site(), memory()
    s.q_BHTD, s.k_BNUD, s.v_BNUD = (x.detach().bfloat16() for x in (s.q_BHTD, s.k_BNUD, s.v_BNUD))
    expected = loop(s, kv, hidden)
    for way in (naive, attend):
        found = way(s, kv.to(dtype=torch.bfloat16), hidden)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0.05)
