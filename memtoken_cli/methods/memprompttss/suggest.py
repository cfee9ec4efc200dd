"""Rows to label next: stretches that look like no state named so far first, then those that the chain doubts.

One suggestion a stretch, by how many rows an answer may put right. Lines are prompts with their label left
open.

Shape suffixes: N tokens, K states, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memtoken_cli.data.series import Series
from memtoken_cli.methods.memprompttss.bank import Bank
from memtoken_cli.methods.memprompttss.levels import Level, runs
from memtoken_cli.methods.memprompttss.model import Encoded, Model

NEW = 1.0  # what a row that looks like no named state counts, against a row that is doubted altogether
KNOWN = 0.1  # what is left of it where the kind is asked about already
APART = 4  # tokens between suggestions


@dataclass(frozen=True)
class Suggestion:
    """row: of the file. time: of the row. guess: the state it has now. margin: how far the chain prefers
    it."""

    row: int
    time: float
    level: str
    guess: str
    margin: float

    def record(self, timed: bool) -> dict[str, Any]:
        """A line of a prompts file whose label is to be filled in."""
        at: dict[str, Any] = {"t": self.time} if timed else {"row": self.row}
        level = {} if self.level == "default" else {"level": self.level}
        return {**at, "label": None, **level, "guess": self.guess, "margin": round(self.margin, 4)}


def suggestions(
    model: Model, encoded: Encoded, series: Series, bank: Bank, level: Level, plain: Level, n: int
) -> list[Suggestion]:
    """The n best rows, fewer where there are not so many stretches."""
    at_N = np.minimum(np.arange(encoded.tokens) * encoded.stride + encoded.stride // 2, encoded.rows - 1)
    states_N, plain_N = level.states_T[at_N], plain.states_T[at_N]
    margin_N = _margins(level, encoded.tokens)
    asked_N = np.zeros(encoded.tokens, bool)
    for prompt in level.own:
        if prompt.type in ("label", "not"):
            asked_N[prompt.start // encoded.stride : (prompt.end - 1) // encoded.stride + 1] = True
    new_N = _novelty(model, encoded, bank, level, plain_N, asked_N)
    doubt_N = np.zeros(encoded.tokens) if level.silent else 1.0 - margin_N
    starts = _stretches(states_N, plain_N)
    open_N = (states_N >= 0) & ~asked_N
    taken_N = asked_N.copy()
    found: list[Suggestion] = []
    for _ in range(len(starts)):
        gain_N = np.where(open_N, doubt_N + NEW * new_N, 0.0)
        total_R = np.add.reduceat(gain_N, starts)
        r = int(total_R.argmax())
        if len(found) == n or total_R[r] <= 0:
            break
        a, b = starts[r], starts[r + 1] if r + 1 < len(starts) else encoded.tokens
        at = _place(gain_N[a:b]) + a
        open_N[a:b] = False
        if taken_N[max(0, at - APART) : at + APART + 1].any():
            continue
        taken_N[at] = True
        new_N[plain_N == plain_N[at]] *= KNOWN
        row = int(at_N[at])
        guess = level.labels[int(states_N[at])]
        found.append(
            Suggestion(series.original_row(row), series.time_of(row), level.name, guess, float(margin_N[at]))
        )
    return found


def _margins(level: Level, tokens: int) -> np.ndarray:
    """[N] how much more the chain believes the best state than the next."""
    if level.p_NK is None:
        return np.zeros(tokens, np.float32)
    if level.p_NK.shape[1] == 1:
        return np.ones(tokens, np.float32)
    top_N2 = np.partition(level.p_NK, -2, axis=1)[:, -2:]
    return top_N2[:, 1] - top_N2[:, 0]


def _novelty(
    model: Model, encoded: Encoded, bank: Bank, level: Level, plain_N: np.ndarray, asked_N: np.ndarray
) -> np.ndarray:
    """[N] in 0..1: whether a token's unsupervised kind has no prompt yet, and how unlike every memory it
    is."""
    named = set(plain_N[asked_N].tolist())
    kind_N = np.array([k not in named for k in plain_N.tolist()], np.float32)
    if level.silent or not bank.rows:
        return kind_N
    strange = model.strangeness(encoded, bank.written, level.name)
    rank_N = np.clip(strange.value_N.float().numpy() / max(strange.known, 1e-6), 0.0, 2.0) / 2.0
    return (kind_N + rank_N) / 2.0


def _stretches(states_N: np.ndarray, plain_N: np.ndarray) -> np.ndarray:
    """[R] where runs of one decoded state within one unsupervised segment begin."""
    joint_N = states_N.astype(np.int64) * (int(plain_N.max(initial=0)) + 2) + plain_N
    return runs(joint_N)[:, 0]


def _place(gain: np.ndarray) -> int:
    """The middle of what is to be gained: half of it lies before."""
    total = np.cumsum(gain)
    return int(np.searchsorted(total, total[-1] / 2))
