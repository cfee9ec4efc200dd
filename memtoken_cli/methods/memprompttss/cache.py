"""Embeddings of series that were encoded before, by content: always safe to delete, never needed.

A file's name is the digest of all that its content depends on; a file that is damaged counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from memtoken_cli.data.series import Series
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss.model import Encoded, Model

FEWEST = 16  # tokens of a series whose length of a token was asked for
LIMIT = 1 << 30  # bytes
LARGEST = 1 << 28  # bytes of one series' tokens that are kept: writing them takes as much memory again
HAND, EMBED, GAP = "hand_NF", "embed_NE", "gap_N"
SUFFIX = ".tokens.safetensors"


@dataclass
class Cache:
    """folder: None caches nothing. encoded: how many series were really encoded."""

    folder: Path | None
    encoded: int = 0

    def get(self, model: Model, series: Series, stride: int | None = None) -> Encoded:
        """The series' tokens, from the cache or from the model; the same either way. stride: rows a token, if
        not as many as the model says. Raises UsageError where that leaves hardly a token."""
        stride = _allowed(stride, series) or model.stride_for(len(series))
        path = None if self.folder is None else self.folder / (_key(model, series, stride) + SUFFIX)
        if path is not None and (found := _load(path, series, stride)) is not None:
            return found
        self.encoded += 1
        made = model.encode(series.values_TC, series.gap_T, series.channels, stride)
        if path is not None:
            _save(path, made)
        return made


def _allowed(stride: int | None, series: Series) -> int | None:
    if stride is not None and stride > 1 and len(series) < FEWEST * stride:
        raise UsageError(
            f"stride={stride} leaves fewer than {FEWEST} tokens of {len(series)} rows",
            hint=f"stride={max(1, len(series) // FEWEST)}, or less",
        )
    return stride


def folder_of(key: str) -> Path | None:
    """What the key `cache` means. Raises UsageError for a path that is a file."""
    if key == "off":
        return None
    if key != "auto":
        if Path(key).exists() and not Path(key).is_dir():
            raise UsageError(f"cache={key} is a file, not a directory", hint="cache=off, or a directory")
        return Path(key)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "memtok" / "series"


def _key(model: Model, series: Series, stride: int) -> str:
    """Over the rows in hand: two ways of resampling give one file two of these."""
    kind = model.device.partition(":")[0]  # other units round otherwise
    parts = [model.digest, model.features, list(series.values_TC.shape), stride, list(series.channels), kind]
    total = hashlib.sha256(json.dumps(parts).encode())
    total.update(np.ascontiguousarray(series.values_TC).data)
    return total.hexdigest()[:40]


def _load(path: Path, series: Series, stride: int) -> Encoded | None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        if data[:32] != hashlib.sha256(data[32:]).digest():
            return None
        tensors = load(data[32:])
        os.utime(path)
        return Encoded(
            len(series), stride, tensors.get(HAND), tensors[EMBED], series.channels, tensors[GAP].bool()
        )
    except (OSError, KeyError, SafetensorError):
        return None


def _save(path: Path, made: Encoded) -> None:
    """Best effort: a full or read-only disk costs the cache, not the result."""
    from safetensors.torch import save

    tensors = {EMBED: made.embed_NE.contiguous(), GAP: made.gap_N.to(torch.uint8)}
    if made.hand_NF is not None:
        tensors[HAND] = made.hand_NF.contiguous()
    if sum(x.nbytes for x in tensors.values()) > LARGEST:
        return
    body = save(tensors)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, hashlib.sha256(body).digest() + body)
        _sweep(path.parent)


def _sweep(folder: Path) -> None:
    """Remove what was not used for longest, until the rest is under the limit."""
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > LIMIT:
            with suppress(OSError):
                path.unlink()
