"""Backward elimination against refitting from scratch, twins, and the sink."""

import pytest
import torch

from memtoken_cli.methods.compact import pick as picking
from memtoken_cli.methods.compact.pick import MOST, candidates, pick

RIDGE = 1e-3


def problem(seed=0, queries=200, tokens=12, width=5):
    generator = torch.Generator().manual_seed(seed)
    X_RC = torch.rand(queries, tokens, generator=generator) ** 3
    v_CD = torch.randn(tokens, width, generator=generator)
    Y_RD = X_RC @ torch.randn(tokens, width, generator=generator)
    return X_RC, Y_RD, v_CD


def refitted(X_RC, Y_RD, v_CD, kept, pull):
    """What is lost with these tokens alone, from scratch in float64; a dropped token's value is zero."""
    X, Y, v = X_RC[:, kept].double(), Y_RD.double(), v_CD[kept].double()
    gram = X.T @ X + pull * torch.eye(len(kept), dtype=torch.float64)
    c = v + torch.linalg.solve(gram, X.T @ (Y - X @ v))
    return float((Y - X @ c).square().sum() + pull * (c - v).square().sum())


@pytest.mark.parametrize("seed", range(5))
def test_one_at_a_time_it_is_the_greedy_elimination_of_a_refit(seed, monkeypatch):
    """Each round drops the token without which a fit from scratch loses least."""
    X_RC, Y_RD, v_CD = problem(seed)
    pull = RIDGE * float((X_RC.T @ X_RC).diagonal().mean())
    kept = list(range(12))
    while len(kept) > 5:
        # a dropped token still pays for the value that it no longer has
        losses = {
            j: refitted(X_RC, Y_RD, v_CD, [i for i in kept if i != j], pull)
            + pull * float(v_CD[j].double().square().sum())
            for j in kept[1:]
        }
        kept.remove(min(losses, key=losses.__getitem__))
    monkeypatch.setattr(picking, "_sizes", lambda count, keep: range(count - 1, keep - 1, -1))
    assert pick(X_RC, Y_RD, v_CD, 5, RIDGE).tolist() == kept


def test_of_two_that_say_the_same_one_goes_first():
    X_RC, _, v_CD = problem(3, tokens=6)
    X_RC[:, 4] = 1.01 * X_RC[:, 2]  # alone, the strongest two
    X_RC[:, [2, 4]] *= 3
    v_CD[4] = v_CD[2]
    kept = pick(X_RC, X_RC @ v_CD, v_CD, 5, RIDGE).tolist()
    assert len({2, 4} & set(kept)) == 1


@pytest.mark.parametrize("keep", [1, 2, 7, 11, 12])
def test_as_many_as_asked_in_order_with_the_first(keep):
    X_RC, Y_RD, v_CD = problem()
    X_RC[:, 0] = 0  # of no use
    kept = pick(X_RC, Y_RD, v_CD, keep, RIDGE).tolist()
    assert len(kept) == keep and kept == sorted(set(kept)) and kept[0] == 0


def test_candidates_are_four_times_as_many_or_none():
    assert [candidates(n) for n in (1, 10, 128)] == [4, 40, 512]
    assert candidates(200) == MOST and candidates(256) == MOST
    assert candidates(257) == 257 and candidates(5000) == 5000
