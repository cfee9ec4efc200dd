"""What a session consists of besides running groups: what a row has read, all of it in a file, its draws.

Shape suffixes: T tokens, E model width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.engine import seeds
from memtoken_cli.methods.rmt.policy import State


@dataclass(frozen=True)
class Read:
    """What a row has read.

    tokens: all of them; segments: those in its memory. digest: of the segments' ids, h <- sha256(h || ids as
    little-endian int32) from 32 zero bytes. newest_T: int64, its last ids, as many as the session keeps.
    streamed: bytes of the input that `memtok generate -` has read into it; what Python feeds is none."""

    tokens: int = 0
    segments: int = 0
    digest: bytes = bytes(32)
    newest_T: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    streamed: int = 0

    def more(self, ids_T: Tensor, tokens: int, history: int) -> Read:
        """After so many tokens, the last of which are ids_T."""
        newest_T = torch.cat([self.newest_T, ids_T])[-history:].clone()
        return replace(self, tokens=self.tokens + tokens, newest_T=newest_T)

    def closed(self, ids_S: NDArray[Any]) -> Read:
        """After a segment of these ids."""
        digest = hashlib.sha256(self.digest + ids_S.astype("<i4").tobytes()).digest()
        return replace(self, segments=self.segments + 1, digest=digest)


@dataclass(frozen=True)
class Snapshot:
    """All of a session, as a file holds it: nothing in it can be computed from the rest.

    state: M_t of every row, rows first. pending: each row's ids of its open segment. last_BE: the hidden
    state that names the next token; zero where pending ids do. generator: its state, uint8."""

    state: State
    pending: tuple[tuple[int, ...], ...]
    last_BE: Tensor
    read: tuple[Read, ...]
    generator: Tensor


class Draws:
    """A generator of random numbers that can be copied, stored and lent to what draws from the process-wide
    one. On equal devices an equal seed gives the numbers that `torch.manual_seed` would."""

    def __init__(self, device: torch.device | str, seed: int = 0) -> None:
        self.generator = torch.Generator(device)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seeds.derive(seed, "session"))

    def state(self) -> Tensor:
        """uint8; a copy."""
        return self.generator.get_state()

    def take(self, state: Tensor) -> None:
        """Go on from a stored state; one of another kind of device becomes a seed of its own."""
        if state.shape == self.state().shape:
            self.generator.set_state(state)
            return
        digest = hashlib.sha256(state.numpy().tobytes()).digest()
        self.generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def copy(self) -> Draws:
        made = Draws(self.generator.device)
        made.generator.set_state(self.state())
        return made

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, the process-wide generator goes on from here; afterwards it is as it was."""
        device = self.generator.device
        cuda = device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if cuda else []):
            if cuda:
                torch.cuda.set_rng_state(self.state(), device)
            else:
                torch.set_rng_state(self.state())
            yield
            self.generator.set_state(torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state())
