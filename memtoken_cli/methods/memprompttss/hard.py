"""What the prompts of the series in hand make certain: terms for the chain (tokens), and then the rows
themselves.

A token holds `stride` rows and has one state, so a prompt binds tokens first and gets its exact rows back in
`overlay`: a prompted row always carries its prompt, and a boundary prompt's change stands at its very row.

Shape suffixes: N tokens, K states, T rows in hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss.potts import FORCED, STUCK, Hard

RULED = 0.75  # of the way from a negative to where its state is shown: at half, one in ten wrong runs kept it
HELD = 8  # tokens beside a boundary that keep one state: a change parts two segments, and none is that short
IMPOSSIBLE = 1e4  # cost of a state that a negative takes off its run; finite: no prompts clash over it


def tokens_of(prompt: Prompt, stride: int, rows: int) -> range:
    """The tokens that a prompt binds: those whose centre row it holds, or else the one it lies in."""
    count = -(-rows // stride)
    first = max(0, -(-(prompt.start - stride // 2) // stride))
    last = -(-(prompt.end - stride // 2) // stride)
    if prompt.end >= rows:  # the last token's centre may lie beyond the series and counts as its last row
        last = count
    if last <= first or prompt.end == prompt.start + 1:
        at = min(prompt.start // stride, count - 1)
        return range(at, at + 1)
    return range(first, min(last, count))


def edge_of(prompt: Prompt, stride: int, count: int) -> int:
    """The token before which the switch of a boundary prompt lies: the first whose centre row is not before
    it."""
    return min(max(-(-(prompt.start - stride // 2) // stride), 1), max(count - 1, 1))


def terms(prompts: Sequence[Prompt], labels: Sequence[str], stride: int, rows: int) -> Hard:
    """The chain's hard terms. Raises DataError where two prompts contradict each other, naming both."""
    count = -(-rows // stride)
    index = {label: k for k, label in enumerate(labels)}
    fixed_N = torch.full((count,), -1, dtype=torch.int64)
    distance: dict[int, tuple[int, float]] = {}
    forbidden: Tensor | None = None
    switch_N = torch.zeros(count, dtype=torch.int8)
    edges = {p.start: edge_of(p, stride, count) for p in prompts if p.type == "boundary" and count > 1}
    for prompt in prompts:
        if prompt.type == "label":
            span = prompt.end - prompt.start
            for j in _beside(prompt, tokens_of(prompt, stride, rows), edges, stride):
                centre = min(j * stride + stride // 2, rows - 1)
                nearness = (span, abs(prompt.start - centre) if span == 1 else 0.0)
                if (
                    j not in distance or nearness < distance[j]
                ):  # shorter prompts know better, nearer ones too
                    distance[j] = nearness
                    fixed_N[j] = index[prompt.labels[0]]
        elif prompt.type == "not":
            forbidden = torch.zeros(count, len(labels), dtype=torch.bool) if forbidden is None else forbidden
            at = tokens_of(prompt, stride, rows)
            for label in prompt.labels:
                if label in index:
                    forbidden[at.start : at.stop, index[label]] = True
    if forbidden is not None:  # what is shown outranks what is ruled out beside it in the same token
        shown = (fixed_N >= 0).nonzero()[:, 0]
        forbidden[shown, fixed_N[shown]] = False
    _switches(prompts, switch_N, fixed_N, stride, rows)
    bound_N = fixed_N >= 0 if forbidden is None else (fixed_N >= 0) | forbidden.any(1)
    return Hard(fixed_N, forbidden, held(switch_N, bound_N))


def _beside(prompt: Prompt, at: range, edges: dict[int, int], stride: int) -> range:
    """The token of a point that a boundary within the token puts on its other side: the next or the last."""
    if len(at) > 1:
        return at
    j = at.start
    for row, edge in edges.items():
        if row // stride == j and edge == j + 1 and prompt.start >= row:
            return range(j + 1, j + 2)
        if row // stride == j and edge == j and prompt.end <= row:
            return range(j - 1, j)
    return at


def _switches(prompts: Sequence[Prompt], switch_N: Tensor, fixed_N: Tensor, stride: int, rows: int) -> None:
    """Fill in where the state must and must not change."""
    count = len(switch_N)
    ruled: dict[int, Prompt] = {}
    for prompt in prompts:
        if prompt.type == "no-boundary" and count > 1:
            ruled.setdefault(edge_of(prompt, stride, count), prompt)
        elif prompt.type == "same":
            at = tokens_of(prompt, stride, rows)
            for j in range(at.start + 1, at.stop):
                ruled.setdefault(j, prompt)
    for edge, prompt in ruled.items():
        switch_N[edge] = STUCK
        a, b = int(fixed_N[edge - 1]), int(fixed_N[edge])
        if a >= 0 and b >= 0 and a != b:
            shown = [p for p in prompts if p.type == "label" and _touches(p, edge, stride, rows)]
            raise clash(prompt, *shown)
    for prompt in prompts:
        if prompt.type == "boundary" and count > 1:
            edge = edge_of(prompt, stride, count)
            a, b = int(fixed_N[edge - 1]), int(fixed_N[edge])
            if edge in ruled:
                raise clash(prompt, ruled[edge])
            if a >= 0 and a == b:
                shown = [p for p in prompts if p.type == "label" and _touches(p, edge, stride, rows)]
                raise clash(prompt, *([p for p in shown if p.start < prompt.start < p.end] or shown))
            switch_N[edge] = FORCED


def held(switch_N: Tensor, bound_N: Tensor) -> Tensor:
    """Edges without a switch beside those where one is forced, so that the change that was shown is not
    undone by the next token: up to HELD tokens, to the middle between two changes, and not as far as another
    hard term (bound_N: tokens that have one), so that no hard term clashes over it."""
    out_N = switch_N.clone()
    forced = (switch_N == FORCED).nonzero()[:, 0].tolist()
    count = len(switch_N)
    for before, edge, after in zip([-count, *forced], forced, [*forced[1:], 2 * count], strict=False):
        for first, step, reach in ((edge, 1, after - edge), (edge - 1, -1, edge - before)):
            token = first
            for _ in range(min(HELD, reach // 2) - 1):
                token += step
                if not 0 <= token < count or bound_N[token] or bound_N[token - step]:
                    break
                near, far = (token, token + 1) if step > 0 else (token + 1, token)
                if switch_N[near] or (0 < far < count and switch_N[far]):
                    break
                out_N[near] = STUCK
    return out_N


def _touches(prompt: Prompt, edge: int, stride: int, rows: int) -> bool:
    return any(j in (edge - 1, edge) for j in tokens_of(prompt, stride, rows))


def clash(*prompts: Prompt) -> DataError:
    """Prompts that cannot all be kept."""
    told = " and ".join(named(prompt) for prompt in prompts)
    return DataError(f"prompts contradict each other: {told}", hint="delete or move one of them")


def named(prompt: Prompt) -> str:
    """How errors and notices call a prompt."""
    label = f" {'/'.join(prompt.labels)}" if prompt.labels else ""
    rows = (
        f"row {prompt.start}" if prompt.end == prompt.start + 1 else f"rows {prompt.start}-{prompt.end - 1}"
    )
    line = f", line {prompt.line}" if prompt.line else ""
    return f"{prompt.type}{label} ({prompt.id}, {rows}{line})"


def needs_another(prompts: Iterable[Prompt], labels: Sequence[str], stride: int, rows: int) -> bool:
    """Whether some prompt leaves no state among `labels`: all ruled out at a token, or a change within
    one."""
    out: dict[int, set[str]] = {}
    for prompt in prompts:
        if prompt.type == "boundary" and len(labels) < 2:
            return True
        if prompt.type == "not":
            for j in tokens_of(prompt, stride, rows):
                out.setdefault(j, set()).update(prompt.labels)
    return any(gone >= set(labels) for gone in out.values())


def around(states_N: Tensor, prompts: Sequence[Prompt], labels: Sequence[str], fixed_N: Tensor,
           stride: int, rows: int) -> Tensor:  # fmt: skip
    """[N,K] bool: every negative's state over the run of it that was decoded around the negative, up to
    RULED of the way to where the state is shown."""
    index = {label: k for k, label in enumerate(labels)}
    ruled_NK = torch.zeros(len(states_N), len(labels), dtype=torch.bool)
    for prompt in prompts:
        if prompt.type != "not":
            continue
        at = tokens_of(prompt, stride, rows)
        for k in (index[label] for label in prompt.labels if label in index):
            for j in {at.start, at.stop - 1}:
                if int(states_N[j]) != k:
                    continue
                start, end = run_of(states_N.numpy(), j)
                shown = (fixed_N[start:end] == k).nonzero()[:, 0] + start
                left, right = shown[shown < j], shown[shown > j]
                start = j - int(RULED * (j - int(left[-1]))) if len(left) else start
                end = j + int(RULED * (int(right[0]) - j)) + 1 if len(right) else end
                ruled_NK[start:end, k] = True
    return ruled_NK


def run_of(states_N: NDArray[np.integer], at: int) -> tuple[int, int]:
    """[start, end) of the run of one state around a token."""
    (changes,) = np.nonzero(states_N[1:] != states_N[:-1])
    place = int(np.searchsorted(changes, at))
    start = int(changes[place - 1]) + 1 if place else 0
    return start, int(changes[place]) + 1 if place < len(changes) else len(states_N)


def overlay(states_T: np.ndarray, prompts: Sequence[Prompt], labels: Sequence[str], stride: int) -> None:
    """Put every prompt on its exact rows, in place; `states_T` are the tokens' states, row by row."""
    count = -(-len(states_T) // stride)
    index = {label: k for k, label in enumerate(labels)}
    before_T = states_T.copy()
    for prompt in prompts:
        if prompt.type == "boundary" and count > 1:
            at = edge_of(prompt, stride, count) * stride
            if at < prompt.start:
                states_T[at : prompt.start] = before_T[at - 1]
            elif at > prompt.start:
                states_T[prompt.start : at] = before_T[at]
    shown = [prompt for prompt in prompts if prompt.type == "label"]
    for prompt in sorted(shown, key=lambda p: p.start - p.end):  # shorter ones last: they know better
        states_T[prompt.start : prompt.end] = index[prompt.labels[0]]
    for prompt in prompts:
        if prompt.type == "not":
            _rule_out(states_T, prompt, {index[label] for label in prompt.labels if label in index})


def _rule_out(states_T: np.ndarray, prompt: Prompt, ruled: set[int]) -> None:
    """A row that a prompt beside it in the token gave a state that is ruled out here takes its
    neighbour's."""
    for row in range(prompt.start, prompt.end):
        if int(states_T[row]) in ruled:
            near = [r for r in (row - 1, row + 1) if 0 <= r < len(states_T)]
            other = [int(states_T[r]) for r in near if int(states_T[r]) not in ruled]
            states_T[row] = other[0] if other else -1
