"""From decoded levels to result rows: segments, and one row for every row of the file. Text comes out in
pieces.

Everything here counts rows of the file (`origin_T` led back); tokens are those of the rows in hand.

Shape suffixes: T rows of the file, N tokens, K states.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from memtoken_cli.data.series import Series
from memtoken_cli.data.series_time import format_like
from memtoken_cli.io.sink import encode
from memtoken_cli.methods.memprompttss.levels import Level, runs

PIECE = 8192  # rows a piece of text
COLUMNS = (
    "series", "level", "start", "end", "start_row", "end_row", "state", "confidence", "prompts", "evidence",
)  # fmt: skip

# (level, first token, end token) -> (prompt id, weight), most first
Evidence = Callable[[str, int, int], Sequence[tuple[str, float]]]


@dataclass(frozen=True)
class Segment:
    """A run of one state: rows of the file [start_row, end_row), in the series' own time [start, end).

    state: "" in a gap. confidence: the chain's mean belief in the state, None where it had none. prompts:
    how many lie in it. evidence: (id, weight) of the up to three prompts that decided it most.
    """

    series: str
    level: str
    start: float
    end: float
    start_row: int
    end_row: int
    state: str
    confidence: float | None
    prompts: int
    evidence: tuple[tuple[str, float], ...]
    written: tuple[str, str] | None = None  # start and end as the file writes times, where those are dates

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        told = [{"id": name, "weight": round(weight, 4)} for name, weight in self.evidence]
        start, end = self.written or (self.start, self.end)
        return {**{n: getattr(self, n) for n in COLUMNS}, "start": start, "end": end, "evidence": told}


def segments_of(level: Level, series: Series, stride: int, evidence: Evidence | None) -> tuple[Segment, ...]:
    """A level's runs over the file's rows."""
    states_T = series.on_rows(level.states_T)
    clock = _Clock(series)
    named_T = _named(level, len(series))
    points = np.array(sorted(prompt.start for prompt in level.own), np.int64)
    out = []
    for a, b in runs(states_T).tolist():
        k = int(states_T[a])
        first, last = series.row_in_hand(a), series.row_in_hand(b - 1) + 1
        tokens = first // stride, (last - 1) // stride + 1
        sure = None
        if k >= 0 and level.p_NK is not None:
            share = float(named_T[first:last].mean())  # within a token, what was said may be all that tells
            sure = round(max(float(level.p_NK[slice(*tokens), k].mean(dtype=np.float64)), share), 4)
        held = int(np.searchsorted(points, last) - np.searchsorted(points, first))
        why = tuple(evidence(level.source or level.name, *tokens)) if evidence is not None and k >= 0 else ()
        state = level.labels[k] if k >= 0 else ""
        out.append(Segment(series.name, level.name, clock.at(a), clock.at(b), a, b, state, sure, held, why))
    return tuple(out)


def dated(segments: Sequence[Segment], series: Series) -> tuple[Segment, ...]:
    """Segments with dates as the file writes them: one more pass over its times. Others come back as they
    are."""
    if not series.iso:
        return tuple(segments)
    wanted = {row for s in segments for row in (s.start_row, s.end_row)}
    texts = {row: text for row, text in enumerate(series.time_text()) if row in wanted}
    end = format_like(series.end_time, next(iter(texts.values()), ""))
    return tuple(replace(s, written=(texts[s.start_row], texts.get(s.end_row, end))) for s in segments)


class _Clock:
    """When a row of the file begins, to a millionth of a step."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.digits = 6 - math.floor(math.log10(series.step)) if series.step > 0 else 12

    def at(self, row: int) -> float:
        series = self.series
        time = series.end_time if row >= series.rows else series.time_of(series.row_in_hand(row))
        return round(time, self.digits)


def number(value: float) -> str:
    """A time without a needless point."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def segment_text(segments: Sequence[Segment], as_csv: bool) -> Iterator[str]:
    """Lines of segments, a header first in CSV."""
    if not as_csv:
        for segment in segments:
            yield encode(segment.row()) + "\n"
        return
    yield ",".join(COLUMNS) + "\n"
    for s in segments:
        sure = "" if s.confidence is None else f"{s.confidence:.4f}"
        why = " ".join(name for name, _ in s.evidence)
        start, end = s.written or (number(s.start), number(s.end))
        yield _csv([s.series, s.level, start, end, s.start_row, s.end_row, s.state, sure, s.prompts, why])


def segment_table(segments: Sequence[Segment]) -> dict[str, list[Any]]:
    """Columns for a table format; evidence is the ids."""
    columns: dict[str, list[Any]] = {name: [getattr(s, name) for s in segments] for name in COLUMNS}
    for at, name in enumerate(("start", "end")):
        columns[name] = [s.written[at] if s.written else getattr(s, name) for s in segments]
    columns["evidence"] = [" ".join(name for name, _ in s.evidence) for s in segments]
    return columns


@dataclass(frozen=True)
class Column:
    """A level's two columns in `states`."""

    state: str
    confidence: str
    level: Level


