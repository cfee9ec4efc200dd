"""CSV and one-value-per-line text through a compiled parser, in chunks. Faults are named by `series_slow.py`.

T rows, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from memtoken_cli.data.series import Kind, Run, SeriesKeys
from memtoken_cli.data.series_build import Raw
from memtoken_cli.data.series_columns import EMPTY, NUMBER, Choice, choose, counts_rows
from memtoken_cli.data.series_runs import Runs
from memtoken_cli.data.series_slow import iter_rows, line_of, read_slowly
from memtoken_cli.data.series_sniff import Layout, sniff
from memtoken_cli.data.series_source import Source
from memtoken_cli.data.series_time import has_zone

if TYPE_CHECKING:
    import pyarrow as pa

NULLS = sorted({form for word in EMPTY for form in (word, word.upper(), word.title())} | {"NaN", "-NaN"})
FAR = 64.0  # a channel this many deviations from zero is stored less its mean: float32 has 24 bits
BLOCK = (1 << 16, 1 << 26)  # bytes read at a time


def read_csv(source: Source, keys: SeriesKeys, name: str, kind: Kind) -> Raw:
    """A text table. Raises DataError at file:line, UsageError for keys that name no column."""
    layout = sniff(source, keys)
    choice = choose(layout.names, layout.cells, keys, source.name, layout.headed)
    offset_C = _offsets(layout, choice)
    try:
        value_TC, time_T, runs = _read_fast(source, layout, choice, offset_C, keys.chunk)
    except _Unparsed:
        value_TC, time_T, labels = read_slowly(source, layout, choice, offset_C)
        runs = None if labels is None else Runs(layout.line).add(labels).runs
    return Raw(
        name=name,
        source=source.name,
        kind=kind,
        values_TC=value_TC,
        channels=tuple(layout.names[c] for c in choice.channels),
        offset_C=offset_C,
        where=partial(line_of, source, layout),
        time_T=time_T,
        time_name=None if choice.time is None else layout.names[choice.time],
        iso=choice.time is not None and layout.cells[choice.time] in ("date", "text"),
        counter=choice.channels[0] == 0 and counts_rows(layout.names[0], layout.headed),
        named=choice.named,
        label_runs=runs,
        notes=[*layout.notes, *choice.notes],
        texts=None if choice.time is None else partial(_texts, source, layout, choice.time, keys.chunk),
    )


class _Unparsed(Exception):
    """The compiled parser gave up somewhere."""


def _offsets(layout: Layout, choice: Choice) -> np.ndarray:
    """What is subtracted from each channel: its mean over the first rows where float32 needs it, else 0."""
    offset_C = np.zeros(len(choice.channels))
    for i, c in enumerate(choice.channels):
        cells = [row[c].strip().replace(layout.decimal, ".") for row in layout.sample if c < len(row)]
        known = np.array([float(cell) for cell in cells if NUMBER.fullmatch(cell)])
        offset_C[i] = far_offset(known[np.isfinite(known)])
    return offset_C


def far_offset(sample: np.ndarray) -> float:
    """The sample's mean, rounded, where it is far from zero compared with the deviation; else 0."""
    if not len(sample):
        return 0.0
    mean, deviation = float(sample.mean()), float(sample.std())
    return float(round(mean)) if abs(mean) > FAR * max(deviation, 1.0) else 0.0


def _read_fast(
    source: Source, layout: Layout, choice: Choice, offset_C: np.ndarray, chunk: int
) -> tuple[np.ndarray, np.ndarray | None, list[Run] | None]:
    import pyarrow as pa

    types: dict[str, Any] = {layout.names[c]: pa.float64() for c in choice.channels}
    if choice.time is not None:
        types[layout.names[choice.time]] = _time_type(layout, choice.time)
    if choice.label is not None:
        types[layout.names[choice.label]] = pa.dictionary(pa.int32(), pa.string())
    blocks: list[np.ndarray] = []
    times: list[np.ndarray] = []
    runs = Runs(layout.line)
    with _batches(source, layout, types, chunk) as batches:
        for batch in batches:
            block_TC = np.empty((batch.num_rows, len(choice.channels)), dtype=np.float32)
            for i, c in enumerate(choice.channels):
                column = _array(batch, layout.names[c]).to_numpy(zero_copy_only=False)
                with np.errstate(over="ignore"):  # beyond float32: an infinity, which is a gap
                    block_TC[:, i] = column - offset_C[i] if offset_C[i] else column
            blocks.append(block_TC)
            if choice.time is not None:
                times.append(_seconds(_array(batch, layout.names[choice.time])))
            if choice.label is not None:
                coded = _array(batch, layout.names[choice.label])
                runs.add_coded(coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist())
    value_TC = _joined(blocks, len(choice.channels))
    value_TC = value_TC[: len(value_TC) - _blank_end(source) if layout.single else None]
    return (
        value_TC,
        np.concatenate(times) if times else None,
        runs.runs if choice.label is not None else None,
    )


