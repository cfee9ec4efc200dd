"""YAML that means one thing: the 1.2 core schema's scalars, no key twice, no anchors, aliases or tags,
bounded size.

`true` and `false` are the only booleans (yes, on and NO are words), 1e-3 is a number, 010 is ten. Every value
keeps the line it came from, and a document's problems are collected rather than raised one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from memtoken_cli.io.errors import Problems, UsageError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_DIGITS = 300

Path = tuple[str | int, ...]

_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


@dataclass
class Document:
    """A parsed file: plain Python values, and the place ("file:line") of every value by its path."""

    value: Any
    source: str
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Where the value at `path` stands, or the nearest section around it that has a place."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.source)


def plain(text: str) -> Any:
    """What an unquoted scalar means in YAML 1.2's core schema, with lower-case booleans only.

    Raises ValueError for a number of absurd length, or for none (.nan).
    """
    if _NULL.fullmatch(text):
        return None
    if text in ("true", "false"):
        return text == "true"
    if len(text) > MAX_DIGITS and (_INT.fullmatch(text) or _HEX.fullmatch(text) or _OCTAL.fullmatch(text)):
        raise ValueError(f"a number of {len(text)} digits")
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INF.fullmatch(text):
        return float(text.replace(".", ""))
    if _NAN.fullmatch(text):
        raise ValueError(".nan, which is no value to set")
    return text


def parse(data: bytes | str, source: str, problems: Problems) -> Document:
    """Read one document. What can be passed over (a key twice, a tag) goes to `problems`, and reading goes
    on.

    Raises UsageError, with the earlier problems, where reading cannot go on: not UTF-8, bad syntax, too big,
    too deep.
    """
    size = len(data.encode("utf-8", "surrogatepass")) if isinstance(data, str) else len(data)
    if size > MAX_BYTES:
        _stop(problems, UsageError(f"{size} bytes of YAML, at most {MAX_BYTES} are read", where=source))
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        _stop(problems, UsageError("not UTF-8", where=f"{source}:{line}"))
    builder = _Builder(source, problems)
    try:
        builder.read(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        _stop(problems, UsageError(f"bad YAML: {error.problem or error.context}", where=where))
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        _stop(
            problems,
            UsageError(
                f"bad YAML: {error.reason} (#x{_code(error.character):04x})", where=f"{source}:{line}"
            ),
        )
    except RecursionError:
        _stop(problems, UsageError(f"YAML nested more than {MAX_DEPTH} deep", where=source))
    return builder.document


def _code(character: object) -> int:
    return character if isinstance(character, int) else ord(str(character))


def _stop(problems: Problems, error: UsageError) -> None:
    problems.add(error)
    problems.raise_any()


class _Builder:
    def __init__(self, source: str, problems: Problems) -> None:
        self.source = source
        self.problems = problems
        self.document = Document(None, source)
        self._events: Iterator[Any] = iter(())

    def read(self, events: Iterator[Any]) -> None:
        self._events = events
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._problem(event, "a second document (---)", "one recipe a file")
                    return
                self.document.value = self._value(next(events), (), 0)

    def _value(self, event: Any, path: Path, depth: int) -> Any:
        self.document.places[path] = self._where(event)
        if isinstance(event, yaml.AliasEvent):
            self._problem(event, f"an alias (*{event.anchor})", "write the value out")
            return None
        if event.anchor is not None:
            self._problem(event, f"an anchor (&{event.anchor})", "write the value out where it is needed")
        if event.tag is not None:
            self._problem(
                event, f"a tag ({event.tag})", "a recipe can name no Python object; leave the tag out"
            )
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth >= MAX_DEPTH:
            error = UsageError(f"YAML nested more than {MAX_DEPTH} deep", where=self._where(event))
            _stop(self.problems, error)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path, depth)
        return self._mapping(path, depth)

    def _scalar(self, event: Any) -> Any:
        if any("\ud800" <= c <= "\udfff" for c in event.value):
            self._problem(event, "a lone surrogate, which is no character", "leave it out")
            return ""
        if event.style is not None:
            return event.value
        try:
            return plain(event.value)
        except ValueError as error:
            self._problem(event, str(error), "write another number")
            return 0

    def _sequence(self, path: Path, depth: int) -> list[Any]:
        out: list[Any] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            out.append(self._value(event, (*path, len(out)), depth + 1))
        return out

    def _mapping(self, path: Path, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            line = event.start_mark.line + 1
            key = self._key(event, path, depth)
            twice = key in out
            if twice:
                self._problem(
                    event, f"key {key!r} stands twice (first on line {lines[key]})", "remove one of the two"
                )
            place = self._where(event)
            # the second of two is read for its own problems, away from the places of the first
            value = self._value(next(self._events), (*path, "<again>" if twice else key), depth + 1)
            if not twice:
                out[key] = value
                lines[key] = line
                self.document.places[(*path, key)] = place
        return out

    def _key(self, event: Any, path: Path, depth: int) -> str:
        if isinstance(event, yaml.ScalarEvent):
            self._value(event, (*path, "<key>"), depth)
            if event.value == "<<" and event.style is None:
                self._problem(event, "a merge key (<<)", "write the values out")
            return str(event.value)
        self._problem(event, "a key that is not a word", "keys are plain words")
        self._value(event, (*path, "<key>"), depth)
        return "<key>"

    def _where(self, event: Any) -> str:
        return f"{self.source}:{event.start_mark.line + 1}"

    def _problem(self, event: Any, what: str, hint: str) -> None:
        self.problems.add(UsageError(what, hint=hint, where=self._where(event)))
