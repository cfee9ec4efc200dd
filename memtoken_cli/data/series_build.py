"""From what a reader found to a `Series`: gaps, constant channels, irregular sampling, fingerprint.

T rows, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from memtoken_cli.data import series_time
from memtoken_cli.data.series import SHORT_GAP, Kind, Run, Series, SeriesKeys
from memtoken_cli.io.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNTER_ROWS = 16  # fewer rows do not show that a column only counts them
SPARSE = 0.5  # a channel empty in more rows than that, where others are not, is left out


@dataclass
class Raw:
    """A table as a reader found it; `build` may change its arrays.

    Attributes:
        values_TC: float32, less `offset_C`; infinities and NaN are gaps.
        time_T: float64 as given (dates as epoch seconds), or None for the row index.
        where: names a row of the file for errors, "file:line".
        counter: the first channel may be a row number. named: channels were asked for by name.
        label_runs: rows of the file.
    """

    name: str
    source: str
    kind: Kind
    values_TC: NDArray[np.float32]
    channels: tuple[str, ...]
    offset_C: NDArray[np.float64]
    where: Callable[[int], str]
    time_T: NDArray[np.float64] | None = None
    time_name: str | None = None
    iso: bool = False
    counter: bool = False
    named: bool = False
    label_runs: list[Run] | None = None
    notes: list[str] = field(default_factory=list)
    texts: Callable[[], Iterator[str]] | None = None


def build(raw: Raw, keys: SeriesKeys) -> Series:
    """The series in hand. Raises DataError: no row, time backwards or missing, no channel left."""
    rows = len(raw.values_TC)
    if rows == 0:
        hint = "a series has one row for every moment"
        raise DataError("the series has no rows", hint=hint, where=raw.source)
    counts = {"gaps": 0, "gap_rows": 0, "bridged": 0, "equal_times": 0, "dropped": 0, "resampled": 0}
    even_T = _times(raw, counts)
    _finite(raw, counts)
    _drop(raw, counts)
    variation = series_time.variation(even_T)
    irregular = variation > series_time.IRREGULAR
    origin_T, time_T, holes = None, raw.time_T if raw.time_T is not None else even_T, None
    labels = raw.label_runs
    step = series_time.usual_step(even_T)
    asked = float(keys.resample) if isinstance(keys.resample, int | float) else None
    if rows > 1 and (asked is not None or (irregular and keys.resample == "auto")):
        plan = series_time.grid(even_T, asked or step, raw.source)
        mean = (asked or step) > 1.5 * step
        columns = [plan.values(raw.values_TC[:, c], mean) for c in range(raw.values_TC.shape[1])]
        raw.values_TC = np.stack(columns, axis=1)
        origin_T, time_T, holes = plan.origin_T, plan.time_G, plan.hole_G
        step = asked or step
        labels = None if labels is None else _moved(labels, origin_T, len(time_T))
        counts["resampled"] = len(time_T)
        why = f"sampling is irregular (steps vary by {variation:.0%}): " if asked is None else ""
        raw.notes.append(f"{why}{rows} rows are resampled to {len(time_T)} of step {step:g} (resample=off)")
    elif irregular:
        raw.notes.append(f"sampling is irregular (steps vary by {variation:.0%}) and taken as it is")
    gap_T = _bridge(raw, counts, holes)
    return Series(
        name=raw.name,
        values_TC=raw.values_TC,
        gap_T=gap_T,
        channels=raw.channels,
        time_T=time_T,
        time_name=raw.time_name if raw.time_T is not None else None,
        step=step,
        end_time=float(max(time_T[-1], even_T[-1] if origin_T is None else time_T[-1])) + step,
        irregular=irregular,
        origin_T=origin_T,
        rows=rows,
        source=raw.source,
        kind=raw.kind,
        fingerprint=_fingerprint(raw, time_T),
        offset_C=raw.offset_C,
        iso=raw.iso,
        unit=1.0 if raw.iso else series_time.unit_of(raw.time_name),
        notes=tuple(raw.notes),
        counts=counts,
        labels=None if labels is None else tuple(labels),
        texts=raw.texts,
    )


def _times(raw: Raw, counts: dict[str, int]) -> NDArray[np.float64]:
    """Times with equal ones set apart. Raises DataError at the first that is missing or goes back."""
    time_T = raw.time_T
    if time_T is None:
        return np.arange(len(raw.values_TC), dtype=np.float64)
    missing = ~np.isfinite(time_T)
    if missing.any():
        row = int(missing.argmax())
        raise DataError(
            f"no time in column {raw.time_name!r}",
            hint="every row needs its time; time=none takes the row index instead",
            where=raw.where(row),
        )
    steps_T = np.diff(time_T)
    back = steps_T < 0
    if back.any():
        row = int(back.argmax())
        zone = " (local times jump back in autumn: write the zone, such as +01:00)" if raw.iso else ""
        raise DataError(
            f"time goes backwards in column {raw.time_name!r}: {_told(raw, row + 1)} after {_told(raw, row)}",
            hint=f"sort the rows by time, or time=none takes the row index{zone}",
            where=raw.where(row + 1),
        )
    counts["equal_times"] = int(np.count_nonzero(steps_T == 0))
    if not counts["equal_times"]:
        return time_T
    count = counts["equal_times"]
    hint = " (time=none takes the row index)" if count == len(time_T) - 1 > 0 else ""
    raw.notes.append(f"{count} row{'s have' if count > 1 else ' has'} the time of the row before{hint}")
    return series_time.spread(time_T)


def _told(raw: Raw, row: int) -> str:
    assert raw.time_T is not None, "only a column of times is told"
    value = float(raw.time_T[row])
    return series_time.format_iso(value) if raw.iso else f"{value:.12g}"


def _finite(raw: Raw, counts: dict[str, int]) -> None:
    """Infinities become NaN, and all NaN have the same bits."""
    finite_TC = np.isfinite(raw.values_TC)
    counts["gaps"] = finite_TC.size - int(np.count_nonzero(finite_TC))
    if counts["gaps"]:
        raw.values_TC[~finite_TC] = np.nan


def _drop(raw: Raw, counts: dict[str, int]) -> None:
    """Leave out channels that say nothing, each with a notice. Raises DataError where none is left."""
    x_TC = raw.values_TC
    low_C, high_C = np.fmin.reduce(x_TC, axis=0), np.fmax.reduce(x_TC, axis=0)
    rows = len(x_TC)
    keep = []
    sparse = _sparse(x_TC) if counts["gaps"] and not raw.named else frozenset()
    for c, name in enumerate(raw.channels):
        if np.isnan(low_C[c]):
            raw.notes.append(f"channel {name!r} is empty and is left out")
        elif rows > 1 and low_C[c] == high_C[c]:
            raw.notes.append(f"channel {name!r} is constant and is left out")
        elif c in sparse:
            raw.notes.append(
                f"channel {name!r} is empty in most rows and is left out (channels=... keeps it)"
            )
        elif c == 0 and raw.counter and _counts(x_TC[:, 0], raw.offset_C[0]) and not raw.named:
            raw.notes.append(f"column {name!r} counts the rows and is left out (channels=... keeps it)")
        else:
            keep.append(c)
    counts["dropped"] = len(raw.channels) - len(keep)
    if not keep:
        listed = "; ".join(note.split(" and is left out")[0] for note in raw.notes[-counts["dropped"] :])
        raise DataError(
            f"no channel left: {listed}", hint="a channel must vary over the rows", where=raw.source
        )
    if counts["dropped"]:
        raw.values_TC = np.ascontiguousarray(x_TC[:, keep])
        raw.channels = tuple(raw.channels[c] for c in keep)
        raw.offset_C = raw.offset_C[keep]


def _sparse(x_TC: NDArray[np.float32]) -> frozenset[int]:
    """Channels whose long gaps, beyond those that all channels share, cover more than SPARSE of the rows."""
    long_TC = np.zeros(x_TC.shape, dtype=bool)
    for c in range(x_TC.shape[1]):
        for start, end in _runs(np.isnan(x_TC[:, c])):
            if end - start > SHORT_GAP:
                long_TC[start:end, c] = True
    common = int(np.count_nonzero(long_TC.all(axis=1)))
    own_C = np.count_nonzero(long_TC, axis=0) - common
    return frozenset(int(c) for c in np.flatnonzero(own_C > SPARSE * max(len(x_TC) - common, 1)))


def _counts(x_T: NDArray[np.float32], offset: float) -> bool:
    first = float(x_T[0]) + offset
    return (
        len(x_T) >= COUNTER_ROWS
        and first in (0.0, 1.0)
        and bool(np.array_equal(x_T + offset, np.arange(len(x_T)) + first))
    )


def _bridge(raw: Raw, counts: dict[str, int], holes: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Fill short gaps in a line (at an end: hold); the rows of longer ones are returned."""
    x_TC = raw.values_TC
    gap_T = np.zeros(len(x_TC), dtype=bool)
    bridged = 0
    for c in range(x_TC.shape[1]) if counts["gaps"] or holes is not None else ():
        missing_T = np.isnan(x_TC[:, c])
        if not missing_T.any():
            continue
        fill_T = missing_T.copy()
        for start, end in _runs(missing_T):
            if end - start > SHORT_GAP:
                gap_T[start:end] = True
                fill_T[start:end] = False
        known = np.flatnonzero(~missing_T)
        at = np.flatnonzero(fill_T)
        if len(at) and len(known):
            x_TC[at, c] = np.interp(at, known, x_TC[known, c])
            bridged += len(at)
    counts["bridged"] = bridged
    counts["gap_rows"] = int(np.count_nonzero(gap_T))
    if bridged:
        verb = "values are" if bridged > 1 else "value is"
        raw.notes.append(f"{bridged} missing {verb} bridged (gaps of up to {SHORT_GAP} rows)")
    if counts["gap_rows"]:
        raw.notes.append(f"{counts['gap_rows']} rows lie in longer gaps and carry no state")
    return gap_T


def _runs(mask_T: NDArray[np.bool_]) -> Sequence[tuple[int, int]]:
    """[start, end) of every run of True."""
    edges = np.flatnonzero(np.diff(mask_T, prepend=False, append=False))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _moved(runs: list[Run], origin_T: NDArray[np.int64], count: int) -> list[Run]:
    """Runs of the file's rows as runs of rows in hand; each keeps at least one row."""
    out: list[Run] = []
    for run in runs:
        start = int(origin_T[run.start])
        end = int(origin_T[run.end]) if run.end < len(origin_T) else count
        start = max(start, out[-1].end) if out else start
        if end > start:
            out.append(Run(start, end, run.label, run.line))
    return out


def _fingerprint(raw: Raw, time_T: NDArray[np.float64]) -> str:
    digest = hashlib.sha256("\0".join(raw.channels).encode())
    digest.update(f"\0{len(time_T)}\0{raw.time_name or ''}\0".encode())
    times = [time_T] if raw.time_T is not None else []
    for array, dtype in [*((t, "<f8") for t in times), (raw.offset_C, "<f8"), (raw.values_TC, "<f4")]:
        digest.update(np.ascontiguousarray(array, dtype=dtype).data)
    return digest.hexdigest()
