"""What a user says about a few rows: records whose times are not yet rows, and prompts whose are.

How they are read is `prompt_files.py`'s business, how they get rows `prompts.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from memtoken_cli.io.errors import DataError

Clock = Literal["time", "row", "seconds", "track", "drawn"]
Type = Literal["label", "not", "boundary", "no-boundary", "same"]
DEFAULT_LEVEL = "default"
COARSE_LEVEL = "coarse"  # the level that a flat hierarchy is about

# level -> coarse label -> its finer labels
Hierarchy = Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Prompt:
    """One statement about rows [start, end) of the series in hand; a point has end = start + 1.

    Attributes:
        id: as given, else a digest of the canonical record.
        labels: one for "label", one or more for "not", none for the others.
        series: its name. weight: above 0. by, note: as given. line: where it stood, 0 if nowhere.
    """

    id: str
    type: Type
    start: int
    end: int
    labels: tuple[str, ...]
    level: str = DEFAULT_LEVEL
    series: str = ""
    weight: float = 1.0
    by: str | None = None
    note: str | None = None
    line: int = 0


@dataclass(frozen=True)
class Spoken:
    """A record whose times are not yet rows.

    `clock`: what start and end count: "time" (the series' own; text is ISO-8601), "row" (of the file),
    "seconds" (since the epoch or the series' zero), "track" (seconds of an audio track), or "drawn" (the
    series' own on a chart, which ends at its last row; dates may be milliseconds). end None: a point.
    """

    type: Type
    clock: Clock
    start: float | str
    end: float | str | None
    labels: tuple[str, ...]
    level: str
    series: str | None
    weight: float
    id: str | None
    by: str | None
    note: str | None
    line: int
    where: str


@dataclass(frozen=True)
class Deletion:
    """`{"id": ..., "delete": true}`, `{"label": ..., "delete": true}`, or a whole record with "delete"."""

    id: str | None
    label: str | None
    record: Spoken | None
    line: int
    where: str


@dataclass(frozen=True)
class Said:
    """What a source says, in its order. skipped: the faulty records that `bad="skip"` left out."""

    records: tuple[Spoken | Deletion, ...]
    format: str
    source: str
    skipped: tuple[DataError, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resolved:
    """Prompts in canonical order (level, row, type). Deletions come first, then the prompts are added.

    skipped: records that do not fit the series, where `said` was read with bad="skip".
    """

    prompts: tuple[Prompt, ...]
    delete_ids: tuple[str, ...]
    delete_labels: tuple[str, ...]
    warnings: tuple[str, ...]
    skipped: tuple[DataError, ...] = ()
