"""Recall: facts hidden in noise, and a question about one of them at the very end.

The detect-and-memorise task of arXiv 2304.11062 without natural language: any number of segments, so also
many more than were trained on.

Shape suffixes: B rows, F facts, T tokens, P places where a fact can start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from memtoken_cli.data.streams import FIRST, Sequences, at_least_one, distinct, scored, vocabulary
from memtoken_cli.data.task_config import Unit
from memtoken_cli.io.errors import UsageError

_QUESTION = 2  # tokens: `ask key`


@dataclass(frozen=True)
class Recall:
    """n segments of uniform noise with `count` facts `key value` in them, each inside one segment, at random
    places; the last two tokens are `ask key`, and only the value behind them is scored.

    Keys of a row are distinct, values are not. Raises UsageError where the facts may not fit one segment.
    """

    segment: int
    count: int
    keys: int
    values: int
    noise: int
    segments: int

    unit: ClassVar[Unit] = "segments"
    final: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        # a fact spoils at most three places for others, and a segment with the question has segment - 3
        least = 3 * self.count + 1
        if self.segment < least:
            raise UsageError(
                f"{self.count} facts and a question do not fit a segment of {self.segment}",
                hint=f"rmt.segment={least} or more, or a smaller task.count",
            )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        kinds = (("key", self.keys), ("value", self.values), ("noise", self.noise))
        return vocabulary(*(f"{kind}{i}" for kind, count in kinds for i in range(count)), "ask")

    def size(self) -> int:
        return self.segments

    def tokens(self, n: int) -> int:
        return n * self.segment

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        at_least_one(n, self.unit)
        g, F, T = generator, self.count, self.tokens(n)
        first_value = FIRST + self.keys
        first_noise = first_value + self.values
        ask = first_noise + self.noise
        ids_BT = torch.randint(self.noise, (rows, T), generator=g) + first_noise
        key_BF = distinct(rows, F, self.keys, g) + FIRST
        value_BF = torch.randint(self.values, (rows, F), generator=g) + first_value
        place_BF = self._places(n, rows, g)
        ids_BT.scatter_(1, place_BF, key_BF).scatter_(1, place_BF + 1, value_BF)
        asked_B1 = torch.randint(F, (rows, 1), generator=g)
        ids_BT[:, -2] = ask
        ids_BT[:, -1:] = key_BF.gather(1, asked_B1)
        target_BT = torch.cat([ids_BT[:, 1:], value_BF.gather(1, asked_B1)], 1)
        return scored(ids_BT, target_BT, T - 1, T)

    def _places(self, n: int, rows: int, g: torch.Generator) -> torch.Tensor:
        """int64 [B,F]: where facts start, one after another uniform over the places that are still free."""
        starts_P = torch.arange(self.tokens(n) - _QUESTION - 1)
        starts_P = starts_P[starts_P % self.segment < self.segment - 1]
        # behind each place, so that a fact's neighbours can be struck out without looking at edges
        taken_BP = torch.zeros(rows, self.tokens(n) + 1, dtype=torch.bool)
        chosen = []
        for _ in range(self.count):
            free_BP = ~taken_BP[:, starts_P + 1]
            left_B = free_BP.sum(1)
            rank_B = (torch.rand(rows, generator=g, dtype=torch.float64) * left_B).long()
            at_B1 = torch.searchsorted(free_BP.cumsum(1), rank_B[:, None] + 1)
            place_B1 = starts_P[at_B1]
            for near in (0, 1, 2):
                taken_BP.scatter_(1, place_B1 + near, True)
            chosen.append(place_B1)
        return torch.cat(chosen, 1)
