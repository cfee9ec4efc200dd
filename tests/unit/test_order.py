"""Order memory: what prompts on another series tell, and the gate that asks the series in hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from memtoken_cli.methods.memprompttss.order import UNSEEN, gated, prices, seen_switches
from memtoken_cli.methods.memprompttss.potts import decode


def series(states: list[int], K: int, each: int = 40, noise: float = 1.0, seed: int = 0):
    """Costs of segments of these states; the truth."""
    truth = np.repeat(states, each)
    cost = np.random.default_rng(seed).standard_normal((len(truth), K)) * noise + 1.0
    cost[np.arange(len(truth)), truth] -= 1.0
    return torch.from_numpy(cost).float(), torch.from_numpy(truth)


def test_switches_and_prices():
    seen = seen_switches([[0, 0, 1, 2], [1, 0], [2]], 4)
    assert seen.nonzero().tolist() == [[0, 1], [1, 0], [1, 2]]
    price = prices(seen)
    assert price[0, 1] == 0 and price[0, 2] == UNSEEN and price.diagonal().eq(0).all()


def test_the_true_order_is_used_and_helps():
    K = 10
    cost, truth = series(list(range(K)), K, noise=1.6)
    seen = seen_switches([list(range(K))], K)
    gate = gated(cost, 4.0, seen)
    assert gate.used and len(gate.others) >= 4 and gate.own > max(gate.others)
    plain = (decode(cost, 4.0).states_N == truth).float().mean()
    ordered = (decode(cost, 4.0, None, gate.switch_KK).states_N == truth).float().mean()
    assert ordered > plain


def test_another_order_is_not_used():
    K = 10
    seen = seen_switches([list(range(K))], K)
    used = []
    for seed in range(12):
        states = np.random.default_rng(seed).permutation(K).tolist()
        if not any(b == a + 1 for a, b in pairwise(states)):
            used.append(gated(series(states, K, seed=seed)[0], 4.0, seen).used)
    assert len(used) >= 3 and not any(used)


def test_orders_that_say_nothing():
    cost, _ = series([0, 1, 0, 1], 2)
    assert not gated(cost, 4.0, seen_switches([[0, 1]], 2)).used  # one renaming only
    assert gated(cost, 4.0, seen_switches([], 2)).others == ()
    assert gated(cost, 4.0, ~torch.eye(2, dtype=torch.bool)).others == ()
    one, _ = series([0], 1)
    assert not gated(one, 4.0, seen_switches([[0]], 1)).used


def test_the_gate_is_the_same_every_time_and_on_long_series():
    K = 10
    cost, _ = series(list(range(K)), K, each=700)
    seen = seen_switches([list(range(K))], K)
    first, second = gated(cost, 4.0, seen), gated(cost, 4.0, seen)
    assert first.used and first.own == second.own and first.others == second.others
