"""Text files of the form .ts (sktime, aeon): their cases in order, one after the other, as one series.

A case is a line of channels parted by colons, each with its values parted by commas, and last its class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memtoken_cli.data.series_source import Source
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import decode

CLASS = "label"  # the column of the cases' classes: left out unless label_col names it


@dataclass(frozen=True)
class _Head:
    classed: bool
    channels: int | None


def read_ts(source: Source) -> tuple[list[str], list[np.ndarray], list[str], Callable[[int], str]]:
    """(names, columns, notices, where a row stood). Raises DataError at file:line."""
    head = _Head(False, None)
    cases: list[np.ndarray] = []
    classes: list[str] = []
    lines: list[int] = []
    inside = False
    with source.open() as stream:
        for number, raw in enumerate(stream, 1):
            where = f"{source.name}:{number}"
            text = decode(raw, where).lstrip("\ufeff").strip()
            if not text or text.startswith("#"):
                continue
            if text.startswith("@"):
                inside = text.lower().startswith("@data")
                head = _header(head, text, where)
                continue
            if not inside:
                raise DataError(
                    "values before @data", hint="a .ts file says @data before its cases", where=where
                )
            case_CT, label = _case(text, head, where)
            if cases and len(case_CT) != len(cases[0]):
                what = f"{len(case_CT)} channels instead of {len(cases[0])}"
                raise DataError(what, hint="channels are parted by colons", where=where)
            cases.append(case_CT)
            classes.append(label)
            lines.append(number)
    if not cases:
        raise DataError("the series has no rows", hint="cases follow after @data", where=source.name)
    length = np.array([case.shape[1] for case in cases])
    whole_CT = np.concatenate(cases, axis=1)
    names = [f"c{i}" for i in range(len(whole_CT))]
    columns = list(whole_CT)
    notes = []
    if len(cases) > 1:
        notes.append(f"{len(cases)} cases are read as one series, one after the other")
    if head.classed:
        names.append(CLASS)
        columns.append(np.repeat(np.array(classes, dtype=object), length))
    end_of_case = np.cumsum(length)

    def where_is(row: int) -> str:
        return f"{source.name}:{lines[int(np.searchsorted(end_of_case, row, side='right'))]}"

    return names, columns, notes, where_is


def _header(head: _Head, text: str, where: str) -> _Head:
    word, *rest = text.split()
    word = word.lower()
    if word == "@timestamps" and rest[:1] and rest[0].lower() == "true":
        hint = "write the times and values as CSV"
        raise DataError("a .ts file with time stamps cannot be read", hint=hint, where=where)
    if word == "@classlabel":
        return _Head(bool(rest) and rest[0].lower() == "true", head.channels)
    if word == "@dimensions" and rest[:1] and rest[0].isdigit():
        return _Head(head.classed, int(rest[0]))
    if word == "@univariate" and rest[:1] and rest[0].lower() == "true":
        return _Head(head.classed, 1)
    return head


def _case(text: str, head: _Head, where: str) -> tuple[np.ndarray, str]:
    parts = text.split(":")
    label = parts.pop().strip() if head.classed else ""
    if head.channels is not None and len(parts) != head.channels:
        what = f"{len(parts)} channels instead of {head.channels}"
        raise DataError(what, hint="the header's @dimensions and @classLabel say how many parts", where=where)
    rows = [_values(part, where) for part in parts]
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        what = f"channels of different lengths ({', '.join(map(str, sorted(widths)))})"
        raise DataError(what, hint="every channel of a case has as many values", where=where)
    return np.array(rows), label


def _values(part: str, where: str) -> list[float]:
    out = []
    for cell in part.split(","):
        try:
            out.append(float("nan") if cell.strip() in ("?", "") else float(cell))
        except ValueError:
            raise DataError(f"{cell.strip()[:40]!r} is no number", hint="? is a gap", where=where) from None
    return out
