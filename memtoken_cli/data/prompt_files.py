"""Files of prompts by content: JSONL, CSV, Label Studio, TRAINSET, Audacity labels, change points.

Every record becomes `Spoken` or `Deletion`; what its times mean on a series is `prompts.py`'s business.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from memtoken_cli.data.prompt_labelstudio import is_export, read_export
from memtoken_cli.data.prompt_records import EXAMPLE, parse_prompt, unanswered
from memtoken_cli.data.prompt_types import Deletion, Said, Spoken
from memtoken_cli.data.series_columns import NUMBER
from memtoken_cli.data.series_sniff import split_lines
from memtoken_cli.data.series_time import parse_iso
from memtoken_cli.io.errors import DataError, Problems
from memtoken_cli.io.records import parse_object, read_lines, source_name

Line = tuple[int, str]
Found = Iterator[Spoken | Deletion | DataError]
TRAINSET = ["series", "timestamp", "value", "label"]
SHOWN = 20  # errors told at once
_SEPARATORS = (",", ";", "\t")


def parse_prompts(path: str | Path, bad: Literal["fail", "skip"] = "fail") -> Said:
    """A file of any known format; "-" is standard input. Raises DataError: all problems, at file:line."""
    name = source_name(path)
    lines = read_lines(path)
    format, reader = _recognised(lines, name)
    records: list[Spoken | Deletion] = []
    warnings: list[str] = []
    faults: list[DataError] = []
    for found in reader(lines, name, warnings):
        if isinstance(found, DataError):
            faults.append(found)
        else:
            records.append(found)
    if faults and bad == "fail":
        problems = Problems()
        for fault in faults[:SHOWN]:
            problems.add(fault)
        if len(faults) > SHOWN:
            problems.add(DataError(f"{len(faults) - SHOWN} more problems", where=name))
        problems.raise_any()
    return Said(tuple(records), format, name, tuple(faults), tuple(warnings))


Reader = Callable[[list[Line], str, list[str]], Found]


def _recognised(lines: list[Line], name: str) -> tuple[str, Reader]:
    """A format by its first line that is not blank. Raises DataError for what is none."""
    full = [(n, text) for n, text in lines if text.strip()]
    if not full:
        return "jsonl", _jsonl
    first = full[0][1].strip()
    if first[0] in "[{":
        return ("labelstudio", _labelstudio) if _is_labelstudio(lines) else ("jsonl", _jsonl)
    if [cell.strip().strip('"') for cell in first.split(",")] == TRAINSET:
        return "trainset", _trainset
    if all(re.fullmatch(r"[+-]?\d+", text.strip()) for _, text in full):
        return "changepoints", _changepoints
    if _is_track(first):
        return "audacity", _audacity
    sep = _separator(first)
    names = {cell.strip().strip('"').lower() for cell in first.splitlines()[0].split(sep)}
    if names & {"t", "row", "start", "start_row", "id", "label", "not", "type"}:
        return "csv", _csv
    if any(text.lstrip().startswith("{") for _, text in full):
        return "jsonl", _jsonl
    hint = f"lines such as {EXAMPLE}; or CSV with a header of those names"
    raise DataError("not JSON, and no known format of prompts", hint=hint, where=f"{name}:{full[0][0]}")


def _jsonl(lines: list[Line], name: str, warnings: list[str]) -> Found:
    open_ = 0
    for number, text in lines:
        if not text.strip():
            continue
        where = f"{name}:{number}"
        try:
            record = _as_written(parse_object(text, where), text)
        except DataError as error:
            yield replace_hint(error)
            continue
        if unanswered(record):
            open_ += 1
            continue
        yield _tried(record, where, number)
    if open_:
        warnings.append(f"{open_} suggestions have no label yet and are left aside")


def replace_hint(error: DataError) -> DataError:
    """The same error with a prompt as its example."""
    return DataError(error.message, hint=f"one JSON object a line, such as {EXAMPLE}", where=error.where)


def _as_written(record: dict[str, Any], text: str) -> dict[str, Any]:
    """Labels that are numbers, with the digits of the file."""
    texts = ("label", "not", "level", "series", "id", "by", "note")
    if not any(isinstance(record.get(key), int | float | list) for key in texts):
        return record
    written = json.loads(text, parse_int=_Written, parse_float=_Written)
    return {key: written[key] if key in texts else value for key, value in record.items()}


class _Written(str):
    """A number's digits."""


def _tried(record: dict[str, Any], where: str, number: int) -> Spoken | Deletion | DataError:
    try:
        return parse_prompt(record, where, number)
    except DataError as error:
        return error


