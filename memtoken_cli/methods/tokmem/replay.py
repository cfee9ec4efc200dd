"""Pseudo-states of old procedures: what new addresses are trained against, without any stored text.

Old procedures' last states are drawn from a normal distribution, N(mean of the class, the pooled covariance).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memtoken_cli.methods.tokmem.lda import Gaussian
from memtoken_cli.methods.tokmem.statistics import SPECIALS, Statistics

LEAST, PER_SAMPLE = 32, 2


class Replay:
    """The old procedures of a block. rows: their rows in the bank, by name.

    Raises DataError where the statistics hold no final state (checked by the caller's features).
    """

    def __init__(self, stats: Statistics, feature: int, shrinkage: float, rows: dict[str, int]) -> None:
        self.gaussian = Gaussian.of(stats, feature, shrinkage)
        classes = [
            (i, rows[c.procedure])
            for i, c in enumerate(stats.classes)
            if c.procedure not in SPECIALS and c.procedure in rows
        ]
        self.class_N = torch.tensor([i for i, _ in classes], dtype=torch.long)
        self.row_N = torch.tensor([row for _, row in classes], dtype=torch.long)

    def __len__(self) -> int:
        return len(self.class_N)

    def count(self, batch: int, new: int) -> int:
        """How many pseudo-states go with a batch of samples of so many new procedures: twice as many, and no
        fewer of an old procedure than of a new one, since a rarer class is taken for a less likely one."""
        return max(LEAST, PER_SAMPLE * batch, math.ceil(batch * len(self) / new))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(states [n,E] float32, their rows [n]), each class as likely as any."""
        pick = torch.randint(len(self.class_N), (n,), generator=generator)
        return self.gaussian.draw(self.class_N[pick], generator), self.row_N[pick]
