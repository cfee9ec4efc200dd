"""Random numbers by name: every use has its own stream of one seed, so that adding a use changes no other.

Streams are for data and initialisation. The process-wide generators (dropout) are seeded from a stream too,
and can be captured and put back.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Name = str | int


def derive(seed: int, *names: Name) -> int:
    """A seed of 63 bits for the stream `names` of `seed`; the same on every machine."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: Name, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator at the start of the stream `names`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def seed_all(seed: int) -> None:
    """Seed the process-wide generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> dict[str, Tensor]:
    """The states of the process-wide generators, as integer tensors that a checkpoint can hold."""
    version, words, gauss = random.getstate()
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    states = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor(
            [*numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"]], dtype=torch.int64
        ),
        "numpy_gauss": torch.tensor([numpy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore(states: Mapping[str, Tensor]) -> None:
    """Put captured states back; devices that are not here are left out."""
    version, *words = states["python"].tolist()
    gauss = states["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    *keys, position, has_gauss = states["numpy"].tolist()
    legacy = ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, float(states["numpy_gauss"]))
    np.random.set_state(legacy)
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda{i}"], i)
