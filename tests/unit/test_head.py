"""The head against a generic solver and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from memtoken_cli.methods.memprompttss.head import Logistic


def samples(M: int, F: int, K: int, seed: int = 0):
    """Samples of prompts, 5 each, whose classes come in turn."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(M) // 5
    y = group % K
    x = torch.randn(K, F, generator=generator)[y] * 0.4
    x += torch.randn(int(group.max()) + 1, F, generator=generator)[group] * 0.4
    x += torch.randn(M, F, generator=generator) * 0.6 + 2
    return x, y, group


def balanced(y, K, weight=None):
    w = torch.ones(len(y), dtype=torch.double) if weight is None else weight.double()
    w = w / torch.zeros(K, dtype=torch.double).index_add(0, y, w)[y]
    return w / w.mean()


def test_one_prompt():
    x, y, group = samples(5, 30, 2)
    alone = Logistic.fit(x, y, group, 1)
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
    with pytest.raises(ValueError, match="no samples"):
        Logistic.fit(x[:0], y[:0], group[:0], 2)
    with pytest.raises(ValueError, match="a class without samples"):
        Logistic.fit(x, y, group, 3)
    with pytest.raises(ValueError, match="C is 0"):
        Logistic.fit(x, y, group, 2, C=0.0)
