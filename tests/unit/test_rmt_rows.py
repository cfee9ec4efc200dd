"""A row's results are its own: whatever stands beside it in a batch, however it is padded or cut."""

import pytest
import torch
from rmt_policies import LENGTHS, made, rows, run

from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.policy import select, stack

ALIGN = ("left", "right", "center")
POLICIES = ("rmt", "static", "none", "prmt", "armt", "xl")
every = pytest.mark.parametrize("policy", POLICIES)
writing = pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "xl"])


def close(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("align", ALIGN)
@every
def test_a_batch_is_its_rows(policy, align):
    of, ids = made(policy=policy, align=align, mask="blocks"), rows()
    logits, state = run(of, ids)
    alone = [run(of, [row]) for row in ids]
    close(logits, [x[0] for x, _ in alone])
    close(state, stack([s for _, s in alone]))


@pytest.mark.parametrize("align", ALIGN)
@every
def test_order_does_not_matter(policy, align):
    of, ids, order = (
        made("gpt2" if policy != "xl" else "qwen2", policy=policy, align=align),
        rows(),
        [2, 0, 3, 1],
    )
    logits, state = run(of, ids)
    shuffled, also = run(of, [ids[i] for i in order])
    close(shuffled, [logits[i] for i in order])
    close(also, select(state, order))


@pytest.mark.parametrize("align", ALIGN)
@every
def test_padding_is_never_seen(policy, align):
    """To the bit, whatever the pads are and however many."""
    of, ids = made(policy=policy, align=align), rows()
    logits, state = run(of, ids)
    other, also = run(of, ids, width=30, fill=9)
    assert same(logits, other) and same(state, also)


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("llama", "rmt"),
        ("llama", "prmt"),
        ("llama", "armt"),
        ("llama", "xl"),
        ("gpt2", "rmt"),
        ("gpt2", "armt"),
    ],
)
def test_a_row_without_text_keeps_its_state_to_the_bit(policy, family):
    of = made(family, policy=policy)
    _, state = run(of, rows((4, 4, 4)))
    ids = torch.tensor(rows((4, 4, 4), seed=1))
    for counts in ([4, 0, 2], [0, 0, 0], [0, 4, 0]):
        _, after = of.policy.segment(ids, torch.tensor(counts), state, None)
        for row, n in enumerate(counts):
            kept = same(select(after, [row]), select(state, [row]))
            assert kept == (n == 0), (counts, row)
    _, after = of.policy.segment(ids[:, :1], torch.zeros(3, dtype=torch.int64), state, None)
    assert same(after, state)


@writing
def test_rows_that_begin_later_keep_the_first_state_until_then(policy):
    of = made(policy=policy, align="right")
    length_B = torch.tensor(LENGTHS)
    cuts = cut(length_B, 4, "right")
    ids_BT = torch.tensor([row + [0] * (11 - len(row)) for row in rows()])
    state = start = of.policy.start(4)
    for t in range(len(cuts)):
        before = state
        _, state = of.policy.segment(cuts.take(ids_BT, t, 0), cuts.count_NB[t], state, None)
        for row in range(4):
            assert same(select(state, [row]), select(before, [row])) == (cuts.count_NB[t, row] == 0)
        if t == 0:
            assert same(select(state, [1, 3]), select(start, [1, 3]))


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt"])
def test_empty_segments_pass_gradients_through(policy):
    """A row that ends early gives the gradients that it gives alone."""
    of = made(policy=policy)

    def gradients(ids, weight):
        _, state = run(of, ids)
        total = sum((x.flatten(1).sin().sum(1) * weight).sum() for x in state if x.is_floating_point())
        leaves = list(of.parameters.values())
        return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)

    (short, long), weight = rows((3, 11)), torch.tensor([1.0, 0.0])
    both, alone = gradients([short, long], weight), gradients([short], weight[:1])
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@writing
def test_another_rows_memory_gives_other_results(policy):
    of = made(policy=policy)
    _, state = run(of, rows((8, 8)))
    ids, count, wanted = torch.tensor(rows((4, 4), seed=1)), torch.tensor([4, 4]), torch.arange(4)
    own, _ = of.policy.segment(ids, count, state, wanted)
    swapped, _ = of.policy.segment(ids, count, select(state, [1, 0]), wanted)
    assert (own - swapped).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("align", ALIGN)
@pytest.mark.parametrize("lengths", [(11, 4, 7, 1), (4, 4), (3,), (13, 12, 5), (1, 9)])
def test_a_cut_leaves_nothing_out(lengths, align):
    ids = rows(lengths)
    width = max(lengths)
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    cuts = cut(torch.tensor(lengths), 4, align)
    assert len(cuts) == -(-width // 4) and cuts.count_NB.max() <= 4
    parts = [cuts.take(ids_BT, t, -1) for t in range(len(cuts))]
    for row, expected in enumerate(ids):
        assert [x for part in parts for x in part[row].tolist() if x >= 0] == expected
        counts = cuts.count_NB[:, row].tolist()
        N = -(-len(expected) // 4)
        if align == "left":
            assert counts[: N - 1] == [4] * (N - 1) and not any(counts[N:])
        elif align == "right":
            assert not any(counts[: len(counts) - N]) and counts[len(counts) - N + 1 :] == [4] * (N - 1)
        else:
            assert set(counts[: N - 1]) <= {-(-len(expected) // N)} and not any(counts[N:])
