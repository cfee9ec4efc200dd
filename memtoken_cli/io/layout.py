"""The layout of a safetensors file, read without torch: its JSON header, and where each tensor's bytes are.

What the header says of a memory is `artifact.py`'s.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import decode, parse_object

MAX_HEADER = 64 * 2**20
LENGTH_BYTES = 8  # a little-endian u64 before the JSON
ALTERED = "altered or damaged"
AGAIN = "make it again, or copy it again from where it came"


@dataclass(frozen=True)
class Stored:
    """A tensor as its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class Layout:
    """A file's parts."""

    metadata: dict[str, str]
    tensors: list[Stored]  # by name


@dataclass(frozen=True)
class _Entry:
    """One tensor of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def head(path: str | Path) -> tuple[bytes | None, int | None]:
    """A plain file's header and its whole size: what is large is not read. Otherwise nothing: read it all."""
    try:
        if str(path) == "-" or not Path(path).is_file():
            return None, None
        with open(path, "rb") as stream:
            head = stream.read(LENGTH_BYTES)
            size = int.from_bytes(head, "little")
            if size > MAX_HEADER:
                return None, None
            return head + stream.read(size), os.fstat(stream.fileno()).st_size
    except (OSError, ValueError):
        return None, None


def layout_of(data: bytes, where: str = "<bytes>", whole: int | None = None) -> Layout:
    """A safetensors file's parts, checked: nothing missing, nothing left over, no byte in two tensors.

    `whole`: the file's size where `data` is its header alone; tensors are then without their bytes.
    """
    length = len(data) if whole is None else whole
    if length < LENGTH_BYTES + 2:
        raise DataError(f"not an artifact: {length} bytes", hint=AGAIN, where=where)
    size = int.from_bytes(data[:LENGTH_BYTES], "little")
    if data[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{" or not 2 <= size <= MAX_HEADER:
        raise DataError("not a safetensors file", hint="an artifact ends in .safetensors", where=where)
    if LENGTH_BYTES + size > length:
        raise DataError(f"truncated: {length} bytes, its header alone has {size}", hint=AGAIN, where=where)
    text = data[LENGTH_BYTES : LENGTH_BYTES + size].rstrip(b" ")
    if not text.endswith(b"}"):
        raise DataError(f"{ALTERED}: its header does not end", hint=AGAIN, where=where)
    table = parse_object(decode(text, where), where)
    metadata = table.pop("__metadata__", {})
    body = memoryview(data)[LENGTH_BYTES + size :]
    tensors, end = [], 0
    for name, entry in sorted(_entries(table, where).items(), key=lambda e: e[1].data_offsets):
        start, stop = entry.data_offsets
        if start != end or stop < start:
            raise DataError(
                f"{ALTERED}: tensor {name} does not begin where the one before ends",
                hint=AGAIN,
                where=where,
            )
        tensors.append(Stored(name, entry.dtype, entry.shape, body[start:stop]))
        end = stop
    held = length - LENGTH_BYTES - size
    if end != held:
        what = "truncated" if end > held else ALTERED
        raise DataError(f"{what}: {held} bytes of tensors, its header says {end}", hint=AGAIN, where=where)
    if not isinstance(metadata, dict):
        raise DataError(f"{ALTERED}: its metadata are no object", hint=AGAIN, where=where)
    return Layout(metadata, sorted(tensors, key=lambda t: t.name))


def _entries(table: dict[str, Any], where: str) -> dict[str, _Entry]:
    found = {}
    for name, entry in table.items():
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop], **rest} if (
                not rest and _counts([*shape, start, stop])
            ):
                found[name] = _Entry(dtype, tuple(shape), (start, stop))
            case _:
                raise DataError(f"{ALTERED}: tensor {name} is described wrongly", hint=AGAIN, where=where)
    return found


def _counts(numbers: list[Any]) -> bool:
    """Whether all are whole numbers from 0 up."""
    return all(type(n) is int and n >= 0 for n in numbers)
