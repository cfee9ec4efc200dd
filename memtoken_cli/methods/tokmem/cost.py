"""What a piece of work costs: seconds, and the most memory it held."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from memtoken_cli.engine import resident


@dataclass
class Cost:
    """seconds of wall clock; peak_bytes: resident on the CPU (since the start of the process where the
    system cannot count anew), allocated on a GPU."""

    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def metered(device: torch.device) -> Iterator[Cost]:
    """The cost of what runs inside the block, filled in at its end."""
    cost = Cost()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        resident.forget()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        if gpu:
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - start
        cost.peak_bytes = torch.cuda.max_memory_allocated(device) if gpu else resident.most()
