"""Times of rows: ISO-8601 to seconds and back, units in headers, and the even grid of an irregular series.

T rows of the file, G rows of the grid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from memtoken_cli.io.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from memtoken_cli.data.series import Series

IRREGULAR = 0.1  # the coefficient of variation of steps from which a series is resampled
HOLE = 66  # grid steps that a longer hole in time becomes: more than SHORT_GAP rows lie inside
GROWTH = 8  # a grid may have this many rows for every row of the file
FAR_OFF = 1e8  # seconds (three years): such times count from an epoch, not from a start
_TIME_HEADER = re.compile(r"t(_(ns|us|ms|s))?|time.*|date.*", re.IGNORECASE | re.DOTALL)
_UNITS = {"_ns": 1e-9, "_us": 1e-6, "_ms": 1e-3, "_s": 1.0}
_ZONE = re.compile(r"(Z|[+-]\d{2}(:?\d{2})?)$", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-?(\d{2}|W\d{2}|\d{3}\b)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_time_header(name: str) -> bool:
    """Whether a header names times: t, t_ns, t_us, t_ms, t_s, time..., date... in any case."""
    return _TIME_HEADER.fullmatch(name.strip()) is not None


def unit_of(name: str | None) -> float:
    """Seconds in one unit of a column's times: by the end of its name, else 1."""
    return next((s for end, s in _UNITS.items() if (name or "").strip().lower().endswith(end)), 1.0)


def parse_iso(text: str) -> float | None:
    """Seconds since the epoch, or None for what is no ISO-8601 date. Without a zone it is UTC."""
    text = text.strip()
    if not _DATE.match(text):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return (found - _EPOCH) / timedelta(seconds=1)


def has_zone(text: str) -> bool:
    """Whether a date and time says its zone."""
    _, _, clock = text.strip().replace(" ", "T").partition("T")
    return _ZONE.search(clock) is not None


def format_iso(seconds: float) -> str:
    """Seconds since the epoch as UTC, to the microsecond, without trailing zeros. Raises DataError."""
    try:
        found = _EPOCH + timedelta(microseconds=round(seconds * 1e6))
    except OverflowError:
        raise DataError(f"{seconds:g} seconds since 1970 is no date of the years 1 to 9999") from None
    text = found.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    fraction = f".{found.microsecond:06d}".rstrip("0") if found.microsecond else ""
    return f"{text}{fraction}Z"


def format_like(seconds: float, text: str) -> str:
    """Seconds since the epoch in the zone and the form of a date and time as a file writes it."""
    utc = format_iso(seconds)
    try:
        like = datetime.fromisoformat(text.strip())
    except ValueError:
        return utc
    zone = like.tzinfo
    found = datetime.fromisoformat(utc).astimezone(zone or UTC).replace(tzinfo=zone)
    clock = found.isoformat(sep=" " if " " in text.strip() else "T")
    whole, dot, rest = clock.partition(".")
    clock = f"{whole}.{rest[:6].rstrip('0')}{rest[6:]}" if dot else clock
    return clock.removesuffix("+00:00") + "Z" if text.strip()[-1:] in "Zz" else clock


def spread(time_T: np.ndarray) -> np.ndarray:
    """Equal times set evenly apart up to the next one: clocks coarser than the sampling."""
    import numpy as np

    first = np.flatnonzero(np.diff(time_T, prepend=-np.inf) > 0)
    if len(first) in (1, len(time_T)):
        return time_T
    length = np.diff(first, append=len(time_T))
    room = np.diff(time_T[first])
    per_row = room / length[:-1]
    pace = float(np.median(per_row))
    # a recording begins and ends within a tick of its clock: there the rows go at the usual pace
    late = max(float(room[0] - length[0] * pace), 0.0)
    per_row[0] = (room[0] - late) / length[0]
    per_row = np.append(per_row, min(pace, float(np.median(room)) / length[-1]))
    inside = np.arange(len(time_T)) - np.repeat(first, length)
    even_T = np.asarray(time_T + inside * np.repeat(per_row, length), dtype=np.float64)
    even_T[: length[0]] += late
    return even_T


