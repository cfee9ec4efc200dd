"""The series that an exam is about: a folder's, or generated ones; and the pairs that a bank passes between.

Shape suffixes: T rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from memtoken_cli.data.labelled import Labelled, read_labelled
from memtoken_cli.engine import seeds
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.methods.memprompttss.scene import Scene

SMOKE = 3  # series, or pairs of them, of a smoke run
SMOKE_ROWS = 2048


class Generated(Protocol):
    """How series are made where there is no folder."""

    @property
    def series(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def states(self) -> int: ...


@dataclass(frozen=True)
class Source:
    """Where an exam's series come from: a folder, or the generator with a seed."""

    keys: EvaluateKeys
    path: str | None
    generated: Generated
    seed: int

    def scenes(self) -> list[Scene]:
        """Raises DataError for a folder without a labelled series."""
        if self.path is not None:
            found = read_labelled(self.path, self.keys.channels)
        else:
            found = [series[0] for series in self._made(pair=False)]
        return [Scene(series) for series in found[: self._limit]]

    def pairs(self) -> list[tuple[Scene, Scene]]:
        """(prompted, read) series that share states. Raises DataError where there is no such pair."""
        if self.path is not None:
            scenes = [Scene(series) for series in read_labelled(self.path, self.keys.channels)]
            found = [(scenes[a], scenes[b]) for a, b in chained([s.series for s in scenes], self.keys.pairs)]
        else:
            found = [(Scene(a), Scene(b)) for a, b in self._made(pair=True)]
        found = [(a, b) for a, b in found if np.isin(b.truth_N, a.truth_N).any()]
        if not found:
            raise DataError(f"no two series of {self.path} follow each other and share a state")
        return found[: self._limit]

    @property
    def _limit(self) -> int | None:
        limit = self.keys.limit
        return min(limit or SMOKE, SMOKE) if self.keys.smoke else limit

    def _made(self, pair: bool) -> list[tuple[Labelled, ...]]:
        from memtoken_cli.data.states import Sample, make

        about = self.generated
        rows = min(about.rows, SMOKE_ROWS) if self.keys.smoke else about.rows
        wanted = about.series if self._limit is None else min(about.series, self._limit)

        def labelled(name: str, sample: Sample) -> Labelled:
            channels = tuple(f"c{i}" for i in range(sample.values_TC.shape[1]))
            return Labelled(name, sample.values_TC, sample.states_T, channels)

        found: list[tuple[Labelled, ...]] = []
        for i in range(wanted):
            rng = np.random.default_rng(seeds.derive(self.seed, "exam", i))
            if pair:
                a, b = make(rng, rows=rows, channels=about.channels, states=about.states, pair=True)
                found.append((labelled(f"series{i:02d}a", a), labelled(f"series{i:02d}b", b)))
            else:
                one = make(rng, rows=rows, channels=about.channels, states=about.states)
                found.append((labelled(f"series{i:02d}", one),))
        return found


def chained(series: Sequence[Labelled], kind: str) -> list[tuple[int, int]]:
    """Which series follows which: `next` in the list; `same`: of one prefix up to the last `_`; `other`: the
    first of a prefix, then the first of the next."""
    prefix = [one.name.rpartition("_")[0] for one in series]
    if kind == "other":
        first = [i for i in range(len(series)) if i == 0 or prefix[i] != prefix[i - 1]]
        return list(pairwise(first))
    follow = [(i, i + 1) for i in range(len(series) - 1)]
    return [(a, b) for a, b in follow if kind == "next" or prefix[a] == prefix[b]]


def reordered(series: Labelled, seed: int) -> Labelled:
    """The same segments in another order, drawn with `seed`."""
    pieces = np.split(np.arange(series.rows), series.changes)
    order = np.random.default_rng(seed).permutation(len(pieces))
    at_T = np.concatenate([pieces[i] for i in order])
    name = f"{series.name}-reordered"
    return replace(series, name=name, values_TC=series.values_TC[at_T], states_T=series.states_T[at_T])
