"""Bootstrap intervals of means: over test examples, and over seeds where there are several; paired ones too.

Shape suffixes: S seeds, N examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
CHUNK = 2_000_000  # numbers drawn at once


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval over `count` examples."""

    value: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean(values: ArrayLike, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Percentile bootstrap (Efron 1979) of a mean: [N], or [S,N] where examples and seeds are both drawn.

    Raises ValueError for no value.
    """
    values_SN = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if values_SN.ndim != 2 or not values_SN.size:
        raise ValueError("a mean of no values")
    S, N = values_SN.shape
    random = np.random.default_rng(seed)
    found: list[NDArray[np.float64]] = []
    step = max(1, CHUNK // N)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        weight = random.multinomial(S, np.full(S, 1 / S), size=size) / S
        index = random.integers(0, N, (size, N))
        # averaging over seeds first, each draw with its own weights
        found.append(np.einsum("ds,sdn->d", weight, values_SN[:, index]) / N)
    means = np.concatenate(found)
    low, high = np.quantile(means, (0.025, 0.975))
    value = float(values_SN.mean())
    return Interval(value, min(value, float(low)), max(value, float(high)), N)


def paired(ours: ArrayLike, theirs: ArrayLike, seed: int = 0) -> Interval:
    """The mean of `ours - theirs` on the same examples: [N] or [S,N] each; unequal numbers of seeds are
    averaged first. Raises ValueError for unequal examples."""
    a_SN, b_SN = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (ours, theirs))
    if a_SN.shape[1] != b_SN.shape[1]:
        raise ValueError(f"{a_SN.shape[1]} examples beside {b_SN.shape[1]}")
    if a_SN.shape[0] != b_SN.shape[0]:
        a_SN, b_SN = a_SN.mean(0, keepdims=True), b_SN.mean(0, keepdims=True)
    return mean(a_SN - b_SN, seed)
