"""A prediction as the text or bytes of an output format."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from memtoken_cli.data import segment_files
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss import segments
from memtoken_cli.methods.memprompttss.segmenter import Prediction

TEXT = ("csv", "jsonl")


def parts(found: Prediction, rows: str, form: str) -> Iterator[str | bytes]:
    """rows: "segments" or "states". Raises UsageError where a library is missing, DataError for what the
    format cannot hold."""
    if form in TEXT and rows == "segments":
        return segments.segment_text(found.segments, form == "csv")
    if form in TEXT:
        return segments.state_text(found.series, found.levels, found.stride, form == "csv")
    if form == "parquet":
        columns = segments.segment_table(found.segments) if rows == "segments" else _states(found)
        return iter([_parquet(columns)])
    [known] = [name for name in segment_files.FORMATS if name == form]
    return segment_files.written(known, [segment.row() for segment in found.segments], found.series)


def _states(found: Prediction) -> dict[str, Any]:
    series = found.series
    times: Any = list(series.time_text())
    if not series.iso:
        times = [float(text) for text in times] if series.time_name else list(range(series.rows))
    header = segments.state_header(series, found.levels)
    columns: dict[str, Any] = {header[0]: times}
    for column in segments.columns_of(found.levels):
        labels = [*column.level.labels, ""]
        columns[column.state] = [labels[k] for k in series.on_rows(column.level.states_T).tolist()]
        columns[column.confidence] = segments.confidence_of(series, column.level, found.stride)
    columns["prompted"] = segments.prompted(series, found.levels)
    return {name: columns[name] for name in header}


def _parquet(columns: dict[str, Any]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("parquet needs pyarrow", hint="pip install pyarrow") from None
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), data)
    return data.getvalue()
