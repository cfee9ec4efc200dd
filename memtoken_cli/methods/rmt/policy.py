"""What a memory policy is: how a state enters a segment and what the segment makes of it.

A state is a tuple of tensors whose first axis is the rows of a batch. `segment` is one whole segment in one
forward, for training and for reading fast; `open`, `feed` and `close` are the same segment piece by piece,
with a cache, for writing. Both give the same logits and the same next state.

Shape suffixes: B rows, W text columns of a segment, U columns fed at once, K wanted columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import DynamicCache

from memtoken_cli.engine.stream import State, chosen
from memtoken_cli.engine.stream import stacked as stack

__all__ = ["Open", "Policy", "State", "chosen", "select", "stack"]


@dataclass
class Open:
    """An open segment of rows that are all equally far: its cache, the state it began with, what a policy
    must remember of its text until it closes."""

    state: State
    cache: DynamicCache
    count: int = 0
    kept: dict[str, Any] = field(default_factory=dict)


class Policy(Protocol):
    """A memory policy around one backbone. training: noise on the state is on, where there is any."""

    training: bool

    @property
    def size(self) -> int:
        """Text tokens S of a segment."""
        ...

    def parameters(self) -> Mapping[str, Parameter]:
        """Its own parameters, by their names in an artifact."""
        ...

    def calibrate(self, ids_BW: Tensor) -> None:
        """Set before any training what depends on the scale of a segment like this one."""
        ...

    def start(self, rows: int) -> State:
        """M_1 for `rows` rows; gradients reach the parameters."""
        ...

    def segment(
        self, ids_BW: Tensor, count_B: Tensor, state: State, wanted_K: Tensor | None
    ) -> tuple[Tensor | None, State]:
        """(float32 logits [B,K,V] at the text columns wanted_K, M_{t+1}).

        count_B: real tokens of each row, packed to the left. A row without any keeps its state to the bit."""
        ...

    def open(self, state: State, rows: int) -> Open:
        """A segment of `rows` rows without text yet."""
        ...

    def feed(self, at: Open, ids_BU: Tensor, wanted: bool = True) -> Tensor | None:
        """float32 logits [B,U,V] of the next tokens of the open segment; None where not wanted."""
        ...

    def close(self, at: Open) -> State:
        """M_{t+1} behind the text that was fed."""
        ...


def select(state: State, rows: Tensor | Sequence[int]) -> State:
    """Some rows of a state, in any order, also several times."""
    index = torch.as_tensor(rows, device=state[0].device) if state else torch.tensor([])
    return tuple(x[index] for x in state)
