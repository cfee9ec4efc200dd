"""Label Studio's JSON: regions of time series under `annotations`, or else `predictions`, as prompts.

`from_name` "label" is the default level, any other name a level of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from memtoken_cli.data.prompt_records import parse_prompt
from memtoken_cli.data.prompt_types import DEFAULT_LEVEL, Deletion, Spoken
from memtoken_cli.io.errors import DataError

FROM_NAME = "label"
KIND = "timeserieslabels"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what an upload puts before a file's name


def is_export(document: Any) -> bool:
    """Whether a JSON document is Label Studio's: tasks, or one task, with annotations or predictions."""
    tasks = document if isinstance(document, list) else [document]
    keys = ("annotations", "predictions", "completions", "result")
    return bool(tasks) and all(
        isinstance(task, dict) and any(isinstance(task.get(key), list) for key in keys) for task in tasks
    )


def read_export(
    document: Any, lines: list[tuple[int, str]], name: str, warnings: list[str]
) -> Iterator[Spoken | Deletion | DataError]:
    """Every region as a record or its error. Other kinds of regions are counted in `warnings`."""
    tasks = document if isinstance(document, list) else [document]
    finder = _Lines(lines)
    other = 0
    for index, task in enumerate(tasks, 1):
        series = _series(task) if len(tasks) > 1 else None
        for by, region in _regions(task):
            where = f"{name}:{finder.of(region)}"
            if not isinstance(region, Mapping) or not isinstance(region.get("value"), Mapping):
                yield DataError(f"a region of task {index} has no value", where=where)
            elif region.get("type", KIND) != KIND and KIND not in region["value"]:
                other += 1
            else:
                yield from _region(region, by, series, where, finder.of(region))
    if other:
        warnings.append(f"{other} regions of other types than {KIND} are left aside")


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


def _series(task: Mapping[str, Any]) -> str | None:
    """The stem of the file that a task is about."""
    data = task.get("data")
    values = data.values() if isinstance(data, Mapping) else ()
    named = (task.get("file_upload"), *values)
    paths = [v.partition("?")[0] for v in named if isinstance(v, str)]
    files = [PurePosixPath(path.replace("\\", "/")) for path in paths]
    return next((_UPLOADED.sub("", file.stem) for file in files if file.suffix), None)


def _regions(task: Mapping[str, Any]) -> Iterator[tuple[str | None, Any]]:
    """(who, region) of a task's annotations, or where it has none of its predictions."""
    answers: list[Any] = []
    for key in ("annotations", "completions", "predictions"):
        found = task.get(key)
        kept = [a for a in found if isinstance(a, Mapping)] if isinstance(found, list) else []
        answers = answers or [a for a in kept if a.get("result") and not a.get("was_cancelled")]
    answers = answers or ([task] if isinstance(task.get("result"), list) else [])
    for answer in answers:
        who = answer.get("completed_by", answer.get("model_version"))
        who = who.get("email", who.get("id")) if isinstance(who, Mapping) else who
        result = answer["result"]
        for region in result if isinstance(result, list) else [result]:
            yield (None if who in (None, "") else f"{who:g}" if isinstance(who, float) else str(who)), region


def _region(
    region: Mapping[str, Any], by: str | None, series: str | None, where: str, line: int
) -> Iterator[Spoken | Deletion | DataError]:
    value = region["value"]
    labels = value.get(KIND) or []
    if not isinstance(labels, list) or len(labels) > 1:
        hint = "one label a region; a second level has a from_name of its own"
        yield DataError(f"a region with {len(labels)} labels", hint=hint, where=where)
        return
    start, end = value.get("start"), value.get("end")
    place: dict[str, Any] = (
        {"t": start} if value.get("instant") or end is None else {"start": start, "end": end}
    )
    level = region.get("from_name", FROM_NAME)
    record = {
        **place,
        "label": labels[0] if labels else "",
        "id": region.get("id"),
        "level": DEFAULT_LEVEL if level == FROM_NAME else level,
    }
    try:
        found = parse_prompt(record, where, line)
    except DataError as error:
        yield error
        return
    assert isinstance(found, Spoken), "a region deletes nothing"
    yield replace(found, by=by, series=series)
