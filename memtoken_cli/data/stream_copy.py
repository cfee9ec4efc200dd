"""Copy and reverse (Bulatov, Kuratov and Burtsev 2022): random symbols, then the same twice, or backwards.

Shape suffixes: B rows, L symbols, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from memtoken_cli.data.streams import FIRST, START, Sequences, at_least_one, scored, vocabulary
from memtoken_cli.data.task_config import Unit


@dataclass(frozen=True)
class Copy:
    """`X <s> X X`, or `X <s>` and X backwards; everything behind `<s>` is scored. n is L."""

    reverse: bool
    length: int
    symbols: int

    unit: ClassVar[Unit] = "length"
    final: ClassVar[int | None] = None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return vocabulary(*(str(i) for i in range(self.symbols)))

    def size(self) -> int:
        return self.length

    def tokens(self, n: int) -> int:
        """3L of copy, 2L of reverse: the last symbol is only predicted."""
        return (2 if self.reverse else 3) * n

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        at_least_one(n, self.unit)
        x_BL = torch.randint(self.symbols, (rows, n), generator=generator) + FIRST
        start_B1 = torch.full((rows, 1), START)
        answer = (x_BL.flip(1),) if self.reverse else (x_BL, x_BL)
        whole = torch.cat([x_BL, start_B1, *answer], 1)
        T = self.tokens(n)
        return scored(whole[:, :-1], whole[:, 1:], n, T)
