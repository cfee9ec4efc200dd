"""Pairs of keys and values, and a question about one of them.

`Retrieval` is of Bulatov, Kuratov and Burtsev 2022; `Remember`, with its variant rewrite, of ARMT (arXiv
2407.04841).

Shape suffixes: B rows, P pairs, k symbols of a key, v of a value, S tokens of a segment, T of a stream.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memtoken_cli.data.streams import FIRST, Sequences, at_least_one, distinct, scored, vocabulary
from memtoken_cli.data.task_config import Unit
from memtoken_cli.io.errors import UsageError

_DIGITS, _LETTERS = string.digits, string.ascii_lowercase


@dataclass(frozen=True)
class Retrieval:
    """`k1 v1 k2 v2 .. q : v`: distinct letters with a digit each, then one of the letters; v is scored."""

    pairs: int

    unit: ClassVar[Unit] = "pairs"
    final: ClassVar[int | None] = None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return vocabulary(*_DIGITS, ":", *_LETTERS)

    def size(self) -> int:
        return self.pairs

    def tokens(self, n: int) -> int:
        return 2 * n + 2

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        at_least_one(n, self.unit)
        if n > len(_LETTERS):
            raise UsageError(f"retrieval has no {n} distinct letters", hint=f"at most {len(_LETTERS)} pairs")
        colon = FIRST + len(_DIGITS)
        key_BP = distinct(rows, n, len(_LETTERS), generator) + colon + 1
        value_BP = torch.randint(len(_DIGITS), (rows, n), generator=generator) + FIRST
        asked_B1 = torch.randint(n, (rows, 1), generator=generator)
        pairs_BT = torch.stack([key_BP, value_BP], 2).flatten(1)
        colon_B1 = torch.full((rows, 1), colon)
        ids_BT = torch.cat([pairs_BT, key_BP.gather(1, asked_B1), colon_B1], 1)
        target_BT = torch.cat([ids_BT[:, 1:], value_BP.gather(1, asked_B1)], 1)
        T = self.tokens(n)
        return scored(ids_BT, target_BT, T - 1, T)


@dataclass(frozen=True)
class Remember:
    """n segments `key = value .`, then one more `key ? value .` that asks; the asked value is scored.

    remember: a row's keys are distinct, and one of them is asked. rewrite: keys are drawn independently, one
    that occurs is asked, and the answer is its latest value. A stream is whole segments: also the asked value
    and the dot behind it are in the ids.

    Raises UsageError where a pair is not exactly a segment.
    """

    rewrite: bool
    segment: int
    pairs: int
    key_size: int
    value_size: int
    symbols: int

    unit: ClassVar[Unit] = "pairs"
    final: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        needed = self.key_size + self.value_size + 2
        if self.segment != needed:
            raise UsageError(
                f"a segment of {self.segment} is not a pair of {self.key_size} + {self.value_size} symbols "
                "and two marks",
                hint=f"rmt.segment={needed}",
            )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return vocabulary(*(str(i) for i in range(self.symbols)), "=", ".", "?")

    @property
    def key_space(self) -> int:
        return self.symbols**self.key_size

    def size(self) -> int:
        return self.pairs

    def tokens(self, n: int) -> int:
        return (n + 1) * self.segment

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        at_least_one(n, self.unit)
        if not self.rewrite and n > self.key_space:
            raise UsageError(
                f"{n} pairs have no distinct keys among {self.key_space}", hint="raise task.key_size"
            )
        g, k, T = generator, self.key_size, self.tokens(n)
        if self.rewrite:
            key_BP = torch.randint(self.key_space, (rows, n), generator=g)
        else:
            key_BP = distinct(rows, n, self.key_space, g)
        value_BPv = torch.randint(self.symbols, (rows, n, self.value_size), generator=g)
        asked_B1 = torch.randint(n, (rows, 1), generator=g)
        asked_key_B1 = key_BP.gather(1, asked_B1)
        # the latest pair with that key; of remember the only one
        latest_B = ((key_BP == asked_key_B1) * torch.arange(1, n + 1)).argmax(1)
        asked_value_B1v = value_BPv[torch.arange(rows), latest_B][:, None]
        digits_BPk = self._digits(torch.cat([key_BP, asked_key_B1], 1))
        values_BPv = torch.cat([value_BPv, asked_value_B1v], 1)
        equals, dot, question = (FIRST + self.symbols + i for i in range(3))
        mark_BP1 = torch.full((rows, n + 1, 1), equals)
        mark_BP1[:, -1] = question
        dot_BP1 = torch.full((rows, n + 1, 1), dot)
        ids_BT = torch.cat([digits_BPk + FIRST, mark_BP1, values_BPv + FIRST, dot_BP1], 2).flatten(1)
        start = T - self.segment + k
        return scored(ids_BT, ids_BT.roll(-1, 1), start, start + self.value_size)

    def _digits(self, key_BP: Tensor) -> Tensor:
        """A key's symbols, most significant first."""
        power_k = self.symbols ** torch.arange(self.key_size - 1, -1, -1)
        return key_BP[..., None] // power_k % self.symbols
