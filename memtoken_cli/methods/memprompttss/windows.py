"""Subsequences, the windows that overlap in them, and levels of granularity: arithmetic on rows alone.

A subsequence has L = (W - 1) S + T rows; window w covers rows w S .. w S + T - 1.

Shape suffixes: B subsequences, L rows of one, W windows, T rows of a window, X rows of any series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """T rows, S stride, W windows."""

    rows: int
    stride: int
    windows: int

    @property
    def length(self) -> int:
        """Rows of a subsequence."""
        return (self.windows - 1) * self.stride + self.rows

    @property
    def start_W(self) -> Tensor:
        """The first row of each window."""
        return torch.arange(self.windows) * self.stride

    def cut(self, x_BL: Tensor) -> Tensor:
        """[B,L,...] -> [B,W,T,...]: every window's rows."""
        return x_BL[:, self.start_W[:, None] + torch.arange(self.rows)]

    def average(self, x_BWT: Tensor) -> Tensor:
        """[B,W,T,...] -> [B,L,...]: the mean over the windows that a row lies in."""
        B = x_BWT.shape[0]
        total = x_BWT.new_zeros(B, self.length, *x_BWT.shape[3:])
        count_L = x_BWT.new_zeros(self.length)
        for w in range(self.windows):
            here = slice(w * self.stride, w * self.stride + self.rows)
            total[:, here] += x_BWT[:, w]
            count_L[here] += 1
        return total / count_L.view(1, -1, *[1] * (total.dim() - 2))

    def holds(self, row_BP: Tensor) -> Tensor:
        """[B,P] rows -> bool [B,W]: the windows that hold one of them (a row below 0 is none)."""
        inside = (row_BP[:, :, None] >= self.start_W) & (row_BP[:, :, None] < self.start_W + self.rows)
        return inside.any(1)


def merge_labels(y_X: NDArray[np.int64], group: int, level: int) -> NDArray[np.int64]:
    """Classes of a level: numbered by first occurrence, then `level` times `group` neighbours become one."""
    merged = _by_first_occurrence(y_X)
    for _ in range(level):
        merged = _by_first_occurrence(merged // group)
    return merged


def _by_first_occurrence(y_X: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(y_X, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
