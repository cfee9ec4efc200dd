"""How good chosen labels are: accuracy with an interval, and agreement with a reference. No torch here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from sklearn.metrics import accuracy_score


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int


def accuracy(chosen: Sequence[object], right: Sequence[object]) -> Accuracy:
    """Share of `chosen` that equal `right`, with Wilson's 95 % interval. Raises ValueError for none or
    unequal many."""
    if not chosen:
        raise ValueError("accuracy of no answers")
    value = float(accuracy_score(list(map(str, right)), list(map(str, chosen))))
    return interval(round(value * len(chosen)), len(chosen))


def interval(right: int, count: int) -> Accuracy:
    """Wilson's 95 % interval of `right` out of `count` (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    share, spread = right / count, z * z / count
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # rounding must not put the share itself outside
    low, high = min(share, (middle - half) / (1 + spread)), max(share, (middle + half) / (1 + spread))
    return Accuracy(share, max(0.0, low), min(1.0, high), count)


def agreement(chosen: Sequence[object], reference: Sequence[object]) -> float:
    """Share of answers that are the reference's, right or wrong."""
    return accuracy(chosen, reference).value
