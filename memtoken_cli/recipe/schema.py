"""A recipe from its file: strict YAML, overrides, then one schema composed from the method's own sections.

`load` is the front door. Every problem of a recipe is raised at once, each with its file:line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, ValidationError, create_model

from memtoken_cli import methods
from memtoken_cli.io.errors import MemtokError, Problems, UsageError, nearest
from memtoken_cli.recipe import strict_yaml
from memtoken_cli.recipe.explain import explain
from memtoken_cli.recipe.overrides import apply
from memtoken_cli.recipe.sections import DataSection, NamedModel, NewModel, Section, TrainSection


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `config`, `data` and `train` are the method's Config, DataConfig and TrainConfig;
    `own`: its further sections by name, the config module's SECTIONS."""

    method: str
    seed: int
    model: NamedModel | NewModel
    data: Any
    config: Any
    train: Any
    expect: dict[str, float] = field(default_factory=dict)
    source: str = "<recipe>"
    own: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain JSON: what the lock file and the digest hold."""
        return {
            "method": self.method,
            "seed": self.seed,
            "model": _plain(self.model),
            "data": _plain(self.data),
            self.method: _plain(self.config),
            **{name: _plain(section) for name, section in self.own.items()},
            "train": _plain(self.train),
            "expect": dict(self.expect),
        }


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check the recipe file, with `key=value` overrides on top.

    Raises UsageError with every problem: syntax, unknown keys (with the nearest one), wrong values.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"cannot read recipe {path}: {reason}", hint="memtok train RECIPE.yaml") from None
    return parse(data, str(path), overrides)


def parse(data: bytes | str, source: str = "<recipe>", overrides: Sequence[str] = ()) -> Recipe:
    """`load` of a recipe that is already at hand."""
    problems = Problems()
    document = strict_yaml.parse(data, source, problems)
    if not isinstance(document.value, dict):
        problems.add(
            UsageError("a recipe is a mapping of keys", hint="method: NAME", where=document.place(()))
        )
        problems.raise_any()
    name = _method(document, overrides, problems)
    if name is None:
        problems.raise_any()
        raise AssertionError("unreachable")
    kind = _model_kind(document, overrides)
    schema = compose(name, methods.config_module(name), kind)
    apply(document, overrides, schema, problems)
    recipe = _validate(document, schema, name, problems)
    problems.found.sort(key=_line)
    problems.raise_any()
    return cast(Recipe, recipe)


def compose(name: str, module: ModuleType, model: type[Section] = NamedModel) -> type[BaseModel]:
    """The pydantic model of a whole recipe of the method `name`, whose config module is `module`."""
    own = vars(module)
    config: Any = own["Config"]
    data: Any = own.get("DataConfig", DataSection)
    train: Any = own.get("TrainConfig", TrainSection)
    fields: dict[str, Any] = {
        "method": (Literal[name], name),
        "seed": (int, Field(default=0, ge=0, lt=2**63)),
        "model": (model, _default(model)),
        "data": (data, _default(data)),
        "train": (train, _default(train)),
        "expect": (dict[str, float], Field(default_factory=dict)),
        name: (config, _default(config)),
        **{key: (section, _default(section)) for key, section in own.get("SECTIONS", {}).items()},
    }
    return cast(type[BaseModel], create_model("Recipe", __base__=Section, **fields))


def _line(problem: MemtokError) -> int:
    """A problem's line in the file; arguments, which have none, come last."""
    digits = (problem.where or "").rpartition(":")[2]
    return int(digits) if digits.isdigit() else sys.maxsize


def _default(section: Any) -> Any:
    """A section may be left out where all its keys may."""
    required = any(f.is_required() for f in section.model_fields.values())
    return ... if required else Field(default_factory=section)


def _method(document: strict_yaml.Document, overrides: Sequence[str], problems: Problems) -> str | None:
    chosen = [o.partition("=")[2] for o in overrides if o.partition("=")[0].strip() == "method"]
    name = chosen[-1] if chosen else document.value.get("method")
    known = methods.discover()
    if name is None:
        close = nearest("method", document.value)
        hint = (
            f"did you mean method where {close} stands?"
            if close
            else f"method: {' | '.join(known) or 'NAME'}"
        )
        problems.add(UsageError("no method", hint=hint, where=document.place(())))
    elif not isinstance(name, str) or name not in known:
        near = nearest(str(name), known)
        hint = f"did you mean {near}?" if near else f"methods: {', '.join(known)}"
        problems.add(UsageError(f"unknown method {name!r}", hint=hint, where=document.place(("method",))))
    else:
        return name
    return None


def _model_kind(document: strict_yaml.Document, overrides: Sequence[str]) -> type[Section]:
    section = document.value.get("model")
    new = isinstance(section, dict) and "new" in section
    return NewModel if new or any(o.startswith("model.new=") for o in overrides) else NamedModel


def _validate(
    document: strict_yaml.Document, schema: type[BaseModel], name: str, problems: Problems
) -> Recipe | None:
    try:
        checked = schema.model_validate_json(json.dumps(document.value), strict=True, extra="forbid")
    except ValidationError as error:
        for problem in explain(error, document, schema):
            problems.add(problem)
        return None
    values = dict(checked)
    return Recipe(
        method=name,
        seed=values["seed"],
        model=values["model"],
        data=values["data"],
        config=values[name],
        train=values["train"],
        expect=values["expect"],
        source=document.source,
        own={key: values[key] for key in vars(methods.config_module(name)).get("SECTIONS", {})},
    )


def _plain(section: BaseModel) -> Any:
    return section.model_dump(mode="json")
