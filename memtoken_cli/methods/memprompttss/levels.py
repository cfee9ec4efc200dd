"""One level of a series decoded: what the bank says of every token, through the chain, under hard prompts.

Costs are the model's (`read`); the chain is `potts.py`'s; exact rows are put back by `hard.overlay`. A long
gap ends the chain: its tokens have no state (-1).

Shape suffixes: N tokens, K states, T rows in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import Tensor

from memtoken_cli.data.prompts import Hierarchy, Prompt
from memtoken_cli.methods.memprompttss import hard as terms
from memtoken_cli.methods.memprompttss import unknown
from memtoken_cli.methods.memprompttss.bank import Bank
from memtoken_cli.methods.memprompttss.model import Encoded, Model, Unary
from memtoken_cli.methods.memprompttss.potts import Hard, Infeasible, decode
from memtoken_cli.methods.memprompttss.potts_sums import marginals


@dataclass(frozen=True)
class Options:
    """How to decode. order: "auto" or "off". smooth: a factor on what a switch costs. unknown: rows unlike
    all memories get `?`. states: how many unknown ones (None: as many as there are). shortest: rows of a
    segment."""

    order: str = "auto"
    smooth: float = 1.0
    unknown: bool = False
    states: int | None = None
    shortest: int = 0
    hierarchy: Hierarchy | None = None


@dataclass(frozen=True, eq=False)
class Level:
    """A decoded level. states_T: int16 index into `labels`, -1 in a gap. sure: what makes `p_NK`, or None
    where there was no model to ask. own: this series' prompts. silent: whether every row is decided by no
    memory at all (unsupervised). source: the level that it was derived from."""

    name: str
    labels: tuple[str, ...]
    states_T: np.ndarray
    sure: Callable[[], np.ndarray] | None
    own: tuple[Prompt, ...]
    silent: bool = False
    source: str | None = None

    @cached_property
    def p_NK(self) -> np.ndarray | None:
        """float32: how sure the chain is of every state. Found when asked for: states need none of it."""
        return None if self.sure is None else self.sure()


def decode_level(
    model: Model,
    encoded: Encoded,
    series: str,
    bank: Bank,
    level: str,
    options: Options,
    gap_T: np.ndarray | None = None,
) -> Level:
    """A level that some prompt has a label for. gap_T: which rows have no state (else: whole tokens). Raises
    DataError for prompts that contradict each other."""
    own = tuple(row.written.prompt for row in bank.of(series) if row.written.prompt.level == level)
    unary = model.read(encoded, series, bank.written, level, options.order)
    # a token of other rows than the model is used to counts for as much of the series
    share = encoded.stride / model.stride_for(encoded.rows)
    unary = replace(unary.times(share), lam=unary.lam * options.smooth)
    if options.unknown or terms.needs_another(own, unary.labels, encoded.stride, encoded.rows):
        unary = unknown.extended(model, encoded, bank, level, unary)
    return chained(encoded, unary, own, level, options, gap_T)


def chained(
    encoded: Encoded,
    unary: Unary,
    own: Sequence[Prompt],
    level: str,
    options: Options,
    gap_T: np.ndarray | None = None,
) -> Level:
    """Costs through the chain, to rows."""
    states_N, solved = solve(encoded, unary, own)
    sure: Callable[[], np.ndarray] = cache(lambda: solved().numpy())
    labels = unary.labels
    if unknown.NAME in labels and bool((states_N == labels.index(unknown.NAME)).any()):
        labels, states_N, p_NK = unknown.clustered(encoded, labels, states_N, solved(), options.states)
        sure = partial(p_NK.numpy)
    states_T = rows_of(states_N.numpy(), encoded, gap_T)
    if options.shortest > 1:
        merge_short(states_T, options.shortest, sure(), encoded.stride, own)
    terms.overlay(states_T, own, labels, encoded.stride)
    return Level(level, labels, states_T, sure, tuple(own))


def solve(encoded: Encoded, unary: Unary, own: Sequence[Prompt]) -> tuple[Tensor, Callable[[], Tensor]]:
    """States of the chain, and what makes its marginals [N,K]; a negative prompt also rules its state out in
    the run around it."""
    hard = terms.terms(own, unary.labels, encoded.stride, encoded.rows)
    cost_NK = unary.cost_NK
    if any(prompt.type == "not" for prompt in own):
        ruled_NK = _ruled_out(encoded, unary, own, hard)
        cost_NK = cost_NK + terms.IMPOSSIBLE * ruled_NK
    states_N = _path(encoded, unary, cost_NK, hard, own)

    def solved() -> Tensor:
        p_NK = torch.zeros_like(cost_NK)
        for a, b in _pieces(encoded.gap_N):
            part = _part(hard, a, b)
            p_NK[a:b] = marginals(cost_NK[a:b], unary.lam, unary.temperature, part, unary.switch_KK)
        return p_NK

    return states_N, solved


def _ruled_out(encoded: Encoded, unary: Unary, own: Sequence[Prompt], hard: Hard) -> Tensor:
    """[N,K] bool: what negatives take off the runs around them. They are about what would be decoded without
    them, and then about what the others leave there: until nothing changes, so that order does not matter."""
    free_NK = unary.cost_NK if unary.free_NK is None else unary.free_NK
    freely = Hard(hard.fixed_N, None, hard.switch_N)
    ruled_NK = torch.zeros(free_NK.shape, dtype=torch.bool)
    for _ in unary.labels:
        states_N = _path(encoded, unary, free_NK + terms.IMPOSSIBLE * ruled_NK, freely, own)
        more_NK = ruled_NK | terms.around(
            states_N, own, unary.labels, hard.fixed_N, encoded.stride, encoded.rows
        )
        if torch.equal(more_NK, ruled_NK):
            break
        ruled_NK = more_NK
    return ruled_NK


def _path(encoded: Encoded, unary: Unary, cost_NK: Tensor, hard: Hard, own: Sequence[Prompt]) -> Tensor:
    states_N = torch.full((len(cost_NK),), -1, dtype=torch.int64)
    for a, b in _pieces(encoded.gap_N):
        try:
            found = decode(cost_NK[a:b], unary.lam, _part(hard, a, b), unary.switch_KK)
        except Infeasible as error:
            raise _named(error, a, own, encoded) from None
        states_N[a:b] = found.states_N
    return states_N


def _named(error: Infeasible, offset: int, own: Sequence[Prompt], encoded: Encoded) -> Exception:
    """The same with the prompts that the tokens at fault belong to."""
    at = range(max(0, error.start + offset - 1), error.end + offset + 2)
    touching = []
    for prompt in own:
        bound = terms.tokens_of(prompt, encoded.stride, encoded.rows)
        if bound.start < at.stop and at.start < bound.stop:
            touching.append(prompt)
    return terms.clash(*touching[:4]) if touching else error


def _pieces(gap_N: Tensor) -> Iterator[tuple[int, int]]:
    """[start, end) of the stretches between gaps."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], gap_N.numpy(), [True]]).astype(np.int8)))
    for a, b in edges.reshape(-1, 2):
        yield int(a), int(b)


