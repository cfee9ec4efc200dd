"""Label Studio's JSON and JSON-MIN: regions of time series under `annotations`, or else `predictions`, as
prompts.

`from_name` "label" is the default level, any other name a level of its own. What people skipped
(`was_cancelled`) is left aside; where an annotation is the ground truth, the others are too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from memtoken_cli.data.prompt_records import parse_prompt
from memtoken_cli.data.prompt_types import DEFAULT_LEVEL, Deletion, Spoken
from memtoken_cli.io.errors import DataError

FROM_NAME = "label"
KIND = "timeserieslabels"
ANSWERS = ("annotations", "completions")  # completions: before version 1.0
SUMMARY = ("annotation_id", "annotator")  # of a JSON-MIN record
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".json")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what an upload puts before a file's name
Task = Mapping[str, Any]


def is_export(document: Any) -> bool:
    """Whether a JSON document is Label Studio's: tasks, or one task, with annotations or predictions; or
    records of JSON-MIN."""
    tasks = document if isinstance(document, list) else [document]
    return bool(tasks) and all(isinstance(task, dict) and (_is_task(task) or _is_min(task)) for task in tasks)


def _is_task(task: Task) -> bool:
    return any(isinstance(task.get(key), list) for key in (*ANSWERS, "predictions", "result"))


def _is_min(task: Task) -> bool:
    return all(key in task for key in SUMMARY)


@dataclass
class _Aside:
    """What is left aside, counted."""

    other: int = 0
    bare: int = 0
    skipped: int = 0
    nameless: int = 0
    older: int = 0

    def told(self) -> Iterator[str]:
        if self.other:
            yield f"{self.other} regions of other types than {KIND} are left aside"
        if self.bare:
            yield f"{self.bare} regions without a label are left aside"
        if self.skipped:
            yield f"{self.skipped} annotations that were cancelled are left aside"
        if self.nameless:
            yield f"{self.nameless} regions of tasks that do not say which of several files they are about"
        if self.older:
            yield f"{self.older} predictions before a task's last one are left aside"


def read_export(
    document: Any, lines: list[tuple[int, str]], name: str, warnings: list[str]
) -> Iterator[Spoken | Deletion | DataError]:
    """Every region as a record or its error. What is no labelled region is counted in `warnings`."""
    given = document if isinstance(document, list) else [document]
    tasks = [task if _is_task(task) else _whole(task) for task in given]
    several = len({task.get("id", index) for index, task in enumerate(tasks)}) > 1
    finder, aside = _Lines(lines), _Aside()
    for index, task in enumerate(tasks, 1):
        files = _files(task)
        for by, region in _regions(task, aside):
            where, line = f"{name}:{finder.of(region)}", finder.of(region)
            value = region.get("value") if isinstance(region, Mapping) else None
            kind = region.get("type", KIND) if isinstance(region, Mapping) else KIND
            if not isinstance(value, Mapping) and kind == KIND:
                yield DataError(f"a region of task {index} has no value", where=where)
            elif not isinstance(value, Mapping) or (kind != KIND and KIND not in value):
                aside.other += 1
            elif not value.get(KIND):
                aside.bare += 1
            elif several and len(files) != 1:
                aside.nameless += 1
            else:
                yield _region(region, value, by, files[0] if several else None, where, line)
    warnings += aside.told()


def _whole(record: Task) -> Task:
    """A JSON-MIN record, one an annotation, as the task that it came from."""
    result = [
        {"from_name": name, "type": KIND, "value": value}
        for name, values in record.items()
        for value in (values if isinstance(values, list) else ())
        if isinstance(value, Mapping) and KIND in value
    ]
    annotation = {"completed_by": record["annotator"], "result": result}
    told = {"id": record["id"]} if "id" in record else {}
    return {**told, "data": {k: v for k, v in record.items() if isinstance(v, str)}, ANSWERS[0]: [annotation]}


class _Lines:
    """Where regions stand: the line of a region's id, else 1."""

    def __init__(self, lines: list[tuple[int, str]]) -> None:
        self._lines = lines
        self._at: dict[str, int] = {}
        for number, text in lines:
            for found in re.findall(r'"id"\s*:\s*"([^"]+)"', text):
                self._at.setdefault(found, number)

    def of(self, region: Any) -> int:
        first = self._lines[0][0] if self._lines else 1
        return self._at.get(str(region.get("id")), first) if isinstance(region, Mapping) else first


def _files(task: Task) -> list[str]:
    """The stems of the files of series that a task names: uploads, addresses, or paths of local storage."""
    data = task.get("data")
    values = data.values() if isinstance(data, Mapping) else ()
    named = [task["file_upload"]] if isinstance(task.get("file_upload"), str) else values
    paths = [PurePosixPath(_path(v)) for v in named if isinstance(v, str)]
    tables = [path for path in paths if path.suffix.lower() in TABLES] or [p for p in paths if p.suffix]
    return list(dict.fromkeys(_UPLOADED.sub("", path.stem) for path in tables))


def _path(address: str) -> str:
    if "\n" in address:
        return ""
    try:
        parts = urlsplit(address.replace("\\", "/"))
    except ValueError:
        return ""
    inside = parse_qs(parts.query).get("d")  # /data/local-files/?d=FOLDER/FILE
    return inside[0] if inside else unquote(parts.path)


def _regions(task: Task, aside: _Aside) -> Iterator[tuple[str | None, Any]]:
    """(who, region) of a task's annotations, or where nobody has annotated it of its last prediction."""
    given = [a for key in ANSWERS for a in _dicts(task.get(key))]
    answers = [a for a in given if not (a.get("was_cancelled") or a.get("skipped"))]
    aside.skipped += len(given) - len(answers)
    answers = [a for a in answers if a.get("ground_truth") is True] or answers
    if not given:
        predictions = [p for p in _dicts(task.get("predictions")) if p.get("result")]
        aside.older += max(0, len(predictions) - 1)
        answers = predictions[-1:] or ([task] if isinstance(task.get("result"), list) else [])
    for answer in answers:
        who = answer.get("completed_by", answer.get("model_version"))
        who = who.get("email", who.get("id")) if isinstance(who, Mapping) else who
        by = None if who in (None, "") else f"{who:g}" if isinstance(who, float) else str(who)
        result = answer.get("result")
        for region in result if isinstance(result, list) else [result] if result else ():
            yield by, region


def _dicts(value: Any) -> Sequence[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _region(
    region: Task, value: Mapping[str, Any], by: str | None, series: str | None, where: str, line: int
) -> Spoken | DataError:
    labels = value[KIND]
    if not isinstance(labels, list) or len(labels) > 1:
        hint = "one label a region; a second level has a from_name of its own"
        count = len(labels) if isinstance(labels, list) else 0
        return DataError(f"a region with {count} labels", hint=hint, where=where)
    start, end = value.get("start"), value.get("end")
    point = value.get("instant") or end is None
    level = region.get("from_name", FROM_NAME)
    record = {
        **({"t": start} if point else {"start": start, "end": end}),
        "label": labels[0],
        "id": region.get("id"),
        "level": DEFAULT_LEVEL if level == FROM_NAME else level,
    }
    try:
        found = parse_prompt(record, where, line)
    except DataError as error:
        return error
    assert isinstance(found, Spoken), "a region deletes nothing"
    return replace(found, by=by, series=series, clock="drawn")