def columns_of(levels: Sequence[Level]) -> list[Column]:
    """The first level's are plain, further ones' carry its name."""
    out = []
    for at, level in enumerate(levels):
        suffix = f".{level.name}" if at else ""
        out.append(Column(f"state{suffix}", f"confidence{suffix}", level))
    return out


def state_header(series: Series, levels: Sequence[Level]) -> list[str]:
    columns = columns_of(levels)
    first, rest = columns[0], columns[1:]
    more = [name for column in rest for name in (column.state, column.confidence)]
    return [series.time_name or "row", first.state, first.confidence, "prompted", *more]


def state_text(series: Series, levels: Sequence[Level], stride: int, as_csv: bool) -> Iterator[str]:
    """One line for every row of the file, in order; the time is its text there."""
    header = state_header(series, levels)
    if as_csv:
        yield _csv(header)
    times = series.time_text()
    pieces = [_pieces(series, level, stride, as_csv) for level in levels]
    prompted_T = prompted(series, levels)
    keys = [encode(name) for name in header]
    for start in range(0, series.rows, PIECE):
        end = min(start + PIECE, series.rows)
        texts = list(islice(times, end - start))
        texts = [_cell(t) for t in texts] if as_csv else [_json_time(t, series) for t in texts]
        marks = np.where(prompted_T[start:end], "1", "0").tolist()
        found = [next(piece) for piece in pieces]
        lists: list[list[str]] = [texts, found[0][0], found[0][1], marks]
        for states, sure in found[1:]:
            lists += [states, sure]
        if as_csv:
            yield "".join([",".join(row) + "\n" for row in zip(*lists, strict=True)])
        else:
            form = "{" + ", ".join(f"{key.replace('%', '%%')}: %s" for key in keys) + "}\n"
            yield "".join([form % row for row in zip(*lists, strict=True)])
    next(times, None)  # whether the file is still what it was is known at its end


def prompted(series: Series, levels: Sequence[Level]) -> np.ndarray:
    """[T] bool: rows that a label prompt of some level names."""
    return series.on_rows(np.any([_named(level, len(series)) for level in levels], axis=0))


def _named(level: Level, rows: int) -> np.ndarray:
    """[T] bool: rows in hand that a label prompt of this level names."""
    named_T = np.zeros(rows, bool)
    for prompt in level.own:
        if prompt.type == "label":
            named_T[prompt.start : prompt.end] = True
    return named_T


def confidence_of(
    series: Series, level: Level, stride: int, start: int = 0, end: int | None = None
) -> np.ndarray:
    """[rows] float32: how sure the chain is of each row's state; NaN where it has none. A row that a label
    names is certain, also where another row of its token got another one."""
    end = series.rows if end is None else min(end, series.rows)
    at_T = np.arange(start, end) if series.origin_T is None else series.origin_T[start:end]
    states_T = level.states_T[at_T]
    if level.p_NK is None:
        return np.full(len(states_T), np.nan, np.float32)
    sure_T = level.p_NK[np.minimum(at_T // stride, len(level.p_NK) - 1), states_T]
    sure_T[_named(level, len(series))[at_T]] = 1.0
    return np.where(states_T >= 0, sure_T, np.float32(np.nan))


def _pieces(series: Series, level: Level, stride: int, as_csv: bool) -> Iterator[tuple[list[str], list[str]]]:
    """(states, confidences) as text, a piece of rows after another."""
    states_T = series.on_rows(level.states_T)
    labels = [_cell(label) if as_csv else encode(label) for label in level.labels]
    names = np.array([*labels, "" if as_csv else '""'], object)
    none = "" if as_csv else "null"
    for start in range(0, series.rows, PIECE):
        part_T = states_T[start : start + PIECE]
        sure_T = confidence_of(series, level, stride, start, start + PIECE)
        same = np.concatenate([[True], (sure_T[1:] != sure_T[:-1])])
        texts = [none if x != x else f"{x:.4f}" for x in sure_T[same].tolist()]
        spread = np.array(texts, object)[np.cumsum(same) - 1]
        yield names[part_T].tolist(), spread.tolist()


def _json_time(text: str, series: Series) -> str:
    if series.iso:
        return encode(text)
    try:
        value = float(text)
    except ValueError:
        return encode(text)
    return number(value)


def _cell(text: str) -> str:
    if not any(c in text for c in ',"\n\r'):
        return text
    return _csv([text])[:-1]


def _csv(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
