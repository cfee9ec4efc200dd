"""Shots and queries: reading them, with a name for every bad line. No torch here.

A shot is one example of a many-shot prompt. How shots become text and tokens is `data/render.py`'s business.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from memtoken_cli.data.render import (
    Rendered,
    Span,
    Template,
    answer_ids,
    default_template,
    query_ids,
    render,
)
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import (
    Record,
    decode,
    iter_lines,
    kind_of,
    paragraphs,
    parse_jsonl,
    parse_object,
    source_name,
)

__all__ = [
    "Kind",
    "Query",
    "Rendered",
    "Shot",
    "Shots",
    "Span",
    "Template",
    "answer_ids",
    "balanced",
    "default_template",
    "iter_queries",
    "query_ids",
    "read_queries",
    "read_shots",
    "render",
    "shots_of",
]

Kind = Literal["pairs", "text", "messages", "plain"]
EXAMPLE = '{"input": "a question", "output": "its answer"}'
LABEL_CHARACTERS = 80  # a longer output is prose, not the name of a class
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Shot:
    """One example. `output` is None for running text; `messages`: the conversation, where it was one."""

    input: str
    output: str | None
    line: int
    messages: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Shots:
    """The examples of one source, in its order. `sha256` is the digest of the source's bytes."""

    items: list[Shot]
    kind: Kind
    source: str
    sha256: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """The distinct outputs, sorted; empty for running text."""
        return tuple(sorted({s.output for s in self.items if s.output is not None}))

    @property
    def labels(self) -> tuple[str, ...]:
        """The outputs where they look like a closed set (short, one line, one repeats); otherwise empty."""
        outputs = self.outputs
        short = all(len(o) <= LABEL_CHARACTERS and "\n" not in o for o in outputs)
        return outputs if short and len(outputs) < len(self.items) else ()


@dataclass(frozen=True)
class Query:
    """One question, its expected output where the record had one, and the record itself."""

    input: str
    output: str | None
    line: int
    record: dict[str, Any] = field(default_factory=dict)


def read_shots(path: str | Path) -> Shots:
    """Shots of a JSONL or plain-text file, or of standard input for "-".

    JSONL records are all {"input", "output"}, all {"text"} or all {"messages"}; other keys are ignored. Plain
    text is split on blank lines. Raises DataError at file:line: mixed kinds, an empty or missing field, fewer
    than 2 shots.
    """
    raw = []
    digest = hashlib.sha256()
    for number, line in iter_lines(path):
        raw.append((number, line))
        digest.update(line + b"\n")
    name = source_name(path)
    if not any(line.strip() for _, line in raw):
        raise DataError("no shots: the file is empty", hint=f"one record a line: {EXAMPLE}", where=name)
    if _is_jsonl(path, raw):
        items, kind = _records(raw, name)
    else:
        items, kind = [Shot(text, None, line) for line, text in paragraphs(raw, name)], "plain"
    if len(items) < 2:
        hint = "at least 2 shots; plain text is split on blank lines"
        raise DataError("only 1 shot", hint=hint, where=f"{name}:{items[0].line}")
    return Shots(items, kind, name, digest.hexdigest())


def shots_of(records: Iterable[Mapping[str, Any]], source: str = "<records>") -> Shots:
    """`read_shots` of records at hand; a record's place in the sequence is its line."""
    raw = [
        (n, json.dumps(dict(r), ensure_ascii=False, sort_keys=True).encode())
        for n, r in enumerate(records, 1)
    ]
    if len(raw) < 2:
        raise DataError(f"{len(raw)} shots are too few", hint="at least 2 shots", where=source)
    items, kind = _records(raw, source)
    return Shots(items, kind, source, hashlib.sha256(b"".join(line + b"\n" for _, line in raw)).hexdigest())


