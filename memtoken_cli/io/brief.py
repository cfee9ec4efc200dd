"""What a list needs of an artifact's header, as plain JSON: pydantic, which checks the rest, takes longer to
import than all else that a list takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtoken_cli.io.layout import head, layout_of

FORMAT = 1  # also Header.format's one value
KEY = "memtok"


@dataclass(frozen=True)
class Named:
    """The backbone that an artifact belongs to."""

    name: str


@dataclass(frozen=True)
class Brief:
    """The parts of `artifact.Header` of the same names."""

    method: str
    kind: str
    model: Named | None
    about: Mapping[str, Any]


def brief(path: str | Path) -> Brief | None:
    """The header of a file, or None where anything about it is not as expected: `artifact.read_header` then
    tells what. Raises DataError where the file is no safetensors file, or damaged."""
    start, size = head(path)
    if start is None:
        return None
    layout = layout_of(start, str(path), size)
    try:
        told = json.loads(layout.metadata[KEY])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    shapes = {tensor.name: list(tensor.shape) for tensor in layout.tensors}
    match told:
        case {"method": str(method), "kind": str(kind), "about": dict(about), "model": {"name": str(name)}}:
            found = Brief(method, kind, Named(name), about)
        case {"method": str(method), "kind": str(kind), "about": dict(about), "model": None}:
            found = Brief(method, kind, None, about)
        case _:
            return None
    return found if told.get("format") == FORMAT and told.get("shapes") == shapes else None
