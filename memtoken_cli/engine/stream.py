"""The one loop over segments, windows, frames or iterations, and how far gradients flow back.

A *state* is any tuple of tensors: M_1 enters the first segment, segment t turns M_t into M_{t+1} and gives a
loss. What a segment is, and what it does, is the caller's. Modes (`Bptt`):

    full      one graph over all segments
    last:k    the state is detached at every boundary between segments but the last k
    replay    the gradients of `full` with the activations of one segment (about 4/3 of its time)
    window:k  one step a segment of a stream without end, through that segment and the k before it (`Window`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from memtoken_cli.engine import seeds
from memtoken_cli.io.errors import UsageError

State = tuple[Tensor, ...]
Segment = Callable[[int, State], tuple[State, Tensor | None]]
"""Segment t (from 0) of the stream: state M_t -> (M_{t+1}, its summed loss or None)."""


@dataclass(frozen=True)
class Bptt:
    """How far gradients flow back; `last` counts boundaries, of `last` and of `window`."""

    kind: Literal["full", "last", "replay", "window"] = "full"
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> Bptt:
        """`full`, `last:K`, `replay` or `window:K`. Raises UsageError."""
        if text == "full":
            return cls("full")
        if text == "replay":
            return cls("replay")
        kind, _, number = text.partition(":")
        if kind == "last" and number.isdecimal():
            return cls("last", int(number))
        if kind == "window" and number.isdecimal():
            return cls("window", int(number))
        raise UsageError(f"bptt {text!r} is not a mode", hint="bptt: full, last:K, replay or window:K")


@dataclass(frozen=True)
class Streamed:
    """state: M_{N+1}. total: the summed loss, [] (zero where no segment gave one); in `replay` it carries no
    graph, as its gradients have been added to the leaves' `.grad` already."""

    state: State
    total: Tensor


def run(
    segment: Segment, state: State, count: int, bptt: Bptt | None = None, onward: Segment | None = None
) -> Streamed:
    """Run `count` segments from `state`; with gradients disabled any mode is a loop in constant memory.

    onward: `segment` without its loss, for the pass of `replay` that needs the states alone.

    In `replay` the segment must be a function of (t, state) and of the process-wide generators only. Raises
    ValueError in `window`, which is no way to read a whole stream.
    """
    bptt = bptt or Bptt()
    if bptt.kind == "window" and torch.is_grad_enabled():
        raise ValueError("a window takes one step at a time: Window.step")
    if bptt.kind == "replay" and torch.is_grad_enabled():
        return _replay(segment, onward or segment, state, count)
    total: Tensor | None = None
    for t in range(count):
        if bptt.kind == "last" and 0 < t < count - bptt.last:
            state = _detached(state)
        state, loss = segment(t, state)
        total = _added(total, loss)
    return Streamed(state, _or_zero(total, state))


