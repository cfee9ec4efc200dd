"""A series in memory: one float32 array with its times, gaps and names. Readers and repairs are beside.

T rows in hand, C channels. Where the sampling was irregular the rows in hand are resampled ones, and
`origin_T` leads from every row of the file to one of them. Text stays in the file:
`time_text` reads it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from memtoken_cli.io.errors import DataError

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = 1e-6  # of a step
SHORT_GAP = 64  # rows: gaps up to this long are bridged linearly
Kind = Literal["csv", "txt", "npz", "mat", "ts", "parquet", "array"]


class SeriesKeys(BaseModel):
    """The keys of `memtok segment` that concern reading.

    Attributes:
        time: the column of times; left out: by its header; "none": the row index.
        channels: names or globs, separated by commas; left out: every other numeric column.
        label_col: a filled or partly filled column of labels, which become prompts.
        sep, decimal: of a CSV file; left out: sniffed.
        resample: "auto": irregular sampling to its median step; "off"; or a step in the series' own time.
        chunk: rows read at a time; no result depends on it.
        series: the name of the series; left out: the file's stem.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: str | None = None
    channels: str | None = None
    label_col: str | None = None
    sep: str | None = None
    decimal: Literal[".", ","] | None = None
    resample: Literal["auto", "off"] | float = "auto"
    chunk: int = Field(default=65536, ge=1)
    series: str | None = Field(default=None, min_length=1)

    @field_validator("sep")
    @classmethod
    def _sep(cls, value: str | None) -> str | None:
        named = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}
        value = named.get(value, value) if value is not None else None
        if value is not None and (len(value) != 1 or value in '"\r\n.'):
            raise ValueError("one character, or tab, comma, semicolon, space")
        return value

    @field_validator("resample")
    @classmethod
    def _resample(cls, value: str | float) -> str | float:
        if isinstance(value, float) and not 0 < value < float("inf"):
            raise ValueError("auto, off or a step above 0")
        return value


@dataclass(frozen=True)
class Run:
    """A run of one label in `label_col`: rows in hand [start, end), the label as written, its first line."""

    start: int
    end: int
    label: str
    line: int


@dataclass(frozen=True, eq=False)
class Series:
    """One series.

    Attributes:
        name: the key `series`, or the file's stem ("stdin" for standard input).
        values_TC: float32; NaN only in gaps of more than SHORT_GAP rows. Less `offset_C` (float64), which is
            not zero only where float32 would lose what varies.
        gap_T: rows inside such a gap of any channel.
        channels: their names, in the file's order.
        time_T: float64, increasing or equal; numbers as given, ISO-8601 as epoch seconds, else the row index.
        time_name: the column, or None for the row index. iso: whether its cells were dates.
        unit: seconds in one unit of time (1 unless the header ends in _ns, _us or _ms).
        step: the median step. end_time: the last time + step.
        irregular: the steps' coefficient of variation was above .1.
        origin_T: int64, for every row of the file its row in hand; None where they are the same.
        rows: how many rows the file had.
        source: the path as given. kind: of file.
        fingerprint: sha256 of the used columns.
        notes: what a user should be told on stderr.
        counts: gaps, gap_rows, bridged, equal_times, dropped, resampled.
        labels: the runs of `label_col`, or None without it.
        texts: reads the times again as they are written; None: the row index.
    """

    name: str
    values_TC: np.ndarray
    gap_T: np.ndarray
    channels: tuple[str, ...]
    time_T: np.ndarray
    time_name: str | None
    step: float
    end_time: float
    irregular: bool
    origin_T: np.ndarray | None
    rows: int
    source: str
    kind: Kind
    fingerprint: str
    offset_C: np.ndarray
    iso: bool = False
    unit: float = 1.0
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[Run, ...] | None = None
    texts: Callable[[], Iterator[str]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Rows in hand."""
        return len(self.time_T)

    def row_of(self, time: float, slack: float = 0.0) -> int:
        """The row in hand that holds `time`: the last that does not begin after it, clipped to the series.

        `slack`: what writing and reading the time may have moved it, beyond float64.
        """
        near = time + max(slack, self.tolerance)
        found = int(self.time_T.searchsorted(near, side="right")) - 1
        return min(max(found, 0), len(self) - 1)

    def edge_of(self, time: float, slack: float = 0.0) -> int:
        """The first row in hand that begins at `time` or later; len(self) after the last one."""
        return int(self.time_T.searchsorted(time - max(slack, self.tolerance), side="left"))

    @property
    def tolerance(self) -> float:
        """What float64 may move a time when it is written and read."""
        import numpy as np

        largest = max(abs(float(self.time_T[0])), abs(self.end_time))
        return max(TOLERANCE * self.step, 4 * float(np.spacing(largest)))

    def time_of(self, row: int) -> float:
        """When a row in hand begins; `end_time` for len(self)."""
        return float(self.time_T[row]) if row < len(self) else self.end_time

    def original_row(self, row: int) -> int:
        """The first row of the file that lies at a row in hand or later; `rows` for len(self)."""
        return row if self.origin_T is None else int(self.origin_T.searchsorted(row, side="left"))

    def row_in_hand(self, row: int) -> int:
        """Where a row of the file is in hand; len(self) for `rows`."""
        if row >= self.rows:
            return len(self)
        return row if self.origin_T is None else int(self.origin_T[row])

    def on_rows(self, values_T: np.ndarray) -> np.ndarray:
        """What was found for rows in hand, one entry for every row of the file."""
        return values_T if self.origin_T is None else values_T[self.origin_T]

    def time_text(self) -> Iterator[str]:
        """The time of every row of the file, as written there; the row index without a time column.

        Raises DataError where the file has changed since it was read.
        """
        if self.texts is None:
            yield from map(str, range(self.rows))
            return
        given = 0
        for text in self.texts():
            given += 1
            if given > self.rows:
                break
            yield text
        if given != self.rows:
            raise DataError("the file has changed while it was read", where=self.source)


def read_series(path: str | Path, keys: SeriesKeys | None = None) -> Series:
    """A file, or "-". Raises DataError at file:line, UsageError for keys that do not fit."""
    from memtoken_cli.data.series_build import build
    from memtoken_cli.data.series_files import read_file
    from memtoken_cli.data.series_source import source_of

    keys = keys or SeriesKeys()
    name = keys.series or ("stdin" if str(path) == "-" else Path(path).stem)
    return build(read_file(source_of(path), keys, name), keys)


def series_of(
    values_TC: np.ndarray,
    time: Sequence[Any] | np.ndarray | None = None,
    channels: Sequence[str] | None = None,
    keys: SeriesKeys | None = None,
) -> Series:
    """A series from arrays: times are numbers or ISO-8601 text. Raises DataError."""
    from memtoken_cli.data.series_build import build
    from memtoken_cli.data.series_table import raw_of

    keys = keys or SeriesKeys()
    return build(raw_of(values_TC, time, channels, keys), keys)