def _joined(blocks: list[np.ndarray], channels: int) -> np.ndarray:
    """Blocks in one array; each is freed once it is copied."""
    out_TC = np.empty((sum(map(len, blocks)), channels), dtype=np.float32)
    at = 0
    blocks.reverse()
    while blocks:
        block = blocks.pop()
        out_TC[at : at + len(block)] = block
        at += len(block)
    return out_TC


def _array(batch: pa.RecordBatch, name: str) -> Any:
    return batch.column(batch.schema.get_field_index(name))


def _time_type(layout: Layout, column: int) -> pa.DataType:
    import pyarrow as pa

    if layout.cells[column] in ("number", "empty"):
        return pa.float64()
    first = next((row[column] for row in layout.sample if column < len(row) and row[column].strip()), "")
    return pa.timestamp("ns", "UTC") if has_zone(first) else pa.timestamp("ns")


def _seconds(column: Any) -> np.ndarray:
    """Times of a block as float64; missing ones as NaN."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        if column.null_count:
            return np.where(column.is_valid().to_numpy(zero_copy_only=False), 0.0, np.nan)
        return seconds_of(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def seconds_of(nanoseconds: np.ndarray) -> np.ndarray:
    """float64 seconds of int64 nanoseconds, rounded once."""
    whole = nanoseconds // 10**9
    return np.asarray(whole + (nanoseconds - whole * 10**9) / 1e9, dtype=np.float64)


@contextmanager
def _batches(
    source: Source, layout: Layout, types: dict[str, Any], chunk: int, strings: bool = False
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Record batches of the columns in `types`. Raises _Unparsed."""
    import pyarrow as pa
    from pyarrow import csv

    size = max(min(chunk * layout.width, BLOCK[1]), BLOCK[0], 4 * layout.width)
    read = csv.ReadOptions(column_names=list(layout.names), block_size=size)
    parse = csv.ParseOptions(
        delimiter=layout.sep, newlines_in_values=layout.quoted, ignore_empty_lines=not layout.single
    )
    convert = csv.ConvertOptions(
        column_types=types,
        include_columns=list(types),
        null_values=[] if strings else NULLS,
        decimal_point=layout.decimal,
        quoted_strings_can_be_null=True,
    )
    with source.open() as plain:
        # the parser reads ahead in threads of its own: where it is left early, one that is about to call into
        # Python would abort the whole process at its end. It gets a file of its own, which goes when they do
        stream = plain if source.native is None else pa.OSFile(source.native)
        stream.seek(layout.start)
        try:
            reader = csv.open_csv(stream, read, parse, convert)
        except pa.ArrowInvalid as error:
            raise _Unparsed from error
        with reader:
            yield _guarded(reader)


def _guarded(reader: Any) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            return
        except pa.ArrowInvalid as error:
            raise _Unparsed from error


def _blank_end(source: Source) -> int:
    """How many blank lines a file ends with."""
    with source.open() as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - (1 << 16)))
        tail = stream.read().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    full = tail.rstrip(b" \t\n")
    return max(tail[len(full) :].count(b"\n") - 1, 0)


def _texts(source: Source, layout: Layout, column: int, chunk: int) -> Iterator[str]:
    """The cells of a column as written, row by row. Raises DataError where the file has changed since."""
    import pyarrow as pa

    given = 0
    try:
        with _batches(source, layout, {layout.names[column]: pa.string()}, chunk, strings=True) as batches:
            for batch in batches:
                for text in batch.column(0).to_pylist():
                    given += 1
                    yield text
    except _Unparsed:
        for index, (_, row) in enumerate(iter_rows(source, layout)):
            if index >= given:
                yield row[column]
