"""One spelling of a resolved recipe: its digest, the lock file's text, and the difference between two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from memtoken_cli.io.difference import diff
from memtoken_cli.io.errors import DataError, Problems, UsageError
from memtoken_cli.recipe import strict_yaml
from memtoken_cli.recipe.schema import Recipe

__all__ = ["LOCK", "canonical", "diff", "digest", "dump", "lock_text", "part", "read_lock"]

LOCK = "recipe.lock.yaml"


def canonical(resolved: Mapping[str, Any]) -> bytes:
    """Sorted, compact JSON."""
    return json.dumps(resolved, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def digest(recipe: Recipe) -> str:
    """The sha256 (hex) of all that a recipe resolves to, defaults included; not of its file's spelling."""
    return hashlib.sha256(canonical(recipe.resolved())).hexdigest()


def lock_text(recipe: Recipe) -> str:
    """The text of recipe.lock.yaml: every resolved value, in YAML that the loader reads back the same."""
    return dump(recipe.resolved())


def part(recipe: Recipe, sections: Sequence[str], data: Sequence[str]) -> str:
    """These sections, and these keys of `data:`, as YAML: what a run that reads no others belongs to."""
    resolved = recipe.resolved()
    said = {key: value for key, value in resolved.items() if key in sections}
    return dump(said | {"data": {key: value for key, value in resolved["data"].items() if key in data}})


def read_lock(path: str | Path) -> dict[str, Any]:
    """The resolved recipe of a lock file. Raises DataError where it is missing or damaged."""
    problems = Problems()
    try:
        value = strict_yaml.parse(Path(path).read_bytes(), str(path), problems).value
        problems.raise_any()
    except (OSError, UsageError) as error:
        hint = "start over with --fresh, or give another --out"
        raise DataError(f"cannot read the run's recipe: {error}", hint=hint, where=str(path)) from error
    if not isinstance(value, dict):
        raise DataError("the run's recipe is not a mapping", where=str(path))
    return value


def dump(value: Any) -> str:
    """YAML without comments, aliases or tags; a word that YAML 1.2 would misread is quoted."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    try:
        plain = strict_yaml.plain(data) == data
    except ValueError:
        plain = False
    # double quotes escape what a plain or single-quoted scalar would fold: U+0085, U+2028, U+2029
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", data, style=None if plain and data.isprintable() else '"'
    )


def _number(dumper: yaml.SafeDumper, data: float) -> yaml.ScalarNode:
    text = repr(data).replace("inf", ".inf")
    if "." not in text:
        # YAML 1.1, which PyYAML writes by, would put a tag on 1e-07
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _number)
