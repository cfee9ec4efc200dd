"""Where prompts of the paper's protocol lie, and what they say; everything drawn from a generator of its own.

`single` is the released code's: all prompts are copies of one row. `spread` puts distinct rows into blocks of
S rows that are hit by just as many windows as asked.

Shape suffixes: B subsequences, P prompts, L rows of a subsequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.methods.memprompttss.windows import Geometry

LABEL, BOUNDARY = 0, 1
WRONG, CORRECT = 0, 1


@dataclass(frozen=True)
class Said:
    """Prompts of a batch, all [B,P] int64.

    row: of the subsequence. kind: LABEL or BOUNDARY. aspect: CORRECT ("is y", the bit itself) or WRONG ("is
    not y", the bit flipped). value: a label's class, or a boundary's bit.
    """

    row_BP: Tensor
    kind_BP: Tensor
    aspect_BP: Tensor
    value_BP: Tensor

    def __len__(self) -> int:
        return len(self.row_BP)

    def __getitem__(self, rows: slice) -> Said:
        return Said(self.row_BP[rows], self.kind_BP[rows], self.aspect_BP[rows], self.value_BP[rows])

    def to(self, device: torch.device) -> Said:
        fields = (self.row_BP, self.kind_BP, self.aspect_BP, self.value_BP)
        return Said(*(x.to(device) for x in fields))

    @property
    def named_BP(self) -> Tensor:
        """True where a prompt says which class a row is of."""
        return (self.kind_BP == LABEL) & (self.aspect_BP == CORRECT)

    @classmethod
    def none(cls, B: int) -> Said:
        return cls(*(torch.zeros(B, 0, dtype=torch.int64) for _ in range(4)))


def joined(parts: Sequence[Said]) -> Said:
    """Prompts of several iterations side by side."""
    return Said(
        torch.cat([p.row_BP for p in parts], 1),
        torch.cat([p.kind_BP for p in parts], 1),
        torch.cat([p.aspect_BP for p in parts], 1),
        torch.cat([p.value_BP for p in parts], 1),
    )


def stacked(parts: Sequence[Said]) -> Said:
    """Prompts of several subsequences as one batch."""
    return Said(
        torch.cat([p.row_BP for p in parts]),
        torch.cat([p.kind_BP for p in parts]),
        torch.cat([p.aspect_BP for p in parts]),
        torch.cat([p.value_BP for p in parts]),
    )


def single_rows(geometry: Geometry, hit: float, count: int) -> Tensor:
    """[P]: as few rows as the wanted windows need, at the centres of windows side by side, and copies."""
    held = math.ceil(geometry.rows / geometry.stride)
    needed = max(1, math.ceil(round(hit * geometry.windows) / held))
    last = geometry.length - 1
    centres = [min(geometry.rows // 2 + i * geometry.rows, last) for i in range(needed)]
    return torch.tensor([centres[i % needed] for i in range(count)], dtype=torch.int64)


def spread_rows(geometry: Geometry, hit: float, count: int, real: int, generator: torch.Generator) -> Tensor:
    """[P] distinct rows below `real` in the blocks of `spread_blocks`, taken from each block in turn.

    Where these have too few real rows, from all real rows, and only then more than once.
    """
    rows: list[list[int]] = []
    for block in spread_blocks(geometry, hit, generator):
        inside = range(block * geometry.stride, min((block + 1) * geometry.stride, real))
        order = torch.randperm(len(inside), generator=generator).tolist()
        rows.append([inside[i] for i in order])
    if sum(map(len, rows)) < count:
        order = torch.randperm(real, generator=generator).tolist()
        return torch.tensor([order[i % real] for i in range(count)], dtype=torch.int64)
    turns = max(map(len, rows))
    picked = [block[turn] for turn in range(turns) for block in rows if turn < len(block)]
    return torch.tensor(picked[:count], dtype=torch.int64)


def spread_blocks(geometry: Geometry, hit: float, generator: torch.Generator) -> list[int]:
    """Blocks of S rows whose windows together are round(hit * W), at least one: a drawn block that is hit by
    so many, or a drawn run of windows, covered by blocks side by side."""
    W, held = geometry.windows, geometry.rows // geometry.stride
    target = min(W, max(1, round(hit * W)))
    blocks = W + held - 1
    hits = [min(b, W - 1) - max(0, b - held + 1) + 1 for b in range(blocks)]
    fitting = [b for b in range(blocks) if hits[b] == target]
    if fitting:
        return [fitting[int(torch.randint(len(fitting), (1,), generator=generator))]]
    first = int(torch.randint(W - target + 1, (1,), generator=generator))
    ends = [first + held * (i + 1) - 1 for i in range(target // held)]
    return ends if target % held == 0 else [*ends, first + target - 1]


def say(row_P: Tensor, y_L: Tensor, classes: int, p_wrong: float, generator: torch.Generator) -> Said:
    """What is said of these rows of one subsequence, [1,P]: labels and boundaries, right and negated, each
    with a chance of one half; a payload is false with the chance `p_wrong`, whatever its aspect."""
    P = len(row_P)
    label_P = torch.rand(P, generator=generator) < 0.5
    correct_P = torch.rand(P, generator=generator) < 0.5
    false_P = torch.rand(P, generator=generator) < p_wrong
    step_P = torch.randint(1, max(2, classes), (P,), generator=generator)
    y_P = y_L[row_P]
    other_P = (y_P + step_P) % classes  # uniform over the classes that are wrong
    if classes < 2:
        correct_P = correct_P | label_P  # nothing else can be said of the only class
        false_P = false_P & ~label_P
    class_P = torch.where(correct_P ^ false_P, y_P, other_P)
    before_P = y_L[(row_P - 1).clamp(min=0)]
    bit_P = (y_P != before_P) ^ ~correct_P ^ false_P
    value_P = torch.where(label_P, class_P, bit_P.to(torch.int64))
    kind_P = torch.where(label_P, LABEL, BOUNDARY)
    return Said(row_P[None], kind_P[None], correct_P.to(torch.int64)[None], value_P[None])
