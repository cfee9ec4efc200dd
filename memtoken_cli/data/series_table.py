"""Named columns of numbers, dates and text as a series' table: what files other than CSV, and arrays, become.

T rows, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from memtoken_cli.data.series import Kind, SeriesKeys
from memtoken_cli.data.series_build import Raw
from memtoken_cli.data.series_columns import Cells, choose, counts_rows, kind_of_cells, unique_names
from memtoken_cli.data.series_csv import far_offset, seconds_of
from memtoken_cli.data.series_runs import Runs
from memtoken_cli.data.series_time import format_iso, parse_iso
from memtoken_cli.io.errors import DataError

SAMPLE = 200  # rows that tell what a column holds

Column = np.ndarray  # [T], numbers, dates or text


def raw_of(
    values_TC: np.ndarray,
    time: Sequence[Any] | np.ndarray | None,
    channels: Sequence[str] | None,
    keys: SeriesKeys,
) -> Raw:
    """Arrays as a table of their own. Raises DataError where shapes disagree."""
    x_TC = np.asarray(values_TC)
    x_TC = x_TC[:, None] if x_TC.ndim == 1 else x_TC
    if x_TC.ndim != 2 or x_TC.dtype.kind not in "fiub":
        raise DataError(f"an array of shape [rows, channels] is wanted, found {x_TC.dtype} of {x_TC.shape}")
    names = tuple(channels) if channels is not None else tuple(f"c{i}" for i in range(x_TC.shape[1]))
    if len(names) != x_TC.shape[1] or len(set(names)) != len(names):
        raise DataError(f"{x_TC.shape[1]} different channel names are wanted, found {len(names)}")
    columns = list(x_TC.T)
    if time is None:
        keys = keys.model_copy(update={"time": "none"})
    else:
        # a name that no channel has
        clock = next(word for word in ("time", "time.", "time..") if word not in names)
        names, columns = (clock, *names), [_texts_or_numbers(time, len(x_TC)), *columns]
        keys = keys.model_copy(update={"time": clock})
    if keys.channels is None:
        wanted = [c for c in range(len(names)) if time is None or c]
        return table(names, columns, keys, "the array", keys.series or "series", "array", only=wanted)
    return table(names, columns, keys, "the array", keys.series or "series", "array")


def _texts_or_numbers(time: Sequence[Any] | np.ndarray, rows: int) -> Column:
    found = np.asarray(time)
    if found.shape != (rows,):
        raise DataError(f"{rows} times are wanted, found {found.shape}")
    return found


def table(
    names: Sequence[str],
    columns: Sequence[Column],
    keys: SeriesKeys,
    source: str,
    name: str,
    kind: Kind,
    headed: bool = True,
    notes: Sequence[str] = (),
    where: Callable[[int], str] | None = None,
    only: Sequence[int] | None = None,
) -> Raw:
    """Named columns of equal length, chosen by `keys`, or by `only` (a time column then comes first).

    headed: the names stood in the file. where: names a row for errors. Raises DataError, UsageError.
    """
    names, more = unique_names(names)
    if only is None:
        choice = choose(names, [_cells(column) for column in columns], keys, source, headed)
        time, label, channels, named = choice.time, choice.label, choice.channels, choice.named
        notes = [*notes, *more, *choice.notes]
    else:
        time, label, channels, named = (0 if len(only) < len(names) else None), None, tuple(only), True
    where = where or partial(_row, source)
    offset_C = np.array([_offset(columns[c]) for c in channels])
    value_TC = np.empty((len(columns[0]), len(channels)), dtype=np.float32)
    for i, c in enumerate(channels):
        number_T = _numbers(columns[c], names[c], where)
        with np.errstate(over="ignore"):
            value_TC[:, i] = number_T - offset_C[i] if offset_C[i] else number_T
    iso = time is not None and _cells(columns[time]) in ("date", "text")
    return Raw(
        name=name,
        source=source,
        kind=kind,
        values_TC=value_TC,
        channels=tuple(names[c] for c in channels),
        offset_C=offset_C,
        where=where,
        time_T=None if time is None else _clock(columns[time], names[time], where),
        time_name=None if time is None else names[time],
        iso=iso,
        counter=channels[0] == 0 and counts_rows(names[0], headed),
        named=named,
        label_runs=None if label is None else Runs().add(map(text_of, columns[label])).runs,
        notes=list(notes),
        texts=None if time is None else partial(_texts, columns[time]),
    )


def _row(source: str, row: int) -> str:
    return f"{source}, row {row}"


def _cells(column: Column) -> Cells:
    if column.dtype.kind in "fiub":
        return "number"
    if column.dtype.kind == "M":
        return "date"
    return kind_of_cells([text_of(value) for value in column[:SAMPLE]])


def _offset(column: Column) -> float:
    if column.dtype.kind not in "fiu":
        return 0.0
    sample = column[:SAMPLE].astype(np.float64)
    return far_offset(sample[np.isfinite(sample)])


def _numbers(column: Column, name: str, where: Callable[[int], str]) -> np.ndarray:
    if column.dtype.kind in "fiub":
        return column.astype(np.float64)
    out_T = np.full(len(column), np.nan)
    for row, value in enumerate(column):
        text = text_of(value)
        if kind_of_cells([text]) == "text":
            raise DataError(f"{text[:40]!r} is no number, in column {name!r}", where=where(row))
        try:
            out_T[row] = float(text) if text.strip() else np.nan
        except ValueError:
            out_T[row] = np.nan  # NA and its like: gaps
    return out_T


def _clock(column: Column, name: str, where: Callable[[int], str]) -> np.ndarray:
    """Times as float64; dates as seconds since the epoch. Raises DataError."""
    if column.dtype.kind in "fiub":
        return column.astype(np.float64)
    if column.dtype.kind == "M":
        since_T = seconds_of(column.astype("datetime64[ns]").astype(np.int64))
        return np.where(np.isnat(column), np.nan, since_T)
    out_T = np.empty(len(column))
    for row, value in enumerate(column):
        found = parse_iso(text_of(value))
        if found is None:
            hint = "such as 2024-05-01T12:00:00.250Z; time=none takes the row index instead"
            what = f"the time {text_of(value)[:40]!r} is no ISO-8601 date, in column {name!r}"
            raise DataError(what, hint=hint, where=where(row))
        out_T[row] = found
    return out_T


def _texts(column: Column) -> Iterator[str]:
    """Times as text: numbers in their shortest form, dates as ISO-8601."""
    if column.dtype.kind == "M":
        for value in column.astype("datetime64[ns]").astype(np.int64):
            yield format_iso(int(value) / 1e9)
        return
    for value in column:
        yield text_of(value)


def text_of(value: Any) -> str:
    """A cell as text; None as nothing, a whole float without its point."""
    if value is None:
        return ""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
