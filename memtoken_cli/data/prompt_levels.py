"""Levels of detail: which coarse label stands over which finer ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memtoken_cli.data.prompt_types import COARSE_LEVEL, DEFAULT_LEVEL, Hierarchy
from memtoken_cli.io.errors import UsageError


def parse_hierarchy(value: str | Mapping[str, Any]) -> Hierarchy:
    """`{"gait": ["walk", "run"]}` (level "coarse"), or `{LEVEL: {...}, ...}`. Raises UsageError."""
    hint = """hierarchy='{"gait": ["walk", "run"]}'"""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UsageError("hierarchy is no JSON", hint=hint) from None
    if not isinstance(value, Mapping) or not value:
        raise UsageError("hierarchy is no JSON object", hint=hint)
    nested = all(isinstance(part, Mapping) for part in value.values())
    levels = value if nested else {COARSE_LEVEL: value}
    out: dict[str, dict[str, tuple[str, ...]]] = {}
    for level, coarse in levels.items():
        out[level] = {}
        seen: dict[str, str] = {}
        if level == DEFAULT_LEVEL:
            raise UsageError(f"hierarchy: level {level!r} is the finest one", hint=hint)
        for name, fine in coarse.items():
            if (
                not isinstance(fine, list)
                or not fine
                or not all(isinstance(f, str) and f.strip() for f in fine)
            ):
                raise UsageError(f"hierarchy: {name!r} needs a list of labels", hint=hint)
            for label in fine:
                if label in seen:
                    raise UsageError(
                        f"hierarchy: {label!r} stands under {seen[label]!r} and {name!r}", hint=hint
                    )
                seen[label] = name
            out[level][name] = tuple(fine)
    return out
