"""The Potts chain against full enumeration, the plain loop and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtoken_cli.methods.memprompttss.potts import Hard, Infeasible, decode, plain_decode
from memtoken_cli.methods.memprompttss.potts_sums import crf_nll, log_partition, marginals


def hard_terms(random: np.random.Generator, N: int, K: int) -> Hard:
    hard = Hard.none(N)
    fixed = np.where(random.random(N) < 0.25, random.integers(0, K, N), -1)
    forbidden = random.random((N, K)) < 0.1
    switch = random.choice([0, 0, 0, 1, -1], N)
    return Hard(
        torch.from_numpy(fixed), torch.from_numpy(forbidden), torch.from_numpy(switch).to(hard.switch_N.dtype)
    )


def enumerate_paths(cost, lam, hard, switch):
    """(energy, path) of every path that keeps the hard terms."""
    N, K = cost.shape
    for path in itertools.product(range(K), repeat=N):
        energy = sum(float(cost[j, s]) for j, s in enumerate(path))
        good = True
        for j, s in enumerate(path):
            if hard is not None:
                fixed = int(hard.fixed_N[j])
                good &= fixed in (-1, s)
                good &= hard.forbidden_NK is None or not hard.forbidden_NK[j, s]
            if not good:
                break
            if j == 0:
                continue
            edge = int(hard.switch_N[j]) if hard is not None else 0
            changed = path[j - 1] != s
            good &= not (edge == 1 and not changed) and not (edge == -1 and changed)
            if changed and edge == 0:
                energy += lam + (float(switch[path[j - 1], s]) if switch is not None else 0)
        if good:
            yield energy, path


@settings(max_examples=80)
@given(
    st.integers(1, 8), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 10**6),
    st.sampled_from([0.0, 0.7, 3.0]),
)  # fmt: skip
def test_enumeration(N, K, constrained, ordered, seed, lam):
    random = np.random.default_rng(seed)
    cost = torch.from_numpy(random.standard_normal((N, K)).astype(np.float32) * 2)
    hard = hard_terms(random, N, K) if constrained else None
    switch = torch.from_numpy(random.random((K, K)) * 3) if ordered else None
    paths = sorted(enumerate_paths(cost, lam, hard, switch))
    if not paths:
        for call in (decode, plain_decode):
            with pytest.raises(Infeasible):
                call(cost, lam, hard, switch)
        with pytest.raises(Infeasible):
            marginals(cost, lam, 1.0, hard, switch)
        return
    for call in (decode, plain_decode):
        found = call(cost, lam, hard, switch)
        assert found.energy == pytest.approx(paths[0][0], abs=1e-5)
        if len(paths) == 1 or paths[1][0] - paths[0][0] > 1e-4:
            assert tuple(found.states_N.tolist()) == paths[0][1]
    temperature = 0.8
    weight = np.exp(-(np.array([e for e, _ in paths]) - paths[0][0]) / temperature)
    expected = np.zeros((N, K))
    for w, (_, path) in zip(weight, paths, strict=True):
        expected[np.arange(N), path] += w / weight.sum()
    np.testing.assert_allclose(marginals(cost, lam, temperature, hard, switch), expected, atol=1e-5)
    total = math.log(weight.sum()) - paths[0][0] / temperature
    assert log_partition(cost, lam, temperature, hard, switch) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("N", [1, 15, 16, 17, 255, 256, 1000, 5000])
@pytest.mark.parametrize("K", [1, 2, 5, 130])
def test_chunked_equals_plain(N, K):
    if N * K > 200_000:
        N = 200_000 // K
    random = np.random.default_rng(N + K)
    cost = torch.from_numpy(random.standard_normal((N, K)).astype(np.float32))
    fixed = np.where(random.random(N) < 0.02, random.integers(0, K, N), -1)
    switch = np.where(random.random(N) < 0.02, 1 if K > 2 else 0, 0)
    hard = Hard(torch.from_numpy(fixed), None, torch.from_numpy(switch).to(torch.int8))
    fast, plain = decode(cost, 2.5, hard), plain_decode(cost, 2.5, hard)
    assert fast.energy == pytest.approx(plain.energy, rel=1e-9)
    assert torch.equal(fast.states_N, plain.states_N)


def plain_marginals(cost, lam, temperature, hard, switch):
    """Forward and backward, one token after the other, in log space."""
    N, K = cost.shape
    emit = -cost.double() / temperature
    emit[hard.forbidden_NK] = -math.inf
    for j in (hard.fixed_N >= 0).nonzero()[:, 0].tolist():
        kept = emit[j, hard.fixed_N[j]].clone()
        emit[j] = -math.inf
        emit[j, hard.fixed_N[j]] = kept
    same = torch.eye(K, dtype=torch.bool)
    normal = torch.where(same, 0.0, -(lam + switch.double()) / temperature)
    move = [
        {0: normal, 1: torch.where(same, -math.inf, 0.0), -1: torch.where(same, 0.0, -math.inf)}[int(edge)]
        for edge in hard.switch_N
    ]
    forward, backward = [emit[0]], [torch.zeros(K, dtype=torch.double)]
    for j in range(1, N):
        forward.append((forward[-1][:, None] + move[j]).logsumexp(0) + emit[j])
    for j in range(N - 1, 0, -1):
        backward.insert(0, (move[j] + emit[j] + backward[0]).logsumexp(1))
    total = torch.stack(forward) + torch.stack(backward)
    return total.softmax(1), float(forward[-1].logsumexp(0))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_chunks_with_every_hard_term(seed, ordered):
    """Against the plain loops, over several joins of chunks."""
    random = np.random.default_rng(seed)
    N, K = 150, 4
    cost = torch.from_numpy(random.standard_normal((N, K)).astype(np.float32) * 2)
    true = np.repeat(random.integers(0, K, 50), 3)
    forbidden = random.random((N, K)) < 0.15
    forbidden[np.arange(N), true] = False
    changed = np.diff(true, prepend=true[0]) != 0
    edge = np.where(random.random(N) < 0.3, np.where(changed, 1, -1), 0).astype(np.int8)
    edge[16:33] = np.where(changed[16:33], 1, -1)  # a whole chunk of them
    fixed = np.where(random.random(N) < 0.1, true, -1)
    hard = Hard(torch.from_numpy(fixed), torch.from_numpy(forbidden), torch.from_numpy(edge))
    switch = torch.from_numpy(random.random((K, K)) * 3) if ordered else None
    fast, plain = decode(cost, 1.5, hard, switch), plain_decode(cost, 1.5, hard, switch)
    assert fast.energy == pytest.approx(plain.energy, rel=1e-9)
    assert torch.equal(fast.states_N, plain.states_N)
    p, total = plain_marginals(cost, 1.5, 0.7, hard, torch.zeros(K, K) if switch is None else switch)
    torch.testing.assert_close(marginals(cost, 1.5, 0.7, hard, switch), p.float(), atol=1e-6, rtol=0)
    assert log_partition(cost, 1.5, 0.7, hard, switch) == pytest.approx(total, rel=1e-9)


def test_ties_stay_across_chunks():
    """Costs without any preference: one state throughout, the first."""
    assert decode(torch.zeros(5000, 4), 0.0).states_N.unique().tolist() == [0]
    hard = Hard.none(5000)
    hard.fixed_N[4999] = 2
    assert decode(torch.zeros(5000, 4), 1.0, hard).states_N.unique().tolist() == [2]


@pytest.mark.parametrize("seed", range(3))
def test_ties_are_broken_alike_in_chunks_and_loops(seed):
    """Whole numbers add without rounding, so that every tie is one."""
    cost = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (700, 3)).astype(np.float32))
    assert torch.equal(decode(cost, 2.0).states_N, plain_decode(cost, 2.0).states_N)
    assert decode(torch.tensor([[0.0, 1.0], [5.0, 0.0]]), 1.0).states_N.tolist() == [1, 1]


def test_marginals_of_long_chains_and_great_costs():
    cost = torch.zeros(200_000, 2)
    cost[::2, 1] = 5000.0
    cost[1::2, 0] = 5000.0
    p = marginals(cost, 3.0, 1.0)
    torch.testing.assert_close(p[::2, 0], torch.ones(100_000))
    torch.testing.assert_close(p[1::2, 1], torch.ones(100_000))
    # a stretch without switches that ends in the state that looked impossible
    hard = Hard.none(200_000)
    hard.switch_N[1:] = -1
    hard.fixed_N[-1] = 1
    assert marginals(cost, 3.0, 1.0, hard)[:, 1].min() == 1


def test_conflict_is_named_where_it_is():
    hard = Hard.none(100)
    hard.switch_N[41:60] = -1
    hard.fixed_N[45], hard.fixed_N[52] = 0, 1
    hard.fixed_N[90] = 2
    with pytest.raises(Infeasible) as told:
        decode(torch.zeros(100, 3), 1.0, hard)
    assert (told.value.start, told.value.end) == (45, 52)
    assert told.value.exit_code == 3


def test_no_tokens_and_wrong_input():
    assert decode(torch.zeros(0, 3), 1.0).states_N.shape == (0,)
    assert marginals(torch.zeros(0, 3), 1.0).shape == (0, 3)
    with pytest.raises(ValueError, match="no states"):
        decode(torch.zeros(3, 0), 1.0)
    with pytest.raises(ValueError, match="not finite"):
        decode(torch.full((3, 2), math.nan), 1.0)
    with pytest.raises(ValueError, match="negative price"):
        decode(torch.zeros(3, 2), -1.0)
    with pytest.raises(ValueError, match="temperature"):
        marginals(torch.zeros(3, 2), 1.0, 0.0)


def test_relabelling_relabels():
    cost = torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
    name = torch.tensor([3, 0, 4, 1, 2])
    there = decode(cost[:, name], 2.0)
    assert torch.equal(name[there.states_N], decode(cost, 2.0).states_N)


def test_crf_loss_is_minus_log_of_the_share():
    generator = torch.Generator().manual_seed(0)
    cost = torch.randn(2, 6, 3, generator=generator)
    lam = torch.tensor([0.5, 2.0])
    target = torch.tensor([[0, 0, 1, 1, 2, 0], [1, 1, 1, 1, 1, 1]])
    loss = crf_nll(cost, lam, target)
    for b in range(2):
        paths = {path: e for e, path in enumerate_paths(cost[b], float(lam[b]), None, None)}
        total = math.log(sum(math.exp(-e) for e in paths.values()))
        assert float(loss[b]) == pytest.approx(paths[tuple(target[b].tolist())] + total, abs=1e-5)


def test_crf_leaves_tokens_and_states_out():
    generator = torch.Generator().manual_seed(2)
    cost = torch.randn(1, 6, 3, generator=generator)
    lam = torch.tensor([1.3])
    kept = [1, 2, 4]
    target = torch.tensor([[-1, 0, 1, -1, 1, -1]])
    short = crf_nll(cost[:, kept][:, :, :2], lam, target[:, kept])
    mask = torch.tensor([True, True, False])
    torch.testing.assert_close(crf_nll(cost, lam, target, mask), short)
    with pytest.raises(ValueError, match="do not exist"):
        crf_nll(cost, lam, torch.full((1, 6), 2), mask)


def test_crf_gradient_against_finite_differences():
    generator = torch.Generator().manual_seed(3)
    cost = torch.randn(3, 7, 3, dtype=torch.double, generator=generator, requires_grad=True)
    lam = torch.tensor([0.3, 1.0, 4.0], dtype=torch.double, requires_grad=True)
    target = torch.tensor([[0, 0, 1, 2, 2, 2, 0], [-1, 1, -1, 1, 0, 0, -1], [2, 2, 2, 2, 2, 2, 2]])
    assert torch.autograd.gradcheck(lambda c, x: crf_nll(c, x, target), (cost, lam))
    mask = torch.ones(3, 7, 3, dtype=torch.bool)
    mask[1, :, 2] = False
    assert torch.autograd.gradcheck(lambda c, x: crf_nll(c, x, target, mask), (cost, lam))


def test_crf_rows_are_independent():
    cost = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(4))
    lam, target = torch.tensor([1.0, 2.0]), torch.zeros(2, 9, dtype=torch.long)
    both = crf_nll(cost, lam, target)
    other = cost.clone()
    other[1] += 3 * torch.rand(9, 4)
    assert torch.equal(crf_nll(other, lam, target)[0], both[0])
