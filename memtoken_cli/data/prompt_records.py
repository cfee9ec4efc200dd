"""One record of a prompt file, as a mapping, checked and turned into `Spoken` or `Deletion`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from memtoken_cli.data.prompt_types import DEFAULT_LEVEL, Clock, Deletion, Spoken, Type
from memtoken_cli.data.series_columns import NUMBER
from memtoken_cli.data.series_time import parse_iso
from memtoken_cli.io.errors import DataError, nearest
from memtoken_cli.io.records import kind_of

EXAMPLE = '{"t": 12.4, "label": "walk"}'
SUGGESTED = ("guess", "margin")  # of a suggestion: for the reader's eyes
PLACES = ("t", "start", "end", "row", "start_row", "end_row")
FIELDS = (
    *PLACES,
    "label",
    "not",
    "type",
    "level",
    "series",
    "weight",
    "id",
    "by",
    "note",
    "delete",
    *SUGGESTED,
)
TEXTS: tuple[str, ...] = ("level", "series", "id", "by", "note")
TYPES: tuple[Type, ...] = get_args(Type)


def unanswered(record: Mapping[str, Any]) -> bool:
    """Whether a record is a suggestion that nobody has filled in."""
    said = any(record.get(key) is not None for key in ("label", "not", "type", "delete"))
    return not said and any(key in record for key in SUGGESTED)


def parse_prompt(record: Mapping[str, Any], where: str, line: int = 0) -> Spoken | Deletion:
    """One record. Raises DataError at `where`."""
    known = {key: value for key, value in record.items() if value is not None}
    for key in record:
        if key not in FIELDS:
            close = nearest(key, FIELDS)
            hint = f"did you mean {close}?" if close else f"such as {EXAMPLE}"
            raise DataError(f"unknown field {key!r} of a prompt", hint=hint, where=where)
    texts = {key: _text(known[key], key, where) for key in TEXTS if key in known}
    if "delete" in known:
        return _deletion(known, texts, where, line)
    return _spoken(known, texts, where, line)


def _deletion(known: Mapping[str, Any], texts: Mapping[str, str], where: str, line: int) -> Deletion:
    if known["delete"] is not True and str(known["delete"]).lower() not in ("true", "1"):
        raise DataError('"delete" can only be true', hint='{"id": "p7", "delete": true}', where=where)
    if "id" in texts:
        return Deletion(texts["id"], None, None, line, where)
    if any(key in known for key in PLACES):
        rest = {key: value for key, value in known.items() if key != "delete"}
        return Deletion(None, None, _spoken(rest, texts, where, line), line, where)
    if "label" not in known:
        hint = '{"id": "p7", "delete": true} or {"label": "walk", "delete": true}'
        raise DataError("nothing to delete: neither id nor label", hint=hint, where=where)
    return Deletion(None, _label(known["label"], where), None, line, where)


def _spoken(known: Mapping[str, Any], texts: Mapping[str, str], where: str, line: int) -> Spoken:
    kind, labels = _meaning(known, where)
    clock, start, end = _place(known, where)
    if kind == "boundary" and end is not None:
        raise DataError("a boundary is one moment", hint='{"t": 30.2, "type": "boundary"}', where=where)
    if kind == "same" and end is None:
        hint = '{"start": 40, "end": 47, "type": "same"}'
        raise DataError("same needs a start and an end", hint=hint, where=where)
    return Spoken(
        type=kind,
        clock=clock,
        start=start,
        end=end,
        labels=labels,
        level=texts.get("level", DEFAULT_LEVEL),
        series=texts.get("series"),
        weight=_weight(known.get("weight", 1.0), where),
        id=texts.get("id"),
        by=texts.get("by"),
        note=texts.get("note"),
        line=line,
        where=where,
    )


def _meaning(known: Mapping[str, Any], where: str) -> tuple[Type, tuple[str, ...]]:
    """(type, labels)."""
    given = known.get("type")
    if given is not None and given not in TYPES:
        close = nearest(str(given), TYPES)
        hint = f"did you mean {close}?" if close else f"types: {', '.join(TYPES)}"
        raise DataError(f"unknown type {given!r}", hint=hint, where=where)
    if "label" in known and "not" in known:
        wrong = known["not"] if isinstance(known["not"], list) else [known["not"]]
        same = known["label"] in wrong
        what = "label and not are the same" if same else "one prompt says label or not"
        raise DataError(what, hint="two lines say two things", where=where)
    kind: Type = given or ("not" if "not" in known else "label")
    if kind in ("boundary", "no-boundary", "same"):
        if "label" in known or "not" in known:
            raise DataError(
                f"a prompt of type {kind} has no label", hint="two lines say two things", where=where
            )
        return kind, ()
    if kind == "label" and "not" in known:
        raise DataError('type "label" with "not"', hint='{"t": 50, "not": "walk"}', where=where)
    said = known.get("not", known.get("label"))
    if said is None:
        raise DataError("empty label", hint=EXAMPLE, where=where)
    many = said if isinstance(said, list) and kind == "not" else [said]
    labels = tuple(dict.fromkeys(_label(one, where) for one in many))
    if not labels:
        raise DataError("empty label", hint='{"t": 50, "not": ["walk", "run"]}', where=where)
    return kind, tuple(sorted(labels))


def _place(known: Mapping[str, Any], where: str) -> tuple[Clock, float | str, float | str | None]:
    """(clock, start, end or None for a point)."""
    given = [key for key in PLACES if key in known]
    if not given:
        raise DataError("no time: neither t nor start and end", hint=EXAMPLE, where=where)
    if given == ["t"]:
        return "time", _time(known["t"], "t", where), None
    if given == ["row"]:
        return "row", _row(known["row"], "row", where), None
    if given == ["start", "end"]:
        start, end = _time(known["start"], "start", where), _time(known["end"], "end", where)
        _ordered(start, end, where)
        return "time", start, end if start != end else None
    if given == ["start_row", "end_row"]:
        first, last = _row(known["start_row"], "start_row", where), _row(known["end_row"], "end_row", where)
        _ordered(first, last, where)
        return "row", first, last if first != last else None
    hint = "one of: t; start and end; row; start_row and end_row"
    if len(given) == 1:
        other = {"start": "end", "end": "start", "start_row": "end_row", "end_row": "start_row"}[given[0]]
        raise DataError(f"{given[0]} without {other}", hint=hint, where=where)
    raise DataError(f"the place is said as {' and '.join(given)}", hint=hint, where=where)


def _ordered(start: float | str, end: float | str, where: str) -> None:
    a, b = (parse_iso(v) if isinstance(v, str) else v for v in (start, end))
    if a is not None and b is not None and isinstance(start, str) == isinstance(end, str) and a > b:
        raise DataError(f"start {start} after end {end}", hint="start comes before end", where=where)


def _time(value: Any, key: str, where: str) -> float | str:
    """A number, or the text of a date."""
    if isinstance(value, str):
        text = value.strip()
        if NUMBER.fullmatch(text):
            value = float(text)
        elif parse_iso(text) is not None:
            return text
        else:
            hint = "a number in the series' unit, or a date such as 2024-05-01T12:00:00Z"
            raise DataError(f"{key} {text[:40]!r} is no time", hint=hint, where=where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{key} is no time but {kind_of(value)}", hint=EXAMPLE, where=where)
    return float(value)


def _row(value: Any, key: str, where: str) -> int:
    if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        hint = '{"row": 3120, "label": "walk"}'
        raise DataError(f"{key} is no row index but {value!r}", hint=hint, where=where)
    return value


def _label(value: Any, where: str) -> str:
    """A label as text, numbers as written."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"a label is text, found {kind_of(value)}", hint=EXAMPLE, where=where)
    text = str(value).strip()
    if not text:
        raise DataError("empty label", hint=EXAMPLE, where=where)
    return text


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{key} is text, found {kind_of(value)}", where=where)
    text = str(value).strip()
    if not text and key in ("level", "series", "id"):
        raise DataError(f"empty {key}", hint=f"leave {key} out", where=where)
    return text


def _weight(value: Any, where: str) -> float:
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(f"weight {value!r} is not above 0", hint="leave weight out for 1", where=where)
    return float(value)
