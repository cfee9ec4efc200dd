"""A series and its bank kept warm: one JSON request a line, one JSON answer a line. The engine of an editor.

    {"prompt": {"row": 40, "label": "walk"}}   {"undo": true}   {"retract": "p7"}   {"segments": true}
    {"states": true}   {"suggest": 3}   {"save": "walk.memory.safetensors"}   {"quit": true}

A request may carry an `id`, which its answer repeats. A faulty one is answered with `error` and changes
nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from memtoken_cli.io.errors import DataError, MemtokError, nearest
from memtoken_cli.io.records import decode, parse_object
from memtoken_cli.io.sink import encode
from memtoken_cli.methods.memprompttss import bank_file
from memtoken_cli.methods.memprompttss.segmenter import Segmenter

ID, QUIT = "id", "quit"


def serve(seg: Segmenter, memory: str | None, lines: Iterable[bytes] | None = None) -> Iterator[str]:
    """Answers to requests as they come, until `quit` or the end; `memory`: where `save` writes by default."""
    source = iter(sys.stdin.buffer.readline, b"") if lines is None else lines
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        began = time.perf_counter()
        answer, ends = _answered(seg, memory, line, f"request {number}")
        answer["latency_ms"] = round((time.perf_counter() - began) * 1000, 2)
        yield encode(answer) + "\n"
        if ends:
            return


def _answered(seg: Segmenter, memory: str | None, line: bytes, where: str) -> tuple[dict[str, Any], bool]:
    """(the answer, whether the session ends)."""
    tag: dict[str, Any] = {}
    try:
        request = _parsed(line, where)
        tag = {ID: request.pop(ID)} if ID in request else {}
        if len(request) != 1:
            raise DataError("a request has one key", hint=" ".join((*_ACTIONS, QUIT)), where=where)
        [(name, value)] = request.items()
        if name == QUIT:
            return {**tag, "ok": True, "request": name}, True
        if name not in _ACTIONS:
            close = nearest(name, (*_ACTIONS, QUIT))
            raise DataError(
                f"no request {name!r}", hint=f"did you mean {close}?" if close else None, where=where
            )
        return {**tag, "ok": True, "request": name, **_ACTIONS[name](seg, value, memory)}, False
    except MemtokError as error:
        return {**tag, "ok": False, "error": error.message, "hint": error.hint}, False
    except OSError as error:
        return {**tag, "ok": False, "error": str(error), "hint": None}, False


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    text = decode(line, where)
    try:
        return parse_object(text, where)
    except DataError as error:
        raise DataError(error.message, hint='such as {"segments": true}', where=where) from None


def _prompt(seg: Segmenter, value: Any, memory: str | None) -> dict[str, Any]:
    records = value if isinstance(value, list) else [value]
    if not all(isinstance(record, Mapping) for record in records):
        raise DataError("a prompt is an object", hint='{"prompt": {"row": 40, "label": "walk"}}')
    before = len(seg.changes.warnings)
    seg.prompt(*records)
    return {"prompts": len(seg.bank.rows), "warnings": seg.changes.warnings[before:]}


def _undo(seg: Segmenter, value: Any, memory: str | None) -> dict[str, Any]:
    return {"prompts": len(seg.undo().bank.rows)}


def _retract(seg: Segmenter, value: Any, memory: str | None) -> dict[str, Any]:
    return {"prompts": len(seg.retract(str(value)).bank.rows)}


def _segments(seg: Segmenter, value: Any, memory: str | None) -> dict[str, Any]:
    found = seg.predict()
    return {"segments": [segment.row() for segment in found.segments], "notes": list(found.notes)}


def _states(seg: Segmenter, value: Any, memory: str | None) -> dict[str, Any]:
    found = seg.predict()
    return {
        "states": {
            level.name: [
                [a, b, level.labels[k] if k >= 0 else ""]
                for a, b, k in _runs(found.series.on_rows(level.states_T))
            ]
            for level in found.levels
        }
    }


def _runs(states_T: Any) -> list[tuple[int, int, int]]:
    from memtoken_cli.methods.memprompttss.levels import runs

    return [(a, b, int(states_T[a])) for a, b in runs(states_T).tolist()]


def _suggest(seg: Segmenter, value: Any, memory: str | None) -> dict[str, Any]:
    n = value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
    timed = seg.series.time_name is not None
    return {"suggest": [suggestion.record(timed) for suggestion in seg.suggest(n)]}


def _save(seg: Segmenter, value: Any, memory: str | None) -> dict[str, Any]:
    path = value if isinstance(value, str) else memory
    if path is None:
        raise DataError("no file to save to", hint='{"save": "walk.memory.safetensors"}, or --memory BANK')
    bank_file.save(seg.bank, path)
    return {"path": path, "prompts": len(seg.bank.rows)}


_ACTIONS: Mapping[str, Callable[[Segmenter, Any, str | None], dict[str, Any]]] = {
    "prompt": _prompt,
    "undo": _undo,
    "retract": _retract,
    "segments": _segments,
    "states": _states,
    "suggest": _suggest,
    "save": _save,
}
