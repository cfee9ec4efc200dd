"""Text tables line by line: the plain reader that names a bad line. The compiled one is `series_csv.py`.

Where the compiled reader gives up over something harmless (a plus sign, spaces, a quoted line break), what is
read here is the result.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memtoken_cli.data.series_columns import NUMBER, Choice, is_empty
from memtoken_cli.data.series_sniff import Layout
from memtoken_cli.data.series_source import Source
from memtoken_cli.data.series_time import parse_iso
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import decode

if TYPE_CHECKING:
    import numpy as np

FIELD = 1 << 24  # characters of one cell
WRAPPED = 20  # lines: a row over more of them looks like a quotation mark without its partner


def iter_rows(source: Source, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of every row. Raises DataError: not UTF-8, a ragged row, an open quotation mark."""
    csv.field_size_limit(FIELD)
    count = len(layout.names)
    with source.open() as stream:
        stream.seek(layout.start)
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", errors="surrogateescape")
        reader = csv.reader(_checked(text, source, layout), delimiter=layout.sep, strict=True)
        blanks = 0
        while True:
            line = layout.line + reader.line_num
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"not CSV: {error}", hint=_quote_hint(), where=f"{source.name}:{line}"
                ) from None
            if row is None:
                text.detach()
                return
            if not row:
                blanks += 1
                continue
            if layout.single:
                # blank lines at the end are no rows: they count once a value follows
                yield from ((line - k, [""]) for k in range(blanks, 0, -1))
            blanks = 0
            if len(row) != count:
                wrapped = layout.line + reader.line_num - line
                hint = (
                    _quote_hint() if wrapped > WRAPPED else "the line may be cut off: complete or remove it"
                )
                what = f"{len(row)} value{'s' * (len(row) != 1)} instead of {count}"
                raise DataError(what, hint=hint, where=f"{source.name}:{line}")
            yield line, row


def _checked(text: io.TextIOWrapper, source: Source, layout: Layout) -> Iterator[str]:
    for number, line in enumerate(text, layout.line):
        if not line.isascii():
            decode(line.encode("utf-8", "surrogateescape"), f"{source.name}:{number}")
        yield line


def _quote_hint() -> str:
    return 'every " that opens a cell needs one that closes it'


def read_slowly(
    source: Source, layout: Layout, choice: Choice, offset_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, list[str] | None]:
    """(values [T, C] float32 less offset, times or None, labels or None). Raises DataError at file:line."""
    import numpy as np

    values = array("f")
    times = array("d")
    labels: list[str] = []
    offsets = [float(o) for o in offset_C]
    dates = choice.time is not None and layout.cells[choice.time] in ("date", "text")
    for line, row in iter_rows(source, layout):
        where = f"{source.name}:{line}"
        if choice.time is not None:
            times.append(_time(row[choice.time], layout, choice.time, dates, where))
        for offset, c in zip(offsets, choice.channels, strict=True):
            values.append(_number(row[c], layout, c, where) - offset)
        if choice.label is not None:
            labels.append(row[choice.label])
    value_TC = np.frombuffer(values, dtype=np.float32).reshape(-1, len(offsets)).copy() if values else None
    return (
        value_TC if value_TC is not None else np.zeros((0, len(offsets)), dtype=np.float32),
        np.frombuffer(times, dtype=np.float64).copy() if choice.time is not None and times else None,
        labels if choice.label is not None else None,
    )


def _number(cell: str, layout: Layout, column: int, where: str) -> float:
    text = cell.strip()
    if is_empty(text):
        return float("nan")
    plain = text.replace(layout.decimal, ".") if layout.decimal != "." else text
    if NUMBER.fullmatch(plain) is None or (layout.decimal != "." and "." in text):
        name = layout.names[column]
        hint = f"an empty cell is a gap; channels=... leaves {name!r} out"
        if "," in text and layout.decimal == ".":
            hint = "decimal=, reads decimal commas"
        elif "." in text and layout.decimal == ",":
            hint = "decimal=. reads decimal points"
        raise DataError(f"{text[:40]!r} is no number, in column {name!r}", hint=hint, where=where)
    return float(plain)


def _time(cell: str, layout: Layout, column: int, dates: bool, where: str) -> float:
    name = layout.names[column]
    if is_empty(cell):
        hint = "every row needs its time; time=none takes the row index instead"
        raise DataError(f"no time in column {name!r}", hint=hint, where=where)
    plain = cell.strip().replace(layout.decimal, ".")
    found = parse_iso(cell) if dates else float(plain) if NUMBER.fullmatch(plain) else None
    if found is None:
        kinds = {"date": "an ISO-8601 date", "text": "a number or an ISO-8601 date"}
        kind = kinds.get(layout.cells[column], "a number")
        hint = "such as 2024-05-01T12:00:00.250Z or 12.25; time=none takes the row index instead"
        raise DataError(
            f"the time {cell.strip()[:40]!r} is not {kind}, in column {name!r}", hint=hint, where=where
        )
    return found


def line_of(source: Source, layout: Layout, row: int) -> str:
    """The "file:line" of a row. Raises DataError for what stands before it."""
    for index, (line, _) in enumerate(iter_rows(source, layout)):
        if index == row:
            return f"{source.name}:{line}"
    return source.name
