"""Closed-form heads against generic solvers and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from memtoken_cli.methods.memprompttss.head import Head, Logistic


def samples(M: int, F: int, K: int, seed: int = 0):
    """Samples of prompts, 5 each, whose classes come in turn."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(M) // 5
    y = group % K
    x = torch.randn(K, F, generator=generator)[y] * 0.4
    x += torch.randn(int(group.max()) + 1, F, generator=generator)[group] * 0.4
    x += torch.randn(M, F, generator=generator) * 0.6 + 2
    return x, y, group


def generic(x, y, w, K, ridge):
    """Normal equations with the intercept as a column that is not shrunk."""
    one = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.double)], 1)
    shrink = torch.eye(one.shape[1], dtype=torch.double) * ridge
    shrink[-1, -1] = 0
    target = torch.nn.functional.one_hot(y, K).double()
    return torch.linalg.solve(one.T @ (w[:, None] * one) + shrink, one.T @ (w[:, None] * target))


def balanced(y, K, weight=None):
    w = torch.ones(len(y), dtype=torch.double) if weight is None else weight.double()
    w = w / torch.zeros(K, dtype=torch.double).index_add(0, y, w)[y]
    return w / w.mean()


@pytest.mark.parametrize(("M", "F", "K"), [(60, 20, 3), (30, 80, 3), (40, 39, 2), (20, 5, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_and_its_leave_out(M, F, K, weighted):
    x, y, group = samples(M, F, K)
    weight = torch.rand(M, generator=torch.Generator().manual_seed(9)) + 0.2 if weighted else None
    head = Head.fit(x, y, group, K, weight, ridge=7.0)
    w = balanced(y, K, weight)
    full = generic(x, y, w, K, 7.0)
    new = torch.randn(11, F, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        head.scores(new).double(), new.double() @ full[:-1] + full[-1], atol=1e-5, rtol=0
    )
    for g in group.unique():
        rest = group != g
        left = generic(x[rest], y[rest], w[rest], K, 7.0)
        expected = x[~rest].double() @ left[:-1] + left[-1]
        torch.testing.assert_close(head.leave_out()[~rest].double(), expected, atol=1e-5, rtol=0)


def test_one_prompt_a_state_and_one_prompt():
    x, y, group = samples(10, 30, 2)
    left = Head.fit(x, y, group, 2).leave_out()
    # without its only prompt a class is unknown, and the other one is all there is
    assert left[:5, 0].abs().max() < 1e-5 and (left[:5, 1] - 1).abs().max() < 1e-5
    assert Head.fit(x[:5], y[:5], group[:5], 1).leave_out().eq(0).all()
    alone = Logistic.fit(x[:5], y[:5], group[:5], 1)
    assert alone.scores(x).eq(0).all() and alone.leave_out().eq(0).all()


@pytest.mark.parametrize(("M", "F", "K"), [(60, 20, 3), (30, 80, 3), (90, 30, 6)])
def test_logistic_is_scikit_learns(M, F, K):
    x, y, group = samples(M, F, K)
    model = Logistic.fit(x, y, group, K, C=0.1, balance=0.0)
    other = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(model.scores(x), other.predict_log_proba(x.double().numpy()), atol=2e-3)
    even = Logistic.fit(x[:-5], y[:-5], group[:-5], K, C=0.1)
    weight = balanced(y[:-5], K).numpy()
    other = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000).fit(
        x[:-5].double().numpy(), y[:-5].numpy(), weight
    )
    np.testing.assert_allclose(even.scores(x), other.predict_log_proba(x.double().numpy()), atol=2e-3)


def test_logistic_leave_out_is_near_refits():
    x, y, group = samples(120, 40, 3)
    model = Logistic.fit(x, y, group, 3, balance=0.0)
    refit = torch.cat(
        [
            Logistic.fit(x[group != g], y[group != g], group[group != g], 3, balance=0.0).scores(
                x[group == g]
            )
            for g in group.unique()
        ]
    )
    moved = (refit - model.scores(x)).abs().mean()
    assert (model.leave_out() - refit).abs().mean() < 0.25 * moved


def test_wrong_samples():
    x, y, group = samples(20, 4, 2)
    for maker in (Head, Logistic):
        with pytest.raises(ValueError, match="no samples"):
            maker.fit(x[:0], y[:0], group[:0], 2)
        with pytest.raises(ValueError, match="a class without samples"):
            maker.fit(x, y, group, 3)
    with pytest.raises(ValueError, match="ridge"):
        Head.fit(x, y, group, 2, ridge=0.0)
