"""Which samples of a class a bank keeps: a choice that depends on no order, so that merges and refits agree.

Shape suffixes: V samples, D width of a feature.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def kept(val: tuple[Tensor, ...], class_V: Tensor, keep: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The `keep` samples of each class whose digests are smallest, sorted by class and digest."""
    owners, chosen, seen = class_V.tolist(), [], dict[int, int]()
    keys = _digests(val) if keep else []
    for v in sorted(range(len(keys)), key=lambda v: (owners[v], keys[v])):
        seen[owners[v]] = seen.get(owners[v], 0) + 1
        if seen[owners[v]] <= keep:
            chosen.append(v)
    index = torch.tensor(chosen, dtype=torch.long)
    return tuple(x_VD[index].contiguous() for x_VD in val), class_V[index]


def _digests(val: tuple[Tensor, ...]) -> list[bytes]:
    """Of every sample, over all its features."""
    together = torch.cat([x_VD.contiguous() for x_VD in val], 1).numpy()
    return [hashlib.sha256(row.tobytes()).digest() for row in together]