def _csv(lines: list[Line], name: str, warnings: list[str]) -> Found:
    """A header of the JSON names; empty cells are left out. Several `not` labels: a JSON list."""
    # rows may hold line breaks: the reader counts the lines that it takes
    texts = split_lines("".join(f"{text}\n" for _, text in lines))
    sep = _separator(next(text for text in texts if text.strip()))
    reader = csv.reader(texts, delimiter=sep, strict=True)
    header: list[str] | None = None
    open_ = 0
    while True:
        number = reader.line_num + 1
        where = f"{name}:{number}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield DataError(f"not CSV: {error}", hint='every " needs its partner', where=where)
            return
        if row is None:
            break
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            if len(set(header)) < len(header):
                yield DataError("a column name stands twice", where=where)
                return
            continue
        if len(row) != len(header):
            yield DataError(f"{len(row)} values instead of {len(header)}", hint=",".join(header), where=where)
            continue
        record: dict[str, Any] = {key: cell for key, cell in zip(header, row, strict=True) if cell.strip()}
        if str(record.get("not", "")).startswith("["):
            try:
                record["not"] = json.loads(record["not"], parse_int=_Written, parse_float=_Written)
            except ValueError:
                yield DataError("not is no JSON list", hint='["walk", "run"]', where=where)
                continue
        # the suggestion's own columns say nothing once the row is filled in
        if unanswered({**dict.fromkeys(key for key in header if key in ("guess", "margin")), **record}):
            open_ += 1
            continue
        yield _tried(record, where, number)
    if open_:
        warnings.append(f"{open_} suggestions have no label yet and are left aside")


def _separator(line: str) -> str:
    return max(_SEPARATORS, key=line.count)


def _trainset(lines: list[Line], name: str, warnings: list[str]) -> Found:
    """Runs of one label in each series' rows become intervals; several series say the same only once."""
    runs: dict[str, tuple[str, float, float, int]] = {}  # series -> label, first time, last time, line
    done: dict[tuple[str, float, float], Spoken] = {}
    steps: list[float] = []
    full = [(n, text) for n, text in lines if text.strip()]
    for number, text in full[1:]:
        where = f"{name}:{number}"
        try:
            row = next(csv.reader([text], strict=True))
        except csv.Error as error:
            yield DataError(f"not CSV: {error}", hint='every " needs its partner', where=where)
            continue
        if len(row) != 4:
            yield DataError(f"{len(row)} values instead of 4", hint=",".join(TRAINSET), where=where)
            continue
        key, stamp, _, label = (cell.strip() for cell in row)
        time = parse_iso(stamp)
        if time is None:
            hint = "such as 2024-05-01T12:00:00.250Z"
            yield DataError(f"{stamp[:40]!r} is no ISO-8601 date", hint=hint, where=where)
            continue
        last = runs.get(key)
        if last is not None:
            if time < last[2]:
                yield DataError("time goes backwards", hint="rows of a series in order", where=where)
                continue
            steps += [time - last[2]] if len(steps) < 10_000 else []
            if last[0] == label:
                runs[key] = (label, last[1], time, last[3])
                continue
            _close(last, time, name, done)
        runs[key] = (label, time, time, number)
    step = sorted(steps)[len(steps) // 2] if steps else 1.0
    for last in runs.values():
        _close(last, last[2] + step, name, done)
    yield from done.values()


def _close(
    run: tuple[str, float, float, int], end: float, name: str, done: dict[tuple[str, float, float], Spoken]
) -> None:
    label, start, _, line = run
    if label:
        done.setdefault((label, start, end), _spoken("seconds", start, end, label, f"{name}:{line}", line))


def _spoken(
    clock: Literal["seconds", "track"], start: float, end: float, label: str, where: str, line: int
) -> Spoken:
    record = parse_prompt({"start": start, "end": end, "label": label}, where, line)
    assert isinstance(record, Spoken), "a record with a label says something"
    return replace(record, clock=clock)


def _is_track(line: str) -> bool:
    cells = line.split("\t")
    return len(cells) >= 2 and all(NUMBER.fullmatch(cell.strip()) for cell in cells[:2])


def _audacity(lines: list[Line], name: str, warnings: list[str]) -> Found:
    for number, text in lines:
        where = f"{name}:{number}"
        if not text.strip() or text.startswith("\\"):
            continue  # a line of its own says the frequencies of the label above
        if not _is_track(text):
            hint = "start TAB end TAB label, in seconds"
            yield DataError("no line of a label track", hint=hint, where=where)
            continue
        start, end, *rest = text.split("\t")
        try:
            yield _spoken("track", float(start), float(end), "\t".join(rest), where, number)
        except DataError as error:
            yield error


def _changepoints(lines: list[Line], name: str, warnings: list[str]) -> Found:
    """One row index a line: a boundary before that row."""
    for number, text in lines:
        if text.strip():
            yield _tried({"row": int(text), "type": "boundary"}, f"{name}:{number}", number)


def _is_labelstudio(lines: list[Line]) -> bool:
    text = "\n".join(text for _, text in lines)
    keys = ("annotations", "predictions", "result", "completions", "annotation_id")
    if not any(f'"{key}"' in text for key in keys):
        return False
    return is_export(_document(text))


def _document(text: str) -> Any:
    """A JSON document, or a list of those one a line; None for neither."""
    try:
        return json.loads(text, parse_int=_number, parse_float=_number)
    except (ValueError, RecursionError):
        pass
    try:
        return [
            json.loads(line, parse_int=_number, parse_float=_number)
            for line in text.splitlines()
            if line.strip()
        ]
    except (ValueError, RecursionError):
        return None


def _number(text: str) -> float:
    return float(text)


def _labelstudio(lines: list[Line], name: str, warnings: list[str]) -> Found:
    return read_export(_document("\n".join(text for _, text in lines)), lines, name, warnings)
