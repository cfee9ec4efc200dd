"""Rows of a session that are equally far in their open segment, as one batch.

A group holds what is O(S), whatever has been read; what it runs through is in session_reader.py.

Shape suffixes: B rows of a group, U tokens of the open segment, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from memtoken_cli.methods.rmt.policy import Open, State, select, stack
from memtoken_cli.methods.rmt.session_state import Snapshot


@dataclass
class Group:
    """rows: their numbers in the session, ascending. state: M_t, before the open segment. pending_BU: its
    ids.

    at: its cache, of the first at.count of them; None: nothing is computed yet. logits_BV: of the next token,
    once all of them are. last_BE: the hidden state that they come from; None before anything was read, and
    while the newest token is not computed."""

    rows: list[int]
    state: State
    pending_BU: Tensor
    at: Open | None = None
    logits_BV: Tensor | None = None
    last_BE: Tensor | None = None

    @property
    def count(self) -> int:
        """Tokens of the open segment."""
        return self.pending_BU.shape[1]

    @property
    def kind(self) -> tuple[int, bool]:
        """Groups that agree in it can be joined."""
        return (self.count, self.last_BE is None)

    def take(self, index: Sequence[int], rows: list[int]) -> Group:
        """Some of its rows, in any order, also several times, under new numbers."""
        if list(index) == list(range(len(self.rows))):
            at = None if self.at is None else _opened(self.at, None)
            return Group(rows, self.state, self.pending_BU, at, self.logits_BV, self.last_BE)
        where = torch.as_tensor(index, dtype=torch.long, device=self.pending_BU.device)
        return Group(
            rows,
            select(self.state, where),
            self.pending_BU[where],
            None if self.at is None else _opened(self.at, where),
            None if self.logits_BV is None else self.logits_BV[where],
            None if self.last_BE is None else self.last_BE[where],
        )

    def forget(self) -> None:
        """Drop what can be computed again: the open cache and the logits."""
        self.at, self.logits_BV = None, None
        if self.count:
            self.last_BE = None


def _opened(at: Open, where: Tensor | None) -> Open:
    """Rows of an open segment; None: all of them, in a cache of their own over the same tensors."""
    cache = DynamicCache()
    for number, layer in enumerate(at.cache.layers):
        cache.update(_rows(layer.keys, where), _rows(layer.values, where), number)
    return Open(_rows(at.state, where), cache, at.count, _rows(at.kept, where))


def _rows(x: Any, where: Tensor | None) -> Any:
    """Rows of every tensor in nested tuples, lists and dicts; other values as they are."""
    if isinstance(x, Tensor):
        return x if where is None else x[where.to(x.device)]
    if isinstance(x, dict):
        return {key: _rows(value, where) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(_rows(value, where) for value in x)
    return x


def placed(kept: Snapshot, device: torch.device) -> list[Group]:
    """The rows of a snapshot."""
    state, groups = tuple(x.to(device) for x in kept.state), []
    for row, (ids, read) in enumerate(zip(kept.pending, kept.read, strict=True)):
        pending_1U = torch.tensor([ids], dtype=torch.int64, device=device).view(1, -1)
        known = read.tokens > 0 and not ids
        last_1E = kept.last_BE[row : row + 1].to(device) if known else None
        groups.append(Group([row], select(state, [row]), pending_1U, last_BE=last_1E))
    return merged(groups)


def joined(groups: Sequence[Group]) -> Group:
    """One group of several of one kind whose open segments are not computed."""
    order = sorted((row, g, i) for g, group in enumerate(groups) for i, row in enumerate(group.rows))
    starts = [sum(len(g.rows) for g in groups[:number]) for number in range(len(groups))]
    whole = Group(
        [row for row, _, _ in order],
        stack([g.state for g in groups]),
        torch.cat([g.pending_BU for g in groups]),
        None,
        _cat([g.logits_BV for g in groups]),
        _cat([g.last_BE for g in groups]),
    )
    return whole.take([starts[g] + i for _, g, i in order], whole.rows)


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [x for x in parts if x is not None]
    return torch.cat(found) if len(found) == len(parts) else None


def merged(groups: Sequence[Group]) -> list[Group]:
    """The same rows in as few groups as possible without moving a cache, by their first row."""
    kinds: dict[object, list[Group]] = {}
    for number, group in enumerate(groups):
        key: object = group.kind if group.at is None else number
        kinds.setdefault(key, []).append(group)
    found = [same[0] if len(same) == 1 else joined(same) for same in kinds.values()]
    return sorted(found, key=lambda g: g.rows[0])


def apart(groups: Sequence[Group], rows: Collection[int]) -> tuple[list[Group], list[Group]]:
    """(the groups that hold these rows and no others, all groups): those that hold some of both are split."""
    mine, every = [], []
    for group in groups:
        inside = [i for i, row in enumerate(group.rows) if row in rows]
        outside = [i for i, row in enumerate(group.rows) if row not in rows]
        parts = [group]
        if inside and outside:
            parts = [group.take(side, [group.rows[i] for i in side]) for side in (inside, outside)]
        mine += parts[:1] if inside else []
        every += parts
    return mine, every


def picked(groups: Sequence[Group], rows: Sequence[int]) -> list[Group]:
    """Some rows, in any order, also several times: their numbers are then their places in `rows`."""
    new: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        new.setdefault(row, []).append(number)
    found = []
    for group in groups:
        pairs = sorted((n, i) for i, row in enumerate(group.rows) for n in new.get(row, ()))
        if pairs:
            found.append(group.take([i for _, i in pairs], [n for n, _ in pairs]))
    return found


def beside(sessions: Sequence[Sequence[Group]]) -> list[Group]:
    """The groups of several sessions, the rows of each numbered behind those of the one before."""
    found, count = [], 0
    for groups in sessions:
        found += [g.take(range(len(g.rows)), [row + count for row in g.rows]) for g in groups]
        count += sum(len(g.rows) for g in groups)
    return found


def forgotten(groups: Sequence[Group]) -> list[Group]:
    """The same rows without anything that can be computed again, in the groups that loading would make."""
    single = []
    for group in groups:
        group.forget()
        single += [group.take([i], [row]) for i, row in enumerate(group.rows)]
    return merged(sorted(single, key=lambda g: g.rows[0]))
