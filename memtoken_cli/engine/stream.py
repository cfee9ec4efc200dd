"""The one loop over segments, windows, frames or iterations, and how far gradients flow back.

A *state* is any tuple of tensors: M_1 enters the first segment, segment t turns M_t into M_{t+1} and gives a
loss. What a segment is, and what it does, is the caller's. Modes (`Bptt`):

    full      one graph over all segments
    last:k    the state is detached at every boundary between segments but the last k
    replay    the gradients of `full` with the activations of one segment (about 4/3 of its time)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from memtoken_cli.engine import seeds
from memtoken_cli.io.errors import UsageError

State = tuple[Tensor, ...]
Segment = Callable[[int, State], tuple[State, Tensor | None]]
"""Segment t (from 0) of the stream: state M_t -> (M_{t+1}, its summed loss or None)."""


@dataclass(frozen=True)
class Bptt:
    """How far gradients flow back; `last` counts boundaries."""

    kind: Literal["full", "last", "replay"] = "full"
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> Bptt:
        """`full`, `last:K` or `replay`. Raises UsageError."""
        if text == "full":
            return cls("full")
        if text == "replay":
            return cls("replay")
        kind, _, number = text.partition(":")
        if kind == "last" and number.isdecimal():
            return cls("last", int(number))
        raise UsageError(f"bptt {text!r} is not a mode", hint="bptt: full, last:K or replay")


@dataclass(frozen=True)
class Streamed:
    """state: M_{N+1}. total: the summed loss, [] (zero where no segment gave one); in `replay` it carries no
    graph, as its gradients have been added to the leaves' `.grad` already."""

    state: State
    total: Tensor


def run(segment: Segment, state: State, count: int, bptt: Bptt | None = None) -> Streamed:
    """Run `count` segments from `state`; with gradients disabled any mode is a loop in constant memory.

    In `replay` the segment must be a function of (t, state) and of the process-wide generators only.
    """
    bptt = bptt or Bptt()
    if bptt.kind == "replay" and torch.is_grad_enabled():
        return _replay(segment, state, count)
    total: Tensor | None = None
    for t in range(count):
        if bptt.kind == "last" and 0 < t < count - bptt.last:
            state = _detached(state)
        state, loss = segment(t, state)
        total = _added(total, loss)
    return Streamed(state, _or_zero(total, state))


def _replay(segment: Segment, first: State, count: int) -> Streamed:
    """First forward without a graph, keeping every M_t; then, from the end, one segment's graph at a time:
    backward of loss_t + <M_{t+1}, G_{t+1}>, where G_{N+1} = 0 and G_t = grad(M_t)."""
    states, generators = [_detached(first)], []
    total: Tensor | None = None
    with torch.no_grad():
        for t in range(count):
            generators.append(seeds.capture())
            state, loss = segment(t, states[-1])
            states.append(_detached(state))
            total = _added(total, loss)
    after = seeds.capture()
    upstream: list[Tensor | None] = [None] * len(states[-1])
    for t in reversed(range(count)):
        seeds.restore(generators[t])
        leaves = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in states[t])
        outputs, loss = segment(t, leaves)
        roots: list[tuple[Tensor, Tensor | None]] = [] if loss is None else [(loss, None)]
        roots += [(x, g) for x, g in zip(outputs, upstream, strict=True) if g is not None]
        _backward([(x, g) for x, g in roots if x.requires_grad])
        upstream = [x.grad for x in leaves]
    seeds.restore(after)
    _backward([(x, g) for x, g in zip(first, upstream, strict=True) if g is not None and x.requires_grad])
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
