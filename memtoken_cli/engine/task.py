"""What a training run needs to know about what it trains: phases, batches, losses, and extra state.

`Task` is the protocol every trained method implements; `Observes`, `Paces` and `Validates` are optional ones
that `fit.py` asks for by isinstance. How steps are taken and kept is not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from memtoken_cli.engine.adam import Decay

State = Mapping[str, Any]
"""A task's own state: tensors and JSON-ready values by name."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own parameters and schedule.

    Args:
        parameters: what moves, by a name that means the same parameter in every phase; all others of the
            task's parameters are frozen meanwhile.
        warmup: steps of linear warm-up. clip: the largest gradient norm, or None.
        weight_decay: on matrices and larger only. floor: the share of `lr` that the rate ends at.
    """

    name: str
    steps: int
    lr: float
    parameters: Mapping[str, Parameter]
    warmup: int = 0
    decay: Decay = "cosine"
    weight_decay: float = 0.01
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    floor: float = 0.0


@dataclass(frozen=True)
class At:
    """A place in a run: `step` counts from 1 over all phases, `index` from 0 within the phase's `steps`."""

    step: int
    phase: str
    index: int
    steps: int


@dataclass(frozen=True)
class Loss:
    """A part of a batch: the SUM of its losses, how many they are, and other (sum, count) pairs by name.

    A `total` without a graph says that the task has added the sum's gradients to `.grad` itself (replay).
    """

    total: Tensor
    count: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Enough(Exception):
    """Raised by `batch`, `observe` or `validate`: training has got what it can or should, and ends here."""


class Task(Protocol):
    """What is trained."""

    def phases(self) -> Sequence[Phase]: ...

    def batch(self, at: At, generator: torch.Generator) -> Sequence[Any] | Tensor:
        """The whole batch of a step, sliceable by sample: a function of its arguments and `state()` only."""
        ...

    def loss(self, part: Any) -> Loss:
        """The loss of a slice of a batch; its value must not depend on the rest of the batch."""
        ...

    def state(self) -> State:
        """What else a checkpoint must hold (a curriculum, an average)."""
        ...

    def load_state(self, state: State) -> None: ...


@runtime_checkable
class Observes(Protocol):
    def observe(self, at: At, means: Mapping[str, float]) -> Mapping[str, float]:
        """Called after every step with the means of the whole batch; what it returns is logged too."""
        ...


@runtime_checkable
class Paces(Protocol):
    def pace(self, at: At) -> float:
        """A factor on the learning rate (a warm-up at a change of stage)."""
        ...


@runtime_checkable
class Validates(Protocol):
    def validate(self, at: At) -> Mapping[str, float]:
        """Metrics on held-out data, the same on every rank; training state must stay as it is."""
        ...
