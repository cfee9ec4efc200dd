"""How a text table is laid out: delimiter, decimal mark, header, first rows. Only its beginning is read."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from memtoken_cli.data.series import SeriesKeys
from memtoken_cli.data.series_columns import NUMBER, Cells, is_empty, kind_of_cells, unique_names
from memtoken_cli.data.series_source import Source
from memtoken_cli.data.series_time import parse_iso
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import decode

HEAD = 1 << 20  # bytes
LONGEST = 1 << 29  # bytes of a first line
SAMPLE = 200  # rows


@dataclass(frozen=True)
class Layout:
    """A text table's form.

    Attributes:
        names: of the columns. headed: they stood in the file.
        start: the byte where rows begin. line: the number of that line.
        sample: the first rows, as text. cells: what each column holds.
        quoted: the beginning holds quotation marks. width: bytes of the longest line at the beginning.
    """

    sep: str
    decimal: str
    names: tuple[str, ...]
    headed: bool
    start: int
    line: int
    sample: tuple[tuple[str, ...], ...]
    cells: tuple[Cells, ...]
    quoted: bool
    width: int
    notes: tuple[str, ...]

    @property
    def single(self) -> bool:
        """One value a line: there a blank line is a gap, elsewhere it is nothing."""
        return len(self.names) == 1


def sniff(source: Source, keys: SeriesKeys) -> Layout:
    """Raises DataError: not text, no rows."""
    raw, size = source.head(HEAD), HEAD
    while len(raw) == size and b"\n" not in raw and size < LONGEST:
        size *= 8  # one line that is longer
        raw = source.head(size)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("not UTF-8 but UTF-16", hint="iconv -f utf-16 -t utf-8", where=f"{source.name}:1")
    whole = len(raw) < size
    bom = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    raw = raw[bom:]
    if not whole and b"\n" in raw:
        raw = raw[: raw.rfind(b"\n") + 1]
    lines = split_lines(_text(raw, source))
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise DataError(
            "the series has no rows", hint="a CSV file with one row for every moment", where=source.name
        )
    sep = keys.sep or _delimiter(lines[first:])
    records = _records(lines[first:], sep, whole)
    decimal = keys.decimal or _decimal(records, sep)
    head, after = records[0]
    rows = [record for record, _ in records[1:]]
    if keys.sep is None and len(head) == 1:
        _refuse_spaces([head, *rows[:1]], f"{source.name}:{first + after}")
    headed, notes = _header(head, rows, decimal)
    if headed:
        head = [head[0].lstrip().lstrip("#").lstrip() or head[0], *head[1:]]  # "# t,a,b", as NumPy writes it
        names, more = unique_names(head)
        notes += more
        used = first + after
    else:
        names, rows, used = tuple(f"c{i}" for i in range(len(head))), [head, *rows], first
    columns = [[row[i] for row in rows if i < len(row)] for i in range(len(names))]
    return Layout(
        sep=sep,
        decimal=decimal,
        names=names,
        headed=headed,
        start=bom + len("".join(lines[:used]).encode("utf-8")),
        line=used + 1,
        sample=tuple(tuple(row) for row in rows),
        cells=tuple(kind_of_cells(column, decimal) for column in columns),
        quoted='"' in "".join(lines),
        width=max((len(line) for line in lines), default=1),
        notes=tuple(notes),
    )


def _refuse_spaces(rows: Sequence[Sequence[str]], where: str) -> None:
    for cells in (row[0].split() for row in rows if row):
        if len(cells) > 1 and all(NUMBER.fullmatch(cell) for cell in cells):
            hint = "sep=space for single spaces, or put commas: tr -s ' ' ',' < FILE"
            raise DataError("values are parted by spaces", hint=hint, where=where)


def split_lines(text: str) -> list[str]:
    """Lines with their ends (LF, CRLF or CR); other separators of Unicode are text."""
    return list(io.StringIO(text, newline=""))


def _text(raw: bytes, source: Source) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        decode(raw.split(b"\n")[line - 1], f"{source.name}:{line}")
        text = raw[: error.start].decode("utf-8")  # cut within a character
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        hint = "a CSV file in UTF-8, or .npz, .mat, .ts, .parquet"
        raise DataError("a NUL byte: this is not a text file", hint=hint, where=f"{source.name}:{line}")
    return text


def _delimiter(lines: Sequence[str]) -> str:
    """The first of ; tab , that parts all lines alike; comma where none does."""
    sample = [line for line in lines[:SAMPLE] if line.strip()]
    sample = sample[:-1] if len(sample) > 2 else sample  # the last one may be cut
    for sep in (";", "\t", ","):
        try:
            widths = {len(row) for row in csv.reader(sample, delimiter=sep) if row}
        except csv.Error:
            continue
        if len(widths) == 1 and widths != {1}:
            return sep
    counts = {sep: sum(line.count(sep) for line in sample) for sep in (",", ";", "\t")}
    return max(counts, key=lambda sep: counts[sep])


def _records(lines: Sequence[str], sep: str, whole: bool) -> list[tuple[list[str], int]]:
    """(cells, how many lines were read by then) of the first rows; blank lines are skipped."""
    reader = csv.reader(lines, delimiter=sep)
    out: list[tuple[list[str], int]] = []
    try:
        for row in reader:
            if row:
                out.append((row, reader.line_num))
            if len(out) > SAMPLE:
                break
    except csv.Error:
        pass  # a faulty row is named by who reads it
    return out or [([""], 1)]


def _decimal(records: Sequence[tuple[list[str], int]], sep: str) -> str:
    if sep == ",":
        return "."
    cells = [cell.strip() for row, _ in records for cell in row]
    commas = sum("," in c and NUMBER.fullmatch(c.replace(",", ".", 1)) is not None for c in cells)
    points = sum("." in c and NUMBER.fullmatch(c) is not None for c in cells)
    return "," if commas > points else "."


def _header(head: Sequence[str], rows: Sequence[Sequence[str]], decimal: str) -> tuple[bool, list[str]]:
    """Whether the first row names the columns; with a notice where numbers do."""

    def data(cell: str) -> bool:
        cell = cell.strip()
        plain = cell.replace(decimal, ".") if decimal != "." else cell
        return NUMBER.fullmatch(plain) is not None or is_empty(cell) or parse_iso(cell) is not None

    wordy = [i for i, cell in enumerate(head) if not data(cell)]
    if wordy:
        # a column of text has text below its name, too: only a column that changes tells
        below = [[row[i] for row in rows[:20] if i < len(row)] for i in range(len(head))]
        changes = any(below[i] and all(data(cell) for cell in below[i]) for i in wordy)
        return changes or len(wordy) == len(head) or not any(NUMBER.fullmatch(c.strip()) for c in head), []
    counted = len(head) > 1 and [c.strip() for c in head] == [str(i) for i in range(len(head))]
    if counted and any(NUMBER.fullmatch(c.strip()) and "." in c for row in rows[:1] for c in row):
        return True, [
            f"the first line ({', '.join(head[:4])}{', ...' if len(head) > 4 else ''}) is taken as names"
        ]
    return False, []
