"""Many rows in one forward, without padding: laid flat, each with its own positions and mask.

Shape suffixes: F tokens of all rows in one flat row, B rows, T places of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .attend import Packing


@dataclass
class Packed:
    """Rows of unequal length as one flat row, each seeing itself (and the memory) only.

    ids_F, position_F [F]; lengths of the rows; mask_BTT True where a row's token sees another
    (None: causal), for rows that are trees.
    """

    ids_F: Tensor
    position_F: Tensor
    lengths: tuple[int, ...]
    mask_BTT: Tensor | None = None

    @classmethod
    def rows(cls, rows: Sequence[Sequence[int]], start: int) -> "Packed":
        """Every row begins at position `start`."""
        lengths = tuple(len(row) for row in rows)
        ids = torch.tensor([token for row in rows for token in row], dtype=torch.long)
        return cls(ids, torch.cat([torch.arange(n) for n in lengths]) + start, lengths)

    @cached_property
    def row_F(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))

    @cached_property
    def last_B(self) -> Tensor:
        """Flat index of each row's last token."""
        return torch.tensor(self.lengths).cumsum(0) - 1

    def packing(self, device: torch.device) -> Packing:
        length_B = torch.tensor(self.lengths)
        T = int(length_B.max())
        start_B = length_B.cumsum(0) - length_B
        place_T = torch.arange(T)
        real_BT = place_T[None] < length_B[:, None]
        index_BT = torch.where(real_BT, start_B[:, None] + place_T, start_B[:, None])
        cols_F = torch.arange(len(self.ids_F)) - start_B[self.row_F]
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None] if self.mask_BTT is None else self.mask_BTT
        # a padded query sees its row's first token, so that its softmax is defined
        mask = (mask & real_BT[:, None, :]) | (place_T == 0)
        return Packing(self.lengths, *(x.to(device) for x in (index_BT, self.row_F, cols_F, mask)))
