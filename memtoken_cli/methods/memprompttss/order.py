"""Order memory: in which order the prompted states came on the series a bank was written from.

On another series a switch that was seen there is cheaper than one that was not, if the other series bears it
out (`gated`). Which prompts of a bank count, and the price of a plain switch, are the reader's.

Shape suffixes: N tokens, K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from memtoken_cli.methods.memprompttss.potts_sums import log_partition

UNSEEN = 32.0  # what an unseen switch costs more than a seen one (40 against 8: best of four tried)
DRAWS = 20
FEWEST = 4  # orders that differ, without which being the best of them says little
CLEAR = 2.0  # deviations of the others by which the order seen must beat the best of them
TOKENS = 800  # of a series that the gate looks at, pooled


@dataclass(frozen=True)
class Gate:
    """switch_KK: prices to add to a switch's own, or None where the order is not used. own: log-partition
    with the order seen; others: with permuted ones, each different from it; empty where none is."""

    switch_KK: Tensor | None
    own: float
    others: tuple[float, ...]

    @property
    def used(self) -> bool:
        return self.switch_KK is not None


def seen_switches(sequences: Sequence[Sequence[int]], K: int) -> Tensor:
    """[K,K] bool, row: from. One sequence a series: the states of its prompts in the order of time."""
    seen_KK = torch.zeros(K, K, dtype=torch.bool)
    for states in sequences:
        for a, b in pairwise(states):
            if a != b:
                seen_KK[a, b] = True
    return seen_KK


def prices(seen_KK: Tensor, unseen: float = UNSEEN) -> Tensor:
    """[K,K] float32, to add to what every switch costs: 0 where seen."""
    price_KK = torch.where(seen_KK, 0.0, unseen)
    return price_KK.fill_diagonal_(0)


def gated(
    cost_NK: Tensor,
    lam: float,
    seen_KK: Tensor,
    temperature: float = 1.0,
    unseen: float = UNSEEN,
    draws: int = DRAWS,
) -> Gate:
    """The order's prices if the costs of a series agree with it: the chain's log-partition must be clearly
    higher than with the same order under each of `draws` other namings of the states (always the same draws).

    An order that says nothing (no switch seen, or all of them), or that renaming hardly changes (two states,
    a cycle of three), is not used; one of fewer than about eight states is seldom clear enough.
    """
    K = cost_NK.shape[1]
    off_KK = ~torch.eye(K, dtype=torch.bool)
    if K < 2 or not seen_KK.any() or bool(seen_KK[off_KK].all()):
        return Gate(None, 0.0, ())
    pooled = _pooled(cost_NK)
    own = log_partition(pooled, lam, temperature, None, prices(seen_KK, unseen))
    random = np.random.default_rng(0)
    others: dict[bytes, float] = {}
    for _ in range(draws):
        name_K = torch.from_numpy(random.permutation(K))
        other_KK = seen_KK[name_K][:, name_K]
        key = other_KK.numpy().tobytes()
        if key not in others and not torch.equal(other_KK, seen_KK):
            others[key] = log_partition(pooled, lam, temperature, None, prices(other_KK, unseen))
    found = tuple(others.values())
    used = len(found) >= FEWEST and own > max(found) + CLEAR * float(np.std(found))
    return Gate(prices(seen_KK, unseen) if used else None, own, found)


def _pooled(cost_NK: Tensor) -> Tensor:
    """Costs of at most TOKENS longer tokens: sums over neighbours."""
    N, K = cost_NK.shape
    step = -(-N // TOKENS)
    if step <= 1:
        return cost_NK
    full = N // step * step
    pooled = cost_NK[:full].float().reshape(-1, step, K).sum(1)
    return torch.cat([pooled, cost_NK[full:].float().sum(0, keepdim=True)]) if full < N else pooled
