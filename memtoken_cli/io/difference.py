"""What changed between two JSON-like values, key by key, as lines for a user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

ABSENT = "(absent)"


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines such as "train.lr: 0.001 -> 0.002", in the order of the keys, old ones first."""
    before, after = _leaves(old, ""), _leaves(new, "")
    return [
        f"{key}: {before.get(key, ABSENT)} -> {after.get(key, ABSENT)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def _leaves(value: Any, path: str) -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        out: dict[str, str] = {}
        for key, inner in value.items():
            out |= _leaves(inner, f"{path}.{key}" if path else str(key))
        return out
    return {path: json.dumps(value, ensure_ascii=False)}
