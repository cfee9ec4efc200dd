"""Where rows are cut into segments.

Shape suffixes: B rows, T tokens, W text columns of a segment, N segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Align = Literal["left", "right", "center"]


@dataclass(frozen=True)
class Cut:
    """start_NB, count_NB: where each row's part of a segment begins, and its tokens (0: the row has none)."""

    start_NB: Tensor
    count_NB: Tensor

    def __len__(self) -> int:
        return len(self.start_NB)

    def take(self, x_BT: Tensor, t: int, fill: int) -> Tensor:
        """[B,W]: segment t of every row packed to the left, `fill` behind it."""
        start_B, count_B = self.start_NB[t], self.count_NB[t]
        column_W = torch.arange(max(1, int(count_B.max())), device=x_BT.device)
        index_BW = (start_B[:, None] + column_W).clamp(0, x_BT.shape[1] - 1)
        return x_BT.gather(1, index_BW).masked_fill(column_W >= count_B[:, None], fill)


def cut(length_B: Tensor, segment: int, align: Align) -> Cut:
    """Rows of these lengths in segments of at most `segment` tokens.

    left: full segments and a short tail. right: a short head, and all rows end together. center: a row's
    segments are of equal length, ceil(T / N). Within a row tokens keep their order and none is left out.
    """
    each_B = -(-length_B // segment)
    N = max(1, int(each_B.max())) if len(length_B) else 1
    t_N1 = torch.arange(N, device=length_B.device)[:, None]
    size_B = torch.full_like(length_B, segment)
    if align == "center":
        size_B = -(-length_B // each_B.clamp(min=1))
    start_NB, stop_NB = t_N1 * size_B, (t_N1 + 1) * size_B
    if align == "right":
        shift_B = length_B - N * segment
        start_NB, stop_NB = start_NB + shift_B, stop_NB + shift_B
    start_NB = torch.minimum(start_NB.clamp(min=0), length_B)
    stop_NB = torch.minimum(stop_NB.clamp(min=0), length_B)
    return Cut(start_NB, stop_NB - start_NB)
