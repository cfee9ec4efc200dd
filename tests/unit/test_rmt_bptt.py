"""How far gradients flow back through the segments of a policy: replayed, truncated, and held against finite
differences. (The loop alone, on a small cell: test_stream.py.)"""

import pytest
import torch
from rmt_policies import made, rows

from memtoken_cli.data.streams import IGNORE, Sequences
from memtoken_cli.engine.stream import Bptt
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.learn import scores

recurrent = pytest.mark.parametrize("policy", ["rmt", "prmt", "armt"])
CPU = torch.device("cpu")


def sequences(ids):
    """Every next token is scored, short rows padded."""
    T = max(map(len, ids))
    ids_BT = torch.tensor([row + [0] * (T - len(row)) for row in ids])
    target_BT = torch.tensor([row[1:] + [IGNORE] * (T - len(row) + 1) for row in ids])
    return Sequences(ids_BT, torch.tensor([len(row) for row in ids]), target_BT, torch.zeros(len(ids)).long())


def measured(of, part, mode):
    """(total, gradients by name) under one state of the generators."""
    torch.manual_seed(3)
    for leaf in of.leaves.values():
        leaf.grad = None
    found = scores(of.policy, part, of.config, Bptt.parse(mode), CPU)
    if found.total.requires_grad:
        found.total.backward()
    return found, {name: leaf.grad for name, leaf in of.leaves.items()}


def noisy(of):
    """Dropout in the backbone, noise on the state."""
    of.backbone.model.train()
    of.policy.training = True
    return of


CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("options", [{}, {"state_noise": 0.3, "align": "right", "mask": "blocks"}])
@recurrent
def test_replay_gives_the_gradients_of_full(policy, options, dtype):
    of = noisy(made("gpt2", dtype, policy=policy, **options))
    part = sequences(rows())
    full, expected = measured(of, part, "full")
    after = torch.rand(3)
    replayed, found = measured(of, part, "replay")
    assert torch.equal(torch.rand(3), after)
    assert not replayed.total.requires_grad
    assert (replayed.total.item(), replayed.count, replayed.right) == (
        pytest.approx(full.total.item(), rel=1e-6),
        full.count,
        full.right,
    )
    if dtype == torch.float64:
        noiseless = made("gpt2", dtype, policy=policy, **options)
        other, _ = measured(noiseless, part, "full")
        assert abs(other.total.item() - full.total.item()) > 1e-3, "no noise was drawn"
    for name, b in expected.items():
        assert (found[name] is None) == (b is None), name
        if b is not None:
            scale = max(b.abs().max().item(), 1e-3)
            torch.testing.assert_close(found[name], b, atol=CLOSE[dtype] * scale, rtol=0, msg=name)


@recurrent
def test_full_and_replay_with_a_loss_on_the_last_segment_only(policy):
    of = noisy(made("llama", torch.float64, policy=policy, loss="last:1"))
    part = sequences(rows((12, 12)))
    full, expected = measured(of, part, "full")
    replayed, found = measured(of, part, "replay")
    assert full.count == replayed.count == 2 * 3
    for name in of.parameters:
        assert expected[name].abs().max() > 0, name
        torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=0)


@pytest.mark.parametrize("mode", ["full", "replay"])
@recurrent
def test_finite_differences(policy, mode):
    """Along random directions. armt over two segments: what its correction g changes, which has no gradient,
    is read from the third on."""
    of = made("gpt2", torch.float64, policy=policy)
    part = sequences(rows((8, 7) if policy == "armt" else (12, 7)))
    _, gradient = measured(of, part, mode)
    leaves, noise = of.leaves, torch.Generator().manual_seed(4)
    groups = [[name] for name in of.parameters] + [[n for n in leaves if n not in of.parameters]]
    for group in groups:
        direction = {n: torch.randn(leaves[n].shape, generator=noise, dtype=torch.float64) for n in group}
        expected = sum(float((gradient[n] * d).sum()) for n, d in direction.items())
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for n, d in direction.items():
                    leaves[n].add_(d, alpha=step)
                ends.append(measured(of, part, "full")[0].total.item())
        with torch.no_grad():
            for n, d in direction.items():
                leaves[n].add_(d, alpha=1e-6)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-6), group


DISTINCT = [list(range(4 + 16 * row, 20 + 16 * row)) for row in (0, 1)]  # no token twice: four segments


def touched(of, mode):
    """Of each segment: whether its tokens' embeddings have a gradient from the last segment's loss."""
    part = sequences(DISTINCT)
    part.target_BT[:, :12] = IGNORE
    _, gradient = measured(of, part, mode)
    table = next(g for name, g in gradient.items() if g is not None and g.shape[0] == 64)
    return [bool(table[torch.tensor(DISTINCT)[:, t * 4 : t * 4 + 4].flatten()].any()) for t in range(4)]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("full", [True] * 4),
        ("replay", [True] * 4),
        ("last:3", [True] * 4),
        ("last:2", [False, True, True, True]),
        ("last:1", [False, False, True, True]),
        ("last:0", [False, False, False, True]),
    ],
)
@recurrent
def test_truncation_truncates(policy, mode, expected):
    """To exactly zero."""
    assert touched(made("llama", policy=policy), mode) == expected


@pytest.mark.parametrize("k", [0, 1, 2])
@recurrent
def test_last_is_full_with_detached_states(policy, k):
    of = made("llama", torch.float64, policy=policy)
    part = sequences(rows((15, 9)))
    _, found = measured(of, part, f"last:{k}")
    cuts, state, total = cut(part.length_B, 4, "left"), of.policy.start(2), 0.0
    for leaf in of.leaves.values():
        leaf.grad = None
    for t in range(len(cuts)):
        if 0 < t < len(cuts) - k:
            state = tuple(x.detach() for x in state)
        ids = cuts.take(part.ids_BT, t, 0)
        logits, state = of.policy.segment(ids, cuts.count_NB[t], state, torch.arange(ids.shape[1]))
        target = cuts.take(part.target_BT, t, IGNORE)
        said = logits.log_softmax(-1).gather(2, target.clamp(min=0)[..., None])[..., 0]
        total = total - said[target != IGNORE].sum()
    total.backward()
    for name, leaf in of.leaves.items():
        if leaf.grad is None:
            assert found[name] is None or not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], leaf.grad, atol=1e-10, rtol=1e-10, msg=name)
