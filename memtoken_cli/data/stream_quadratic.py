"""Quadratic equations solved step by step, as characters (Bulatov, Kuratov and Burtsev 2022).

Six lines of WIDTH characters: the problem, its reduced form, the discriminant, a line for each root, the
answer. Without real roots a row ends with the discriminant. Every formula is true Python arithmetic once `^`
is `**`.

Shape suffixes: B rows, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from memtoken_cli.data.streams import FIRST, IGNORE, PAD, Sequences, at_least_one, vocabulary
from memtoken_cli.data.task_config import Unit

WIDTH = 30
LINES = 6
FILL = ";"  # behind every formula, at least once
_CHARACTERS = "0123456789+-*/^=()xD;,"
_IDS = {character: i for i, character in enumerate(_CHARACTERS, FIRST)}


@dataclass(frozen=True)
class Quadratic:
    """All lines but the first are scored; the answer is a row's last line. n is always 1.

    bound: roots are int(U(-bound, bound)), so less than it. scale: the problem is the reduced equation times
    a whole number of either sign, round(U(1, scale)). no_root: the chance that there is no real root. A
    bound beyond 100 or a scale beyond 1000 makes lines that are too long.
    """

    bound: int
    scale: int
    no_root: float

    unit: ClassVar[Unit] = "length"
    final: ClassVar[int | None] = WIDTH

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return vocabulary(*_CHARACTERS)

    def size(self) -> int:
        return 1

    def tokens(self, n: int) -> int:
        return LINES * WIDTH

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        at_least_one(n, self.unit)
        g, T = generator, self.tokens(n)
        u = torch.rand(rows, 6, generator=g, dtype=torch.float64).tolist()
        ids_BT = torch.full((rows, T), PAD)
        length_B = torch.empty(rows, dtype=torch.int64)
        for i, (u1, u2, u_scale, u_sign, u_none, u_extra) in enumerate(u):
            r1, r2 = (int((2 * x - 1) * self.bound) for x in (u1, u2))
            a = round(1 + u_scale * (self.scale - 1)) * (1 if u_sign < 0.5 else -1)
            extra = 1 + int(u_extra * self.bound**2) if u_none < self.no_root else 0
            text = "".join(line.ljust(WIDTH, FILL) for line in solution(a, r1, r2, extra))
            length_B[i] = len(text)
            ids_BT[i, : len(text)] = torch.tensor([_IDS[character] for character in text])
        target_BT = torch.full_like(ids_BT, IGNORE)
        target_BT[:, WIDTH - 1 : -1] = ids_BT[:, WIDTH:]
        target_BT[target_BT == PAD] = IGNORE
        return Sequences(ids_BT, length_B, target_BT, torch.full((rows,), WIDTH - 1))


def solution(a: int, r1: int, r2: int, extra: int = 0) -> list[str]:
    """The lines, unfilled, of the equation a (x - r1) (x - r2) = 0.

    With extra > 0, one with the same sum of roots and no real root: the reduced constant is extra above a
    quarter of the squared sum, rounded down.
    """
    b = -(r1 + r2)
    c = b * b // 4 + extra if extra else r1 * r2
    D = b * b - 4 * c
    lines = [f"{a}*x^2{a * b:+d}*x{a * c:+d}=0", f"x^2{b:+d}*x{c:+d}=0"]
    discriminant = f"D={abs(b)}^2-4*1*{c}={D}"
    if extra:
        return [*lines, discriminant]
    root = math.isqrt(D)
    low, high = sorted((r1, r2))
    return [
        *lines,
        f"{discriminant}={root}^2",
        f"x=({-b}-{root})/2={low}",
        f"x=({-b}+{root})/2={high}",
        f"{low},{high}",
    ]
