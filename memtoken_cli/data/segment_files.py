"""Segments in other tools' formats, which `prompt_files.py` reads back; our own rows are not here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from memtoken_cli.data.prompt_labelstudio import FROM_NAME, KIND
from memtoken_cli.data.prompt_types import DEFAULT_LEVEL
from memtoken_cli.data.series import Series
from memtoken_cli.data.series_time import format_iso, track_zero
from memtoken_cli.io.errors import DataError

Format = Literal["labelstudio", "trainset", "audacity", "changepoints"]
FORMATS: tuple[Format, ...] = ("labelstudio", "trainset", "audacity", "changepoints")
Row = Mapping[str, Any]


def written(
    format: Format, segments: Sequence[Row], series: Series, level: str | None = None
) -> Iterator[str]:
    """The file in pieces of text, line ends included.

    `segments`: rows with level, start_row, end_row (rows of the file), state, confidence; an empty state is a
    gap and is not written. One level for every format but Label Studio: `level`, or the first one's.
    Raises DataError for what a format cannot hold, before the first piece.
    """
    if format == "labelstudio":
        return _labelstudio(segments, series)
    first = level or (segments[0]["level"] if segments else DEFAULT_LEVEL)
    chosen = [row for row in segments if row["level"] == first]
    if format == "changepoints":
        return iter([f"{row['start_row']}\n" for row in chosen if row["start_row"] > 0])
    if format == "audacity":
        return _audacity(chosen, series)
    return _trainset(chosen, series)


def _span(row: Row, series: Series) -> tuple[float, float]:
    """Start and end in the series' time."""
    start = series.time_of(series.row_in_hand(row["start_row"]))
    return start, series.time_of(series.row_in_hand(row["end_row"]))


def _labelstudio(segments: Sequence[Row], series: Series) -> Iterator[str]:
    """A task with a prediction. A chart ends at its last row: so does a region. Dates are the file's own
    text, whose form the project's `timeFormat` tells."""
    regions: list[dict[str, Any]] = []
    shown = [row for row in segments if row["state"] not in ("", None)]
    edges = {min(row[key], series.rows - 1) for row in shown for key in ("start_row", "end_row")}
    if series.iso:
        times: dict[int, Any] = {at: text for at, text in enumerate(series.time_text()) if at in edges}
    else:
        times = {at: series.time_of(series.row_in_hand(at)) for at in edges}
    for row in shown:
        start, end = (times[min(row[key], series.rows - 1)] for key in ("start_row", "end_row"))
        sure = {} if row.get("confidence") is None else {"score": row["confidence"]}
        name = FROM_NAME if row["level"] == DEFAULT_LEVEL else row["level"]
        key = f"{series.name}\0{name}\0{row['start_row']}\0{row['end_row']}\0{row['state']}"
        regions.append(
            {
                "id": hashlib.sha256(key.encode()).hexdigest()[:10],
                "from_name": name,
                "to_name": "ts",
                "type": KIND,
                "value": {
                    "start": start,
                    "end": end,
                    "instant": start == end,
                    KIND: [str(row["state"])],
                },
                **sure,
            }
        )
    named = series.kind != "array" and not series.source.startswith("<")
    source = series.source if named else f"{series.name}.csv"
    task = {"data": {"csv": source}, "predictions": [{"model_version": "memtok", "result": regions}]}
    yield json.dumps([task], ensure_ascii=False, indent=1) + "\n"


def _audacity(segments: Sequence[Row], series: Series) -> Iterator[str]:
    zero = track_zero(series)
    for row in segments:
        if row["state"] in ("", None):
            continue
        start, end = ((t - zero) * series.unit for t in _span(row, series))
        # a tab or a line break would begin another field or label
        state = " ".join(str(row["state"]).split())
        yield f"{start:.9f}\t{end:.9f}\t{state}\n"


def _trainset(segments: Sequence[Row], series: Series) -> Iterator[str]:
    states = list(dict.fromkeys(str(row["state"]) for row in segments if row["state"] not in ("", None)))
    if len(states) > 2:
        shown = ", ".join(states[:5]) + ", ..." * (len(states) > 5)
        raise DataError(
            f"TRAINSET holds two states, here are {len(states)} ({shown})",
            hint="format=labelstudio or format=audacity holds any number; states=2 makes two",
        )
    return _trainset_rows(segments, series, trainset_codes(segments))


def _trainset_rows(segments: Sequence[Row], series: Series, code: Mapping[str, str]) -> Iterator[str]:
    yield "series,timestamp,value,label\n"
    labels = [""] * series.rows
    for row in segments:
        word = "" if row["state"] in ("", None) else code[str(row["state"])]
        labels[row["start_row"] : row["end_row"]] = [word] * (row["end_row"] - row["start_row"])
    stamps = [format_iso(float(t) * series.unit) for t in series.on_rows(series.time_T)]
    for c, channel in enumerate(series.channels):
        name = '"' + channel.replace('"', '""') + '"' if any(s in channel for s in ',"\r\n') else channel
        values = series.on_rows(series.values_TC[:, c]).astype(float) + series.offset_C[c]
        for stamp, value, label in zip(stamps, values, labels, strict=True):
            shown = "" if value != value else f"{value:.7g}"
            yield f"{name},{stamp},{shown},{label}\n"


def trainset_codes(segments: Sequence[Row]) -> dict[str, str]:
    """What stands for each state in a TRAINSET file."""
    states = list(dict.fromkeys(str(row["state"]) for row in segments if row["state"] not in ("", None)))
    if len(states) == 1:
        return {states[0]: "1"}
    if set(states) <= {"0", "1"}:
        return {state: state for state in states}
    return {state: str(i) for i, state in enumerate(states)}
