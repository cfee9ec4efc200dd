"""Reading lines: JSONL objects and plain text, every problem named by file:line; "-" is standard input."""

from __future__ import annotations

import codecs
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from memtoken_cli.io.errors import DataError

MAX_LINE = 64 * 2**20


@dataclass(frozen=True)
class Record:
    """One JSON object and the 1-based line it stood on."""

    line: int
    value: dict[str, Any]


def source_name(path: str | Path) -> str:
    """How errors call the source: the path as given, "<stdin>" for "-"."""
    return "<stdin>" if str(path) == "-" else str(path)


def iter_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes without the line end) of a file or of standard input, as they come.

    Raises DataError: no such file, a directory, not readable, a line over 64 MiB.
    """
    if str(path) == "-":
        yield from _lines(sys.stdin.buffer, path)
        return
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 (closed below: its errors are told apart here)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    with stream:
        yield from _lines(stream, path)


def _lines(stream: BinaryIO, path: str | Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while True:
        try:
            line = stream.readline(MAX_LINE + 1)
        except OSError as error:
            raise DataError(f"cannot read {source_name(path)}: {_reason(error)}") from error
        if not line:
            return
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(f"a line is over {MAX_LINE >> 20} MiB", where=f"{source_name(path)}:{number}")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        yield number, line.rstrip(b"\r\n")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def decode(line: bytes, where: str) -> str:
    """UTF-8 text without NUL bytes. Raises DataError at `where`."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = "convert the file: iconv -t utf-8"
        raise DataError(f"not UTF-8 (byte {error.start + 1} of the line)", hint=hint, where=where) from None
    if "\0" in text:
        raise DataError("a NUL byte: this is not a text file", where=where)
    return text


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """(line number, text) of every line, blank ones included. Raises DataError."""
    return [(n, decode(line, f"{source_name(path)}:{n}")) for n, line in iter_lines(path)]


def paragraphs(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[tuple[int, str]]:
    """(its first line, text) of what blank lines separate, as it comes. Raises DataError at name:line."""
    block: list[str] = []
    start = 0
    for number, line in lines:
        text = decode(line, f"{name}:{number}")
        if text.strip():
            start = start if block else number
            block.append(text)
        elif block:
            yield start, "\n".join(block)
            block = []
    if block:
        yield start, "\n".join(block)


def iter_jsonl(path: str | Path) -> Iterator[Record]:
    """JSON objects one a line, as they come; blank lines are skipped. Raises DataError at file:line."""
    return parse_jsonl(iter_lines(path), source_name(path))


def read_jsonl(path: str | Path) -> list[Record]:
    """All of `iter_jsonl`; an empty list for an empty file."""
    return list(iter_jsonl(path))


def parse_jsonl(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[Record]:
    """`iter_jsonl` over numbered lines that are already at hand."""
    for number, line in lines:
        where = f"{name}:{number}"
        text = decode(line, where)
        if text.strip():
            yield Record(number, parse_object(text, where))


def parse_object(text: str, where: str) -> dict[str, Any]:
    """One strict JSON object: finite numbers, no key twice, no lone surrogate. Raises DataError."""
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite_float
        )
        text.encode("utf-8")
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} at column {error.colno}"
        raise DataError(message, hint=_line_hint(text), where=where) from None
    except UnicodeEncodeError:
        raise DataError("a lone surrogate \\ud800-\\udfff, which is no character", where=where) from None
    except RecursionError:
        raise DataError("JSON nested too deeply", where=where) from None
    except ValueError as error:
        raise DataError(str(error).partition(";")[0], where=where) from None
    if not isinstance(value, dict):
        message = f"expected a JSON object, found {kind_of(value)}"
        raise DataError(message, hint=_line_hint(text), where=where)
    return value


def _line_hint(text: str) -> str:
    if text.lstrip().startswith("["):
        return "one JSON object a line; jq -c '.[]' FILE makes lines of a JSON array"
    return 'one JSON object a line, such as {"input": "...", "output": "..."}'


def kind_of(value: object) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(
        type(value).__name__, "another type"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {key!r} stands twice")
        out[key] = value
    return out


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is out of range")
    return value
