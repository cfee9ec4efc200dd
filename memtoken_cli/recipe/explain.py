"""pydantic's errors in a user's words: which key, in which line, what was expected and what stood there."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError

from memtoken_cli.io.errors import UsageError, nearest
from memtoken_cli.recipe.fields import Path, dotted, suggest
from memtoken_cli.recipe.strict_yaml import Document

SHOWN = 60


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> list[UsageError]:
    """One UsageError a wrong key, in the order of the file's schema; alternatives of a union are joined."""
    found: dict[tuple[Path, bool], list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        one: dict[str, Any] = dict(item)
        path = _path(one["loc"], document.value, one["type"])
        found.setdefault((path, one["type"] == "missing"), []).append(one)
    return [_explain(path, items, document, model) for (path, _), items in found.items()]


def _path(loc: tuple[int | str, ...], value: Any, kind: str) -> Path:
    """The location without the names of union alternatives that pydantic puts in."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        children: dict[Any, Any] = value if isinstance(value, dict) else {}
        if isinstance(value, list):
            children = dict(enumerate(value))
        if part in children:
            value = children[part]
        elif not (kind == "missing" and i == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _explain(
    path: Path, items: list[dict[str, Any]], document: Document, model: type[BaseModel]
) -> UsageError:
    kind, where, name = items[0]["type"], document.place(path), dotted(path)
    if kind == "extra_forbidden":
        return UsageError(f"unknown key {name}", hint=suggest(model, path), where=where)
    if kind == "missing":
        section = f" under {dotted(path[:-1])}" if len(path) > 1 else ""
        return UsageError(f"missing key {name}", hint=f"add {path[-1]}: ...{section}", where=where)
    wanted = " or ".join(dict.fromkeys(_wanted(item) for item in items))
    if kind == "value_error":
        return UsageError(f"{name}: {wanted}" if name else wanted, where=where)
    return UsageError(f"{name} {wanted}, found {_shown(items[0])}", hint=_hint(items[0]), where=where)


def _wanted(item: dict[str, Any]) -> str:
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    text = str(item["msg"]).removeprefix("Input ").replace("dictionary", "mapping")
    if item["type"] == "model_type":
        return "should be a section of its own"
    return text[:1].lower() + text[1:]


def _hint(item: dict[str, Any]) -> str | None:
    value = item["input"]
    if item["type"] == "bool_type":
        return "write true or false"
    if item["type"] == "literal_error" and isinstance(value, str):
        words = str(item["ctx"]["expected"]).replace(" or ", ", ").split(", ")
        close = nearest(value, [w.strip("'") for w in words])
        return f"did you mean {close}?" if close else None
    if item["type"] == "string_type" and isinstance(value, int | float):
        return f'quote it: "{value}"'
    if item["type"] in ("float_type", "int_type") and isinstance(value, str):
        return "write a plain number, without quotes"
    return None


def _shown(item: dict[str, Any]) -> str:
    text = json.dumps(item["input"], ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
