"""How far back a token sees through a cache, and what the cache keeps from segment to segment.

A row's columns are [kept tokens, packed to the left of P columns | text, packed to the left].

Shape suffixes: B rows, C kept tokens, P columns in front of the text, W text columns of a segment, U asking
columns, T all columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """How far a token sees: itself and `window` - 1 before it (None: all), and the first `sinks` of all."""

    window: int | None
    sinks: int = 0

    @property
    def capacity(self) -> int | None:
        """Tokens that the next segment may still see."""
        return None if self.window is None else self.sinks + self.window - 1

    def sees(self, filled_B: Tensor, count_B: Tensor, past: int, start: int, stop: int) -> Tensor:
        """bool [B,U,past + stop]: the text columns start..stop ask; before them are `past` columns of which
        a row fills the first filled_B, and the text. Empty columns are seen by nobody but themselves."""
        index_BT = self.index(filled_B, past, stop)
        kept_P, text_W = (
            torch.arange(past, device=filled_B.device),
            torch.arange(stop, device=filled_B.device),
        )
        real_BT = torch.cat([kept_P < filled_B[:, None], text_W < count_B[:, None]], 1)
        q_BU1, k_B1T = index_BT[:, past + start :, None], index_BT[:, None, :]
        sees_BUT = k_B1T <= q_BU1
        if self.window is not None:
            sees_BUT &= (q_BU1 - k_B1T < self.window) | (k_B1T < self.sinks)
        itself_UT = torch.eye(past + stop, dtype=torch.bool, device=filled_B.device)[past + start :]
        return (sees_BUT & real_BT[:, None, :]) | itself_UT

    @staticmethod
    def index(filled_B: Tensor, past: int, stop: int) -> Tensor:
        """[B,past + stop]: which of a row's tokens a column holds."""
        kept_P, text_W = (
            torch.arange(past, device=filled_B.device),
            torch.arange(stop, device=filled_B.device),
        )
        return torch.cat([kept_P.expand(len(filled_B), -1), filled_B[:, None] + text_W], 1)


@dataclass(frozen=True)
class Kept:
    """What stays behind a segment: column_BC of [past | text] goes to place C where real_BC; dropped_B tokens
    of a row are gone, and filled_B are there."""

    column_BC: Tensor
    real_BC: Tensor
    dropped_B: Tensor
    filled_B: Tensor

    @classmethod
    def of(cls, span: Span, filled_B: Tensor, count_B: Tensor, past: int) -> Kept:
        total_B = filled_B + count_B
        capacity = int(total_B.max()) if span.capacity is None else span.capacity
        dropped_B = (total_B - capacity).clamp(min=0)
        place_C = torch.arange(capacity, device=filled_B.device)
        token_BC = place_C + dropped_B[:, None] * (place_C >= span.sinks)
        column_BC = torch.where(token_BC < filled_B[:, None], token_BC, token_BC + past - filled_B[:, None])
        left_B = total_B - dropped_B
        real_BC = place_C < left_B[:, None]
        return cls(column_BC.masked_fill(~real_BC, 0), real_BC, dropped_B, left_B)
