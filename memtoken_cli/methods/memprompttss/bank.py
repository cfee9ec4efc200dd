"""The bank: one row a prompt, in canonical order, and what is known of the series that the prompts were given
for. Banks are values: every operation gives a new one, and no row depends on another.

How a bank becomes a file and back is `bank_file.py`'s; what a row holds is the model's (`model.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.methods.memprompttss.hand import moments
from memtoken_cli.methods.memprompttss.model import Encoded, Model, Written

if TYPE_CHECKING:
    from memtoken_cli.data.series import Series

Key = tuple[str, str]  # series, id of the prompt


@dataclass(frozen=True)
class Known:
    """What a bank knows of a series: enough to see whether it has changed, and how its numbers were scaled.

    fingerprint: of the used columns. rows: in hand. step: median. stride: rows a token. mean, std: a channel.
    """

    name: str
    fingerprint: str
    rows: int
    step: float
    stride: int
    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, series: Series, encoded: Encoded) -> Known:
        mean_C, std_C = moments(series.values_TC, series.gap_T)
        return cls(
            series.name,
            series.fingerprint,
            len(series),
            series.step,
            encoded.stride,
            series.channels,
            tuple((mean_C + series.offset_C).tolist()),
            tuple(std_C.tolist()),
        )

    def fits(self, series: Series, encoded: Encoded) -> bool:
        """Whether `of` would say the same: the moments of used columns are those of their fingerprint."""
        about = (series.name, series.fingerprint, len(series), series.step, encoded.stride, series.channels)
        return about == (self.name, self.fingerprint, self.rows, self.step, self.stride, self.channels)


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt's row: what the model wrote, and when in its series' own time [time, until) it lies."""

    written: Written
    time: float
    until: float

    @property
    def key(self) -> Key:
        return self.written.series, self.written.prompt.id


@dataclass(frozen=True, eq=False)
class Bank:
    """model, digest, features: what wrote the rows (see `Model`). rows: in canonical order. series: by name,
    those that rows are of. capacity: rows a state and level, or None. arrived: keys in order of arrival, kept
    only where there is a capacity.
    """

    model: str
    digest: str
    features: int
    rows: tuple[Row, ...] = ()
    series: Mapping[str, Known] = field(default_factory=dict)
    capacity: int | None = None
    arrived: tuple[Key, ...] = ()

    @classmethod
    def empty(cls, model: Model, capacity: int | None = None) -> Bank:
        return cls(model.name, model.digest, model.features, capacity=capacity)

    @property
    def written(self) -> tuple[Written, ...]:
        """What a model reads."""
        return tuple(row.written for row in self.rows)

    @property
    def levels(self) -> tuple[str, ...]:
        """Every level that a prompt is about, sorted."""
        return tuple(sorted({row.written.prompt.level for row in self.rows}))

    def labels(self, level: str) -> tuple[str, ...]:
        """The states that some prompt shows, sorted."""
        told = (row.written.prompt for row in self.rows)
        return tuple(sorted({p.labels[0] for p in told if p.type == "label" and p.level == level}))

    def of(self, name: str) -> tuple[Row, ...]:
        """A series' rows."""
        return tuple(row for row in self.rows if row.written.series == name)

    def save(self, path: str | Path) -> None:
        """Write the bank's file, atomically. Raises OSError."""
        from memtoken_cli.methods.memprompttss import bank_file

        bank_file.save(self, path)

    def find(self, key: Key) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def with_rows(self, rows: Sequence[Row], known: Known) -> Bank:
        """Rows of one series added, each in the place of the one with its key."""
        new = {row.key: row for row in rows}
        kept = [row for row in self.rows if row.key not in new]
        order = tuple(key for key in self.arrived if key not in new)
        arrived = (*order, *new) if self.capacity is not None else ()
        changed = replace(
            self,
            rows=tuple(sorted([*kept, *rows], key=_order)),
            series={**self.series, known.name: known},
            arrived=arrived,
        )
        return changed._settled()

    def without(self, keys: Collection[Key]) -> Bank:
        """Rows taken out: what is left is what it would be had they never been there."""
        if not keys:
            return self
        gone = set(keys)
        kept = tuple(row for row in self.rows if row.key not in gone)
        return replace(self, rows=kept, arrived=tuple(k for k in self.arrived if k not in gone))._settled()

    def limited(self, capacity: int | None) -> Bank:
        """With another capacity; rows that are there count as having come in canonical order."""
        if capacity == self.capacity:
            return self
        arrived = self.arrived or tuple(row.key for row in self.rows)
        return replace(self, capacity=capacity, arrived=arrived if capacity is not None else ())

    def overfull(self) -> tuple[Key, ...]:
        """The oldest rows of states that hold more than the capacity."""
        if self.capacity is None:
            return ()
        age = {key: at for at, key in enumerate(self.arrived)}
        held: dict[tuple[str, str, tuple[str, ...]], list[Key]] = {}
        for row in self.rows:
            prompt = row.written.prompt
            held.setdefault((prompt.level, prompt.type, prompt.labels), []).append(row.key)
        oldest = [sorted(keys, key=age.__getitem__)[: -self.capacity] for keys in held.values()]
        return tuple(key for keys in oldest for key in keys)

    def _settled(self) -> Bank:
        """Without series that have no row left."""
        names = {row.written.series for row in self.rows}
        return replace(self, series={n: k for n, k in sorted(self.series.items()) if n in names})


def write(model: Model, encoded: Encoded, series: Series, prompts: Sequence[Prompt]) -> tuple[Row, ...]:
    """Rows of prompts about `series`; where a prompt stood in its file is forgotten: no byte depends on
    it."""
    bare = [replace(prompt, line=0, series=series.name) for prompt in prompts]
    return tuple(
        Row(written, series.time_of(written.prompt.start), series.time_of(written.prompt.end))
        for written in model.write(encoded, bare, series.name)
    )


def same(a: Prompt, b: Prompt) -> bool:
    """Whether two prompts say the same, wherever they stood."""
    return replace(a, line=0, series="") == replace(b, line=0, series="")


def _order(row: Row) -> tuple[object, ...]:
    p = row.written.prompt
    return (row.written.series, p.level, p.start, p.end, p.type, p.labels, p.id)
