"""Walking a pydantic schema by key: which sections and keys there are, and which one was meant."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from memtoken_cli.io.errors import nearest

Path = tuple[str | int, ...]


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the name that a recipe writes."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def parts(annotation: Any) -> list[Any]:
    """The alternatives of a union, flat; a list of the annotation itself otherwise."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [p for a in typing.get_args(annotation) for p in parts(a)]
    if typing.get_origin(annotation) is typing.Annotated:
        return parts(typing.get_args(annotation)[0])
    return [annotation]


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models among the alternatives, also as a list's items."""
    out: list[type[BaseModel]] = []
    for part in parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            out.append(part)
        elif typing.get_origin(part) in (list, tuple):
            out += [s for a in typing.get_args(part) if a is not ... for s in sections(a)]
    return out


def is_mapping(annotation: Any) -> bool:
    return any(part is dict or typing.get_origin(part) is dict for part in parts(annotation))


def takes_text_only(annotation: Any) -> bool:
    """Whether a value can be text (or one of a few words) but no number and no boolean."""
    found = [p for p in parts(annotation) if p is not type(None)]
    words = [p for p in found if typing.get_origin(p) is typing.Literal]
    texts = all(isinstance(v, str) for p in words for v in typing.get_args(p))
    return bool(found) and texts and all(p is str or p in words for p in found)


def at(model: type[BaseModel], path: Path) -> list[type[BaseModel]]:
    """The sections that may stand at `path`, list indices skipped; empty where there is none."""
    level = [model]
    for part in path:
        if isinstance(part, int):
            continue
        level = [s for m in level if part in keys(m) for s in sections(keys(m)[part].annotation)]
    return level


def field_at(model: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field at `path`, or None."""
    if not path:
        return None
    return next((keys(m)[str(path[-1])] for m in at(model, path[:-1]) if str(path[-1]) in keys(m)), None)


def places_of(model: type[BaseModel], key: str) -> list[Path]:
    """Every path of the schema that ends in `key`, shallow ones first."""
    return [path for path in everything(model) if path[-1] == key]


def everything(model: type[BaseModel]) -> list[Path]:
    """Every path of the schema, shallow ones first."""
    out: list[Path] = []
    level: list[tuple[Path, type[BaseModel]]] = [((), model)]
    while level and len(level[0][0]) < 8:
        out += [(*path, key) for path, section in level for key in keys(section)]
        level = [
            ((*path, key), inner)
            for path, section in level
            for key, info in keys(section).items()
            for inner in sections(info.annotation)
        ]
    return list(dict.fromkeys(out))


def suggest(model: type[BaseModel], path: Path) -> str:
    """What the unknown key at `path` was meant to be: the same elsewhere, a near name, or one of all here."""
    key, section = str(path[-1]), path[:-1]
    here = [k for m in at(model, section) for k in keys(m)]
    if not section and not any(sections(info.annotation) for info in keys(model).values()):
        # a flat model has no levels to tell apart
        close = nearest(key, here)
        return f"did you mean {close}?" if close else f"keys: {', '.join(here)}"
    where = f"in section {dotted(section)}" if section else "at the top level"
    if elsewhere := places_of(model, key):
        return f"{key} belongs to {_section(elsewhere[0])}: {dotted(elsewhere[0])}"
    if close := nearest(key, here):
        return f"did you mean {close} ({where})?"
    others = everything(model)
    if close := nearest(key, {str(p[-1]) for p in others}):
        found = next(p for p in others if p[-1] == close)
        return f"did you mean {dotted(found)} ({_section(found)})?"
    return f"keys {where}: {', '.join(here)}" if here else f"there are no keys {where}"


def _section(path: Path) -> str:
    return f"section {dotted(path[:-1])}" if len(path) > 1 else "the top level"
