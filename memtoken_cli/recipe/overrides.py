"""`key=value` arguments: onto a recipe by dotted key, or into one flat pydantic model.

A value is a YAML 1.2 scalar or a flow list. Where only text can stand, it is taken as it is, so that
`template='Query: {input}'` needs no second pair of quotes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from memtoken_cli.io.errors import Problems, UsageError
from memtoken_cli.recipe import fields, strict_yaml
from memtoken_cli.recipe.explain import explain
from memtoken_cli.recipe.fields import Path, dotted

M = TypeVar("M", bound=BaseModel)
SOURCE = "the arguments"


def flat(arguments: Sequence[str], model: type[M]) -> M:
    """A model's instance from `key=value` arguments. Raises UsageError with every problem."""
    problems = Problems()
    document = strict_yaml.Document({}, SOURCE)
    apply(document, arguments, model, problems)
    result = None
    try:
        result = model.model_validate_json(json.dumps(document.value), strict=True, extra="forbid")
    except ValidationError as error:
        for problem in explain(error, document, model):
            problems.add(problem)
    problems.raise_any()
    assert result is not None, "a failed validation was explained above"
    return result


def apply(
    document: strict_yaml.Document, arguments: Sequence[str], model: type[BaseModel], problems: Problems
) -> None:
    """Set each argument's value in the document; unknown keys and bad values go to `problems`.

    A key without dots may leave out its section where only one section has it; the name of a section that has
    a `path` stands for that.
    """
    for argument in arguments:
        try:
            _set(document, argument, model)
        except UsageError as problem:
            problems.add(problem)


def _set(document: strict_yaml.Document, argument: str, model: type[BaseModel]) -> None:
    where = f"argument {argument}"
    key, equals, text = argument.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError(f"expected KEY=VALUE, found {argument!r}", hint="such as train.lr=1e-3")
    path = _resolve(tuple(key.split(".")), model, where)
    value = _value(text, fields.field_at(model, path), where)
    target = document.value
    for part in path[:-1]:
        inner = target.get(part)
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"{part} is no section in {document.source}", where=where)
        target = inner
    target[path[-1]] = value
    document.places[path] = where


def _resolve(path: Path, model: type[BaseModel], where: str) -> Path:
    """The full path of a key. Raises UsageError where there is none (with the nearest), or several."""
    found = fields.field_at(model, path)
    if found is not None:
        if any("path" in fields.keys(s) for s in fields.sections(found.annotation)):
            return (*path, "path")
        return path
    parent = fields.field_at(model, path[:-1])
    if parent is not None and fields.is_mapping(parent.annotation):
        return path
    if len(path) == 1:
        same = [p for p in fields.places_of(model, str(path[0])) if len(p) == 2]
        if len(same) == 1:
            return same[0]
        if same:
            hint = "write " + " or ".join(dotted(p) for p in same)
            raise UsageError(f"{path[0]} stands in several sections", hint=hint, where=where)
    raise UsageError(f"unknown key {dotted(path)}", hint=fields.suggest(model, path), where=where)


def _value(text: str, info: FieldInfo | None, where: str) -> Any:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if quoted or (text.startswith("[") and text.endswith("]")):
        problems = Problems()
        try:
            value = strict_yaml.parse(text, where, problems).value
            problems.raise_any()
            return value
        except UsageError as error:
            if info is not None and fields.takes_text_only(info.annotation):
                return text
            raise UsageError(f"bad value: {error.message}", where=where) from None
    if info is not None and fields.takes_text_only(info.annotation):
        optional = type(None) in fields.parts(info.annotation)
        return None if optional and text in ("null", "~") else text
    try:
        return strict_yaml.plain(text)
    except ValueError as error:
        raise UsageError(f"bad value: {error}", where=where) from None
