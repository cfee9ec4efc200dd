"""Which column of a table is what: time, label, channel or left out; for every kind of file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from memtoken_cli.data.series import SeriesKeys
from memtoken_cli.data.series_time import is_time_header, parse_iso
from memtoken_cli.io.errors import DataError, UsageError, nearest

Cells = Literal["number", "date", "text", "empty"]
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INFINITE = ("inf", "-inf", "+inf", "infinity", "-infinity", "+infinity")
EMPTY = frozenset(("", "nan", "-nan", "na", "n/a", "#n/a", "null", "none", *_INFINITE))  # in lower case: gaps
_ANSWER = re.compile(r"(is_)?(label|state|annotation|anomaly|change_?point)s?", re.IGNORECASE)
_COUNTER = re.compile(r"index|idx|row|id|sample|frame|unnamed.*", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """Column indices by their part. named: the channels were asked for by name."""

    time: int | None
    label: int | None
    channels: tuple[int, ...]
    named: bool
    notes: tuple[str, ...]


def is_empty(cell: str) -> bool:
    """Whether a cell is a gap: nothing, NaN, NA, null or an infinity."""
    return cell.strip().lower() in EMPTY


def kind_of_cells(cells: Sequence[str], decimal: str = ".") -> Cells:
    """What a column's first cells hold; with numbers and text mixed, the more frequent."""
    full = [cell.strip() for cell in cells if not is_empty(cell)]
    if not full:
        # infinities and NaN are numbers that are missing; nothing at all says nothing
        return "number" if any(cell.strip() for cell in cells) else "empty"
    numbers = sum(NUMBER.fullmatch(cell.replace(decimal, ".")) is not None for cell in full)
    if 2 * numbers >= len(full):
        return "number"
    return "date" if parse_iso(full[0]) is not None else "text"


def unique_names(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """(names without repetitions, notices): an empty one becomes cN, a second x becomes x.2."""
    out: dict[str, None] = {}
    notes = []
    for i, name in enumerate(names):
        plain = name.strip() or f"c{i}"
        new, count = plain, 1
        while new in out:
            count += 1
            new = f"{plain}.{count}"
        if count > 1:
            notes.append(f"column {plain!r} stands twice: the later one is called {new!r}")
        out[new] = None
    return tuple(out), notes


def counts_rows(name: str, headed: bool) -> bool:
    """Whether a first column of this name may be a mere row number."""
    return not headed or name == "c0" or _COUNTER.fullmatch(name) is not None


def choose(
    names: Sequence[str], cells: Sequence[Cells], keys: SeriesKeys, source: str, headed: bool = True
) -> Choice:
    """The parts of a table's columns. Raises UsageError: a key names no column; DataError: no channel."""
    label = _named(keys.label_col, "label_col", names)
    time = _time(names, keys, headed)
    if time is not None and time == label:
        raise UsageError(f"{names[time]!r} is both time and label_col", hint="time=none")
    if keys.channels is not None:
        chosen = _asked(keys.channels, names, cells, {time, label})
        return Choice(time, label, chosen, True, ())
    notes = []
    channels = []
    for i, (name, kind) in enumerate(zip(names, cells, strict=True)):
        if i in (time, label):
            continue
        if headed and _ANSWER.fullmatch(name.strip()):
            notes.append(
                f"column {name!r} is left out: it looks like labels (label_col={name} makes prompts of it)"
            )
        elif kind in ("text", "date"):
            notes.append(f"column {name!r} holds {'dates' if kind == 'date' else 'text'} and is left out")
        else:
            channels.append(i)
    if not channels:
        raise DataError(
            f"no channel: {_listed(names)}", hint="channels=NAME,NAME names the numeric columns", where=source
        )
    return Choice(time, label, tuple(channels), False, tuple(notes))


def _time(names: Sequence[str], keys: SeriesKeys, headed: bool) -> int | None:
    if keys.time is not None:
        if keys.time == "none" and "none" not in names:
            return None
        return _named(keys.time, "time", names)
    if not headed:
        return None
    return next((i for i, name in enumerate(names) if is_time_header(name)), None)


def _named(name: str | None, key: str, names: Sequence[str]) -> int | None:
    if name is None:
        return None
    if name in names:
        return list(names).index(name)
    close = nearest(name, names)
    hint = f"{key}={close}" if close else f"columns: {_listed(names)}"
    raise UsageError(f"{key}={name}: there is no such column", hint=hint)


def _asked(
    text: str, names: Sequence[str], cells: Sequence[Cells], taken: set[int | None]
) -> tuple[int, ...]:
    if text in names:
        return (list(names).index(text),)
    out: set[int] = set()
    for part in (p.strip() for p in text.split(",")):
        if part in names:
            out.add(list(names).index(part))
            continue
        found = [i for i, name in enumerate(names) if fnmatchcase(name, part) and i not in taken]
        found = [i for i in found if cells[i] not in ("text", "date") and not _ANSWER.fullmatch(names[i])]
        if not found:
            close = nearest(part, names)
            hint = f"did you mean {close}?" if close else f"columns: {_listed(names)}"
            raise UsageError(f"channels={text}: no numeric column {part!r}", hint=hint)
        out.update(found)
    return tuple(sorted(out))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
