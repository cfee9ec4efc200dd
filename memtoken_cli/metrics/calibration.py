"""How honest probabilities are: NLL, and the expected calibration error.

Shape suffixes: B examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 15


def nll(log_p_BC: Tensor, gold: Sequence[int]) -> float:
    """Mean negative log-probability of the gold class, in nats; a gold of -1 (not among the classes) is
    infinitely wrong. Raises ValueError for no example."""
    if not gold:
        raise ValueError("the likelihood of no example")
    if min(gold) < 0:
        return math.inf
    return float(-log_p_BC.double()[torch.arange(len(gold)), torch.tensor(gold)].mean())


def ece(top: Sequence[float], right: Sequence[bool], bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, 1706.04599): bins of equal width over the probability of
    the chosen class. Raises ValueError for no example."""
    if not top:
        raise ValueError("the calibration of no example")
    p_B = torch.tensor(top, dtype=torch.float64)
    hit_B = torch.tensor(right, dtype=torch.float64)
    bin_B = (p_B * bins).long().clamp(0, bins - 1)
    total = torch.zeros(bins, dtype=torch.float64)
    gap = torch.zeros_like(total)
    total.index_add_(0, bin_B, torch.ones_like(p_B))
    gap.index_add_(0, bin_B, hit_B - p_B)
    return float(gap.abs().sum() / total.sum())


def fit_scale(scores_BC: Tensor, gold: Sequence[int]) -> float:
    """The factor on scores at which their softmax has the least NLL, between 1e-6 and 1e6 (golden section on
    its logarithm; the NLL is convex in the factor). Raises ValueError for no example."""
    scores = scores_BC.double() - scores_BC.double().amax(-1, keepdim=True)

    def cost(power: float) -> float:
        return nll((scores * 10**power).log_softmax(-1), gold)

    ratio = (math.sqrt(5) - 1) / 2
    low, high = -6.0, 6.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cost(left), cost(right)
    while high - low > 1e-5:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cost(right)
    return float(10 ** ((low + high) / 2))