def usual_step(even_T: np.ndarray) -> float:
    """The median step of spread times; 1 where there is none."""
    import numpy as np

    step = float(np.median(np.diff(even_T))) if len(even_T) > 1 else 1.0
    return step if step > 0 else 1.0


def variation(even_T: np.ndarray) -> float:
    """The coefficient of variation of the steps; 0 below three rows."""
    import numpy as np

    if len(even_T) < 3:
        return 0.0
    steps = np.diff(even_T)
    mean = float(steps.mean())
    return float(steps.std() / mean) if mean > 0 else 0.0


@dataclass(frozen=True)
class Grid:
    """Even rows for an irregular series. place_T: where each row of the file lies, in grid rows (fractions).

    time_G: the grid's times. hole_G: rows that lie in a hole of more than SHORT_GAP steps.
    """

    place_T: np.ndarray
    time_G: np.ndarray
    hole_G: np.ndarray

    @property
    def origin_T(self) -> np.ndarray:
        """For every row of the file the nearest grid row, int64."""
        import numpy as np

        return np.minimum(np.floor(self.place_T + 0.5).astype(np.int64), len(self.time_G) - 1)

    def values(self, value_T: np.ndarray, mean: bool) -> np.ndarray:
        """One channel on the grid, float32: interpolated, or (`mean`) the mean of the rows at each grid row
        where there are any. NaN stays NaN and fills holes."""
        import numpy as np

        rows_G = np.arange(len(self.time_G), dtype=np.float64)
        value_G = np.interp(rows_G, self.place_T, value_T)
        value_G[self.hole_G] = np.nan
        if mean:
            known = np.isfinite(value_T)
            at = self.origin_T[known]
            count = np.bincount(at, minlength=len(rows_G))
            total = np.bincount(at, weights=value_T[known], minlength=len(rows_G))
            value_G = np.where(count > 0, total / np.maximum(count, 1), value_G)
        return np.asarray(value_G, dtype=np.float32)


def grid(even_T: np.ndarray, step: float, where: str) -> Grid:
    """An even grid of `step` through increasing times; long holes are shortened to HOLE steps.

    Raises DataError where it had far more rows than the file.
    """
    import numpy as np

    steps = np.diff(even_T) / step
    long = steps > HOLE - 1
    place_T = np.concatenate([[0.0], np.cumsum(np.where(long, HOLE, steps))])
    count = int(np.floor(place_T[-1] + 0.5)) + 1
    if count > GROWTH * len(even_T) + 4096:
        hint = f"resample={10 * step:.3g} (a longer step, in the series' time) or resample=off"
        raise DataError(
            f"resampling to steps of {step:g} makes {count} rows of {len(even_T)}", hint=hint, where=where
        )
    rows_G = np.arange(count, dtype=np.float64)
    # the last rows may lie half a step beyond the last time
    time_G = np.interp(rows_G, place_T, even_T)
    time_G += np.maximum(rows_G - place_T[-1], 0.0) * step
    hole_G = np.zeros(count, dtype=bool)
    for i in np.flatnonzero(long):
        before, after = (int(np.floor(place_T[k] + 0.5)) for k in (i, i + 1))
        hole_G[before + 1 : after] = True
        # the rows at its rims lie within half a step of the file's, whatever the hole's length
        if before > place_T[i]:
            time_G[before] = even_T[i] + (before - place_T[i]) * step
        if after < place_T[i + 1]:
            time_G[after] = even_T[i + 1] - (place_T[i + 1] - after) * step
    return Grid(place_T, time_G, hole_G)


def track_zero(series: Series) -> float:
    """The series' time at zero of an audio track: 0, or the first row where times count from an epoch."""
    first = float(series.time_T[0])
    return first if series.iso or abs(first) * series.unit >= FAR_OFF else 0.0