def iter_queries(
    path: str | Path,
    on_error: Callable[[DataError], None] | None = None,
    texts: Sequence[str] = ("input",),
) -> Iterator[Query]:
    """Queries as they come: JSONL {"input"[, "output"]} if the first line begins with "{", otherwise bare
    lines. `texts`: the keys that a record's text may have, the first one found counts.

    A bad line raises DataError at file:line, or goes to `on_error` and is left out if that returns.
    """
    name = source_name(path)
    lines = ((n, line) for n, line in iter_lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    jsonl = _is_jsonl(path, [first])
    for number, line in chain([first], lines):
        try:
            query = _query(line, number, f"{name}:{number}", jsonl, texts)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield query


def _query(line: bytes, number: int, where: str, jsonl: bool, texts: Sequence[str]) -> Query:
    text = decode(line, where)
    if not jsonl:
        return Query(text, None, number)
    value = parse_object(text, where)
    output = _text(value, "output", where) if "output" in value else None
    key = next((key for key in texts if key in value), texts[0])
    return Query(_text(value, key, where), output, number, value)


def read_queries(path: str | Path) -> list[Query]:
    """All of `iter_queries`. Raises DataError at file:line, also where there is none."""
    queries = list(iter_queries(path))
    if not queries:
        raise DataError(
            "no queries: the file is empty", hint="one query or JSON object a line", where=source_name(path)
        )
    return queries


def balanced(shots: Shots, k: int, rng_seed: int = 0) -> list[int]:
    """Indices of `k` shots, ascending: as equal over labels as can be, each label's earliest first.

    Which labels get one more where k does not divide evenly is drawn with `rng_seed`.
    """
    by_label: dict[str | None, list[int]] = {}
    for i, shot in enumerate(shots.items):
        by_label.setdefault(shot.output if shots.labels else None, []).append(i)
    groups = list(by_label.values())
    random.Random(rng_seed).shuffle(groups)
    deepest = max((len(g) for g in groups), default=0)
    order = [g[depth] for depth in range(deepest) for g in groups if depth < len(g)]
    return sorted(order[: max(k, 0)])


def _is_jsonl(path: str | Path, raw: list[tuple[int, bytes]]) -> bool:
    if str(path).endswith((".jsonl", ".ndjson", ".json")):
        return True
    first = next(line.strip() for _, line in raw if line.strip())
    return first.startswith(b"{")


def _records(raw: list[tuple[int, bytes]], name: str) -> tuple[list[Shot], Kind]:
    items: list[Shot] = []
    kind: Kind | None = None
    for record in parse_jsonl(raw, name):
        where = f"{name}:{record.line}"
        found = _kind(record, where)
        if kind is not None and found != kind:
            raise DataError(
                f"mixed records: {found} after {kind}", hint="one kind of record a file", where=where
            )
        kind = found
        items.append(_shot(record, kind, where))
    assert kind is not None, "the caller checked that a line is not blank"
    return items, kind


def _kind(record: Record, where: str) -> Kind:
    keys = record.value.keys()
    kinds: list[Kind] = []
    if keys & {"input", "output"}:
        kinds.append("pairs")
    if "text" in keys:
        kinds.append("text")
    if "messages" in keys:
        kinds.append("messages")
    if len(kinds) > 1:
        raise DataError(
            f"a record that is both {kinds[0]} and {kinds[1]}", hint=f"such as {EXAMPLE}", where=where
        )
    if not kinds:
        found = ", ".join(list(keys)[:5]) or "nothing"
        raise DataError(
            f'no "input" and "output", "text" or "messages" (found: {found})',
            hint=f"such as {EXAMPLE}",
            where=where,
        )
    return kinds[0]


def _shot(record: Record, kind: Kind, where: str) -> Shot:
    if kind == "pairs":
        return Shot(_text(record.value, "input", where), _text(record.value, "output", where), record.line)
    if kind == "text":
        return Shot(_text(record.value, "text", where), None, record.line)
    messages = _messages(record.value["messages"], where)
    return Shot(messages[-2]["content"], messages[-1]["content"], record.line, messages)


def _text(value: dict[str, Any], key: str, where: str) -> str:
    if key not in value:
        raise DataError(f'a record without "{key}"', hint=f"such as {EXAMPLE}", where=where)
    text = value[key]
    if not isinstance(text, str):
        raise DataError(
            f'"{key}" must be a string, found {kind_of(text)}', hint='write numbers as "3"', where=where
        )
    if not text.strip():
        raise DataError(f'"{key}" is empty', where=where)
    return text


def _messages(value: object, where: str) -> tuple[dict[str, str], ...]:
    hint = 'such as {"messages": [{"role": "user", "content": ".."}, {"role": "assistant", "content": ".."}]}'
    if not isinstance(value, list) or len(value) < 2:
        raise DataError('"messages" must be a list of two messages or more', hint=hint, where=where)
    out = []
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"a message without a role among {', '.join(ROLES)}", hint=hint, where=where)
        out.append({"role": message["role"], "content": _text(message, "content", where)})
    if out[-1]["role"] != "assistant" or out[-2]["role"] not in ("user", "tool"):
        raise DataError(
            "the last two messages must be the user's and the assistant's", hint=hint, where=where
        )
    return tuple(out)