def _part(hard: Hard, a: int, b: int) -> Hard:
    if a == 0 and b == len(hard.fixed_N):
        return hard
    forbidden = None if hard.forbidden_NK is None else hard.forbidden_NK[a:b]
    switch_N = hard.switch_N[a:b].clone()
    switch_N[:1] = 0
    return Hard(hard.fixed_N[a:b], forbidden, switch_N)


def rows_of(states_N: np.ndarray, encoded: Encoded, gap_T: np.ndarray | None = None) -> np.ndarray:
    """[T] int16: every token's state on its rows. With `gap_T` the rows of a token at a gap's edge are told
    apart: those outside take the state beside them."""
    states_T = np.repeat(states_N.astype(np.int16), encoded.stride)[: encoded.rows]
    if gap_T is None or not gap_T.any():
        return states_T
    lost_T = (states_T < 0) & ~gap_T
    known = np.flatnonzero((states_T >= 0) & ~gap_T)
    if lost_T.any() and len(known):
        rows = np.flatnonzero(lost_T)
        right = np.minimum(np.searchsorted(known, rows), len(known) - 1)
        left = np.maximum(right - 1, 0)
        nearer = np.abs(known[left] - rows) <= np.abs(known[right] - rows)
        states_T[rows] = states_T[known[np.where(nearer, left, right)]]
    states_T[gap_T] = -1
    return states_T


def runs(states_T: np.ndarray) -> np.ndarray:
    """[R,2] int64: [start, end) of every run of one state."""
    if not len(states_T):
        return np.zeros((0, 2), np.int64)
    cuts = np.flatnonzero(states_T[1:] != states_T[:-1]) + 1
    return np.stack([np.concatenate([[0], cuts]), np.concatenate([cuts, [len(states_T)]])], 1)


def merge_short(
    states_T: np.ndarray, shortest: int, p_NK: np.ndarray, stride: int, own: Sequence[Prompt]
) -> None:
    """Give runs below `shortest` rows to the neighbour that the chain believes more, in place, the shortest
    first; a run that holds a prompt of its label stays."""
    kept_T = np.zeros(len(states_T) + 1, np.int64)
    for prompt in own:
        if prompt.type == "label":
            kept_T[prompt.start : prompt.end] = 1
    kept_T = np.concatenate([[0], np.cumsum(kept_T)])
    while True:
        found = runs(states_T)
        length = found[:, 1] - found[:, 0]
        free = (kept_T[found[:, 1]] == kept_T[found[:, 0]]) & (states_T[found[:, 0]] >= 0)
        short = np.flatnonzero((length < shortest) & free)
        for r in short[np.argsort(length[short], kind="stable")]:
            a, b = (int(x) for x in found[r])
            sides = [int(states_T[at]) for at in (a - 1, b) if 0 <= at < len(states_T) and states_T[at] >= 0]
            if sides:
                p_K = p_NK[a // stride : (b - 1) // stride + 1].sum(0)
                states_T[a:b] = max(sides, key=lambda k: p_K[k])
                break
        else:
            return


def derived(fine: Level, level: str, parents: dict[str, str], own: tuple[Prompt, ...] = ()) -> Level:
    """A coarse level out of a finer one: every state its parent, or itself where it has none."""
    names = [parents.get(label, label) for label in fine.labels]
    labels = tuple(sorted(set(names)))
    to_K = np.array([labels.index(name) for name in names] + [-1], np.int16)

    def summed() -> np.ndarray:
        assert fine.p_NK is not None
        p_NK = np.zeros((len(fine.p_NK), len(labels)), np.float32)
        for k, at in enumerate(to_K[:-1]):
            p_NK[:, at] += fine.p_NK[:, k]
        return p_NK

    sure = None if fine.sure is None else summed
    return Level(level, labels, to_K[fine.states_T], sure, own, fine.silent, fine.source or fine.name)
