"""What a memory is held against, with the same weights: none, and another row's.

A control acts on the state at every boundary between segments, and nowhere else. Where the state is what the
model answers from, both lose; a model that ignores its memory loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from memtoken_cli.methods.rmt.policy import Policy, State, select

Control = Literal["own", "none", "shuffled"]
CONTROLS: tuple[Control, ...] = ("own", "none", "shuffled")
Boundary = Callable[[State, int], State]
"""(M_{t+1} as B rows left it, B) -> what they enter the next segment with."""


def boundary(control: Control, policy: Policy) -> Boundary:
    """own: as it is. none: M_1 again. shuffled: that of the row before; a row by itself keeps its own, so
    batches of one are no control."""
    if control == "none":
        return lambda _state, rows: policy.start(rows)
    if control == "shuffled":
        return lambda state, rows: select(state, torch.arange(rows).roll(1))
    return lambda state, _rows: state
