"""Where the columns of a segment stand and which of them see each other.

A segment is a row of columns [front read | text | write]: the front is an optional BOS, a row's text is
packed to the left of its W columns. Positions are given to the model explicitly, and always with a mask:
without one transformers takes a gap in the positions for the seam of packed sequences and cuts attention
there.

Shape suffixes: B rows, W text columns, T all columns, Q asking columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import Config


@dataclass(frozen=True)
class Places:
    """The position policy and the sizes of the blocks around the text.

    Args:
        policy: contiguous, pinned, zero, offset:K or wrapped. segment: S. read, write: columns of the blocks.
        front: columns before the read block. limit: positions of the model (used by `wrapped`).
        blocks: whether read and write blocks see all of themselves.
    """

    policy: str
    segment: int
    read: int
    write: int
    front: int = 0
    limit: int = 0
    blocks: bool = False

    @property
    def before(self) -> int:
        """Columns before the text."""
        return self.front + self.read

    @property
    def _text(self) -> int:
        """The position of the first text token."""
        if self.policy == "zero":
            return self.front
        kind, _, distance = self.policy.partition(":")
        return self.front + (int(distance) if kind == "offset" else self.read)

    def largest(self) -> int:
        """The largest position in use; `check` holds it against the model."""
        return int(self.of_write(torch.tensor([self.segment])).max()) if self.write else self._last_text

    @property
    def _last_text(self) -> int:
        return max(self._text + self.segment, self.before) - 1

    def check(self, context: int, windows: tuple[int | None, ...]) -> None:
        """Raises UsageError where a segment does not fit the model's positions or its sliding windows."""
        behind = self.write if self.policy == "wrapped" else 0  # there write columns have the last positions
        largest = max(self.largest(), self._last_text + behind)
        if largest >= context:
            raise UsageError(
                f"positions up to {largest} do not fit the model's {context}",
                hint="a smaller rmt.segment or rmt.slots, or other rmt.positions",
            )
        columns = self.before + self.segment + self.write
        narrow = min((w for w in windows if w is not None), default=columns)
        if columns > narrow:
            raise UsageError(
                f"{columns} columns of a segment do not fit the model's sliding window of {narrow}",
                hint=f"rmt.segment={max(1, narrow - self.before - self.write)}",
            )

    def of_before(self, rows: int) -> Tensor:
        """Positions [B,T] of the front and the read block."""
        front, read = torch.arange(self.front), torch.arange(self.read) + self.front
        if self.policy == "zero":
            read = torch.full_like(read, self.front)
        return torch.cat([front, read]).expand(rows, -1)

    def of_text(self, rows: int, start: int, stop: int) -> Tensor:
        """Positions [B,W] of the text columns start..stop."""
        return (torch.arange(start, stop) + self._text).expand(rows, -1)

    def of_write(self, count_B: Tensor) -> Tensor:
        """Positions [B,T] of the write block behind count_B text tokens."""
        each = torch.arange(self.write, device=count_B.device)
        if self.policy == "wrapped":
            return (each + self.limit - self.write).expand(len(count_B), -1)
        if self.policy == "zero":
            return torch.full_like(each, self._text + self.segment).expand(len(count_B), -1)
        if self.policy == "contiguous":
            return self._text + count_B[:, None] + each
        return (self._text + self.segment + each).expand(len(count_B), -1)

    def whole(self, count_B: Tensor, columns: int) -> Tensor:
        """Positions [B,T] of all columns of a segment whose text has `columns` of them."""
        rows = len(count_B)
        return torch.cat(
            [self.of_before(rows), self.of_text(rows, 0, columns), self.of_write(count_B.cpu())], 1
        ).to(count_B.device)

    def sees(self, count_B: Tensor, columns: int) -> Tensor:
        """bool [B,T,T]: which column a column sees. Padding is seen by nobody but itself."""
        text = torch.arange(columns, device=count_B.device)
        real_BT = torch.ones(
            len(count_B), self.before + columns + self.write, dtype=torch.bool, device=count_B.device
        )
        real_BT[:, self.before : self.before + columns] = text < count_B[:, None]
        order_TT = self._order(columns).to(count_B.device)
        itself_TT = torch.eye(order_TT.shape[0], dtype=torch.bool, device=count_B.device)
        return (order_TT & real_BT[:, None, :]) | itself_TT

    def _order(self, columns: int) -> Tensor:
        total = self.before + columns + self.write
        seen_TT = torch.ones(total, total, dtype=torch.bool).tril()
        if self.blocks:
            for start, length in ((self.front, self.read), (self.before + columns, self.write)):
                seen_TT[start : start + length, start : start + length] = True
        return seen_TT


def places_for(config: Config, context: int, windows: tuple[int | None, ...]) -> Places:
    """Of a policy with columns for its memory, in a model of `context` positions and those windows.

    Raises UsageError where its segments do not fit the model."""
    m, blocks = config.slots, config.mask == "blocks"
    if config.policy == "xl":
        places = Places("contiguous", config.segment, m, 0, 0, context)
    elif config.policy == "armt":
        places = Places(config.positions, config.segment, 0, m, 0, context, blocks)
    elif config.policy == "prmt":
        places = Places(config.positions, config.segment, m, m, 0, context, blocks)
    else:
        read = 0 if config.policy == "none" else m
        write = m if config.policy == "rmt" else 0
        front = int(config.sink == "bos" and read > 0)
        places = Places(config.positions, config.segment, read, write, front, context, blocks)
    places.check(context, windows)
    return places


def additive(sees_BTT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B,1,T,T] as SDPA and eager attention both take it: 0 where seen, the least number where not.

    (An eager path adds its mask, so that a bool one would be silently wrong.)"""
    least = torch.finfo(dtype).min
    return torch.zeros(sees_BTT.shape, dtype=dtype, device=sees_BTT.device).masked_fill_(~sees_BTT, least)[
        :, None
    ]


def laid(places: Places, count_B: Tensor, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(position_BT, additive mask [B or 1,1,T,T]) of whole segments whose text has `columns` columns."""
    if bool((count_B == columns).all()):
        position_1T, mask = _unpadded(places, columns, dtype, count_B.device)
        return position_1T.expand(len(count_B), -1), mask
    return places.whole(count_B, columns), additive(places.sees(count_B, columns), dtype)


@lru_cache(maxsize=64)
def _unpadded(
    places: Places, columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    count_1 = torch.tensor([columns], device=device)
    return places.whole(count_1, columns), additive(places.sees(count_1, columns), dtype)


def part(
    places: Places, start: int, stop: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Additive mask [1,1,stop - start,stop]: the columns start..stop of a segment with `columns` of text ask,
    those before stop are there."""
    sees = places.sees(torch.tensor([columns]), columns)[:, start:stop, :stop]
    return additive(sees, dtype).to(device)
