"""Prompts on a series: the rows that a record's times mean, ids, and what happens where two disagree.

How files look is `prompt_files.py`'s business; which tokens a prompt binds is the method's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Literal

from memtoken_cli.data.prompt_conflicts import Contradiction, canonical, settle
from memtoken_cli.data.prompt_files import parse_prompts
from memtoken_cli.data.prompt_levels import parse_hierarchy
from memtoken_cli.data.prompt_records import parse_prompt
from memtoken_cli.data.prompt_types import (
    COARSE_LEVEL,
    DEFAULT_LEVEL,
    Deletion,
    Hierarchy,
    Prompt,
    Resolved,
    Said,
    Spoken,
    Type,
)
from memtoken_cli.data.series import Series
from memtoken_cli.data.series_time import format_iso, parse_iso, track_zero
from memtoken_cli.io.errors import DataError, Problems, nearest

__all__ = [
    "COARSE_LEVEL",
    "DEFAULT_LEVEL",
    "Deletion",
    "Hierarchy",
    "Prompt",
    "Resolved",
    "Said",
    "Spoken",
    "Type",
    "canonical",
    "from_runs",
    "parse_hierarchy",
    "parse_prompt",
    "parse_prompts",
    "resolve",
    "settle",
]

ROUNDED = 1e-6  # seconds: what other tools round times to
MILLISECONDS = 1e11  # since the epoch, from March 1973; as seconds they would be past the year 5000


def resolve(
    said: Said, series: Series, hierarchy: Hierarchy | None = None, bad: Literal["fail", "skip"] = "fail"
) -> Resolved:
    """Times to rows, ids, conflicts (the later of two labels for one row and level wins, warned).

    Raises DataError: a time outside the series, an unknown level, `label` and `not` of one row equal; the
    problems of all records at once. With bad="skip" they come back as `skipped`.
    """
    problems = Problems()
    prompts: list[Prompt] = []
    ids: list[str] = []
    labels: list[str] = []
    others = 0
    for record in said.records:
        try:
            if isinstance(record, Deletion):
                gone, label = _deleted(record, series, hierarchy)
                ids += [gone] if gone else []
                labels += [label] if label else []
                prompts = [p for p in prompts if p.id != gone and label not in _meant(p)]
            elif record.series not in (None, series.name):
                others += 1
            else:
                prompts.append(_prompt(record, series, hierarchy))
        except DataError as error:
            problems.add(error)
    warnings = list(said.warnings)
    if others:
        warnings.append(f"{others} prompts of other series than {series.name!r} are left aside")
    settled: tuple[Prompt, ...] = ()
    while True:
        try:
            settled, more = settle(prompts, said.source)
            warnings += more
            break
        except Contradiction as error:
            problems.add(error)
            prompts = [p for p in prompts if p is not error.later]
    if bad == "fail":
        problems.raise_any()
    skipped = tuple(e for e in problems.found if isinstance(e, DataError))
    return Resolved(
        settled, tuple(dict.fromkeys(ids)), tuple(dict.fromkeys(labels)), tuple(warnings), skipped
    )


def _meant(prompt: Prompt) -> tuple[str, ...]:
    return prompt.labels if prompt.type == "label" else ()


def _deleted(record: Deletion, series: Series, hierarchy: Hierarchy | None) -> tuple[str | None, str | None]:
    if record.record is None:
        return record.id, record.label
    return _prompt(record.record, series, hierarchy).id, None


def _prompt(record: Spoken, series: Series, hierarchy: Hierarchy | None) -> Prompt:
    _known_level(record, hierarchy)
    start, end = _rows(record, series)
    prompt = Prompt(
        id=record.id or "",
        type=record.type,
        start=start,
        end=end,
        labels=record.labels,
        level=record.level,
        series=series.name,
        weight=record.weight,
        by=record.by,
        note=record.note,
        line=record.line,
    )
    return prompt if prompt.id else replace(prompt, id=digest(prompt, series))


def digest(prompt: Prompt, series: Series) -> str:
    """The id of a prompt that was given none: 12 hex digits of its canonical record, in rows of the file."""
    rows = series.original_row(prompt.start), series.original_row(prompt.end)
    record = [series.name, prompt.type, *rows, list(prompt.labels), prompt.level, prompt.weight]
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _known_level(record: Spoken, hierarchy: Hierarchy | None) -> None:
    if not hierarchy or record.level == DEFAULT_LEVEL or record.level in hierarchy:
        return
    levels = (DEFAULT_LEVEL, *hierarchy)
    close = nearest(record.level, levels)
    hint = f"did you mean {close}?" if close else f"levels: {', '.join(levels)}"
    raise DataError(f"unknown level {record.level!r} in the hierarchy", hint=hint, where=record.where)


def _rows(record: Spoken, series: Series) -> tuple[int, int]:
    """[start, end) in rows in hand. Raises DataError outside the series."""
    if record.clock == "row":
        first, last = int(record.start), int(record.end if record.end is not None else int(record.start) + 1)
        if not 0 <= first < series.rows or last > series.rows:
            outside = first if not 0 <= first < series.rows else last
            raise DataError(
                f"row {outside} is outside the series (rows 0 to {series.rows - 1})",
                hint="rows are counted from 0, without the header",
                where=record.where,
            )
        start = series.row_in_hand(first)
        return start, max(series.row_in_hand(last) if record.end is not None else 0, start + 1)
    slack = 0.0 if record.clock in ("time", "drawn") else ROUNDED / series.unit
    begin = _clock(record.start, record, series)
    _inside(begin, series, record, begin < series.end_time - series.tolerance or len(series) == 1, slack)
    if record.end is None:
        row = series.row_of(begin, slack)
        return row, row + 1
    finish = _clock(record.end, record, series)
    if finish < begin:
        raise DataError(
            f"start {record.start} after end {record.end}", hint="start comes before end", where=record.where
        )
    _inside(finish, series, record, finish <= series.end_time + max(slack, series.tolerance), slack)
    start, end = series.edge_of(begin, slack), series.edge_of(finish, slack)
    if record.clock == "drawn" and end == len(series) - 1:
        end = len(series)
    if end > start:
        return start, end
    row = series.row_of(begin, slack)  # shorter than a step: the row that holds it
    return row, row + 1


def _clock(value: float | str, record: Spoken, series: Series) -> float:
    """A record's time as the series counts it."""
    if isinstance(value, str):
        if not series.iso:
            what = (
                "the series has no column of times"
                if series.time_name is None
                else "the series' times are numbers"
            )
            hint = f"a number from {series.time_of(0):.10g} to {series.time_of(len(series) - 1):.10g}"
            raise DataError(f"{value!r} is a date, but {what}", hint=hint, where=record.where)
        found = parse_iso(value)
        assert found is not None, "a record's text was parsed when it was read"
        return found
    if record.clock == "seconds":
        return value / series.unit
    if record.clock == "drawn" and series.iso and abs(value) >= MILLISECONDS:
        return value / 1000
    return value / series.unit + track_zero(series) if record.clock == "track" else value


def _inside(time: float, series: Series, record: Spoken, before_end: bool, slack: float) -> None:
    first, last = series.time_of(0), series.time_of(len(series) - 1)
    if time >= first - max(slack, series.tolerance) and before_end:
        return
    shown = [format_iso(t) if series.iso else f"{t:.12g}" for t in (time, first, last)]
    unit = "rows" if series.time_name is None else f"column {series.time_name!r}"
    raise DataError(
        f"time {shown[0]} is outside the series ({unit} {shown[1]} to {shown[2]})",
        hint="times are in the series' own unit; row counts rows from 0",
        where=record.where,
    )


def from_runs(series: Series) -> tuple[Prompt, ...]:
    """One interval for every run of `label_col`; none where the series was read without it."""
    out = []
    for run in series.labels or ():
        prompt = Prompt(
            "", "label", run.start, run.end, (run.label,), series=series.name, by="label_col", line=run.line
        )
        out.append(replace(prompt, id=digest(prompt, series)))
    return tuple(out)