@dataclass
class Window:
    """Stateful training on an ordered stream, one step a segment (the loss of segment t only, with gradient
    through it and the `back` segments before it).

    kept: the back + 1 newest boundary states M_{t-back} .. M_t of all rows, detached; fewer at the beginning.
    A step re-runs segments t-back .. t from the oldest. `advance` ends it.
    """

    back: int
    kept: list[State] = field(default_factory=list)
    _made: list[tuple[Tensor | None, State]] = field(default_factory=list)

    def step(
        self, segment: Segment, first: State, fresh: Sequence[Tensor], rows_B: Tensor | None = None
    ) -> Streamed:
        """The loss of the newest segment.

        Args:
            segment: i counts over the window's segments, 0 is the oldest. Only the last may give a loss.
            first: M_1 for these rows, with its graph.
            fresh: bool [B] for each segment of the window: the rows whose document begins with it. They enter
                it with M_1 and train it, and nothing flows back to what stood before.
            rows_B: which of the kept rows these are; None: all. Every row comes once before `advance`.
        """
        state = first
        if len(self.kept) >= len(fresh):
            kept = self.kept[-len(fresh)]
            state = kept if rows_B is None else tuple(x[rows_B.to(x.device)] for x in kept)

        def begun(i: int, state: State) -> tuple[State, Tensor | None]:
            return segment(i, chosen(first, state, fresh[i]))

        found = run(begun, state, len(fresh))
        # a row that has overflown begins anew: kept, it would spoil every step from here on
        sound = chosen(_detached(found.state), _detached(first), _finite(found.state, fresh[-1]))
        self._made.append((rows_B, tuple(x.clone() for x in sound)))
        return found

    def advance(self) -> None:
        """Keep what the steps since the last call have made."""
        parts = [state for _, state in self._made]
        made = parts[0] if len(parts) == 1 else stacked(parts)
        indices = [rows_B for rows_B, _ in self._made if rows_B is not None]
        if indices:
            order_B = torch.cat(indices).argsort()
            made = tuple(x[order_B.to(x.device)] for x in made)
        self.kept = [*self.kept, made][-self.back - 1 :]
        self._made = []

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        named = {f"kept.{i}.{j}": x for i, state in enumerate(self.kept) for j, x in enumerate(state)}
        return {"kept": [len(state) for state in self.kept], **named}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state` gave."""
        sizes: list[int] = state["kept"]
        self.kept = [
            tuple(state[f"kept.{i}.{j}"].to(device) for j in range(size)) for i, size in enumerate(sizes)
        ]


def chosen(new: State, old: State, has_B: Tensor) -> State:
    """The rows of `new` where has_B, elsewhere those of `old`. States may have grown to unequal sizes: the
    smaller one is filled up with zeros."""
    if bool(has_B.all()):
        return new
    if not bool(has_B.any()):
        return old
    pairs = (_level(pair) for pair in zip(new, old, strict=True))
    return tuple(torch.where(has_B.to(a.device).view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs)


def stacked(states: Sequence[State]) -> State:
    """The rows of several states, one behind the other, filled up with zeros where their sizes differ."""
    return tuple(torch.cat(_level(parts)) for parts in zip(*states, strict=True))


def _level(parts: Sequence[Tensor]) -> list[Tensor]:
    """All as large as the largest in every axis but the first."""
    if all(x.shape[1:] == parts[0].shape[1:] for x in parts):
        return list(parts)
    most = [max(sizes) for sizes in zip(*(x.shape[1:] for x in parts), strict=True)]

    def filled(x: Tensor) -> Tensor:
        missing = [m - size for m, size in zip(most, x.shape[1:], strict=True)]
        return torch.nn.functional.pad(x, [n for m in reversed(missing) for n in (0, m)])

    return [filled(x) for x in parts]


def _finite(state: State, like_B: Tensor) -> Tensor:
    """bool [B]: the rows without an overflown number."""
    sound_B = torch.ones_like(like_B, dtype=torch.bool)
    for x in state:
        if x.is_floating_point():
            sound_B &= x.detach().isfinite().flatten(1).all(1).to(sound_B.device)
    return sound_B


def _replay(segment: Segment, onward: Segment, first: State, count: int) -> Streamed:
    """First forward without a graph, keeping every M_t; then, from the end, one segment's graph at a time:
    backward of loss_t + <M_{t+1}, G_{t+1}>, where G_{N+1} = 0 and G_t = grad(M_t)."""
    states, generators = [_detached(first)], []
    with torch.no_grad():
        for t in range(count):
            generators.append(seeds.capture())
            states.append(_detached(onward(t, states[-1])[0]))
    after = seeds.capture()
    losses: list[Tensor | None] = [None] * count
    upstream: list[Tensor | None] = [None] * len(states[-1])
    for t in reversed(range(count)):
        seeds.restore(generators[t])
        leaves = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in states[t])
        outputs, loss = segment(t, leaves)
        roots: list[tuple[Tensor, Tensor | None]] = [] if loss is None else [(loss, None)]
        roots += [(x, g) for x, g in zip(outputs, upstream, strict=True) if g is not None]
        _backward([(x, g) for x, g in roots if x.requires_grad])
        upstream = [x.grad for x in leaves]
        losses[t] = None if loss is None else loss.detach()
    seeds.restore(after)
    _backward([(x, g) for x, g in zip(first, upstream, strict=True) if g is not None and x.requires_grad])
    total: Tensor | None = None
    for loss in losses:
        total = _added(total, loss)
    return Streamed(states[-1], _or_zero(total, first))


def _backward(roots: list[tuple[Tensor, Tensor | None]]) -> None:
    if roots:
        torch.autograd.backward([x for x, _ in roots], [g for _, g in roots])


def _detached(state: State) -> State:
    return tuple(x.detach() for x in state)


def _added(total: Tensor | None, loss: Tensor | None) -> Tensor | None:
    if total is None or loss is None:
        return loss if total is None else total
    return total + loss


def _or_zero(total: Tensor | None, state: State) -> Tensor:
    if total is not None:
        return total
    return torch.zeros((), device=state[0].device if state else None)
