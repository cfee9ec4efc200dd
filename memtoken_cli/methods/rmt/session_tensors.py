"""A session's snapshot as named tensors, and back. In files the axis of layers is first, then that of rows.

    state.*                     float32; what counts, int32
    last_BD                     float32: the hidden state behind a whole segment, which names the next token
    pending_ids_BT              int32 [B,n], n < S: the open segment, which is read again on loading
    history_ids_BT              int32: the newest ids, for penalties of repetition
    tail_text, generator        bytes

Shape suffixes: B rows, L layers, M memory slots, D model width, K associative key size, C cached positions, N
heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.rmt.config import CACHES, Config
from memtoken_cli.methods.rmt.policy import State
from memtoken_cli.methods.rmt.session_state import Snapshot

STATE = "state."
LAST, PENDING, HISTORY, TAIL, GENERATOR = (
    "last_BD",
    "pending_ids_BT",
    "history_ids_BT",
    "tail_text",
    "generator",
)
OWN = (LAST, PENDING, HISTORY, TAIL, GENERATOR)
NONE = -1  # behind the ids of a row that has fewer than others
MEMORY = {
    "rmt": ("tokens_LBMD",),
    "static": ("tokens_LBMD",),
    "prmt": ("tokens_LBMD",),
    "armt": ("assoc_LBKD", "z_LBK", "started_B"),
    "xl": ("inputs_LBCD", "filled_B"),
}
KEYS_VALUES, TEXT = ("keys_LBNCD", "values_LBNCD", "filled_B"), ("ids_BC", "filled_B")
GROWS = "C"  # the one axis that a state may have more of than it begins with


@dataclass(frozen=True)
class Parts:
    """What the tensors hold beside counters: a `Snapshot` but for `read`."""

    state: State
    last_BD: Tensor
    pending: list[list[int]]
    history: list[list[int]]
    generator: Tensor
    tail: str


def mine(name: str) -> bool:
    """Whether a tensor of a session's file is of the session, not of what was trained."""
    return name in OWN or name.startswith(STATE)


def tensors_of(snapshot: Snapshot, config: Config, tail: str) -> dict[str, Tensor]:
    """The tensors of a file. tail: text that is not cut into pieces yet."""
    found = {
        LAST: snapshot.last_BE.float(),
        PENDING: _padded(snapshot.pending),
        HISTORY: _padded([read.newest_T.tolist() for read in snapshot.read]),
        TAIL: torch.tensor(list(tail.encode()), dtype=torch.uint8),
        GENERATOR: snapshot.generator,
    }
    for name, x in zip(_names(config, len(snapshot.state)), snapshot.state, strict=True):
        axes = _axes(name)
        if axes.startswith("L"):
            x = x[None] if x.dim() < len(axes) else x.transpose(0, 1)
        found[STATE + name] = x.to(torch.int32 if x.dtype == torch.int64 else torch.float32)
    return found


def parts_of(tensors: Mapping[str, Tensor], config: Config, start: State, width: int, name: str) -> Parts:
    """The parts of a file's tensors. start: the policy's state of as many rows before any text. width: D.
    name: how errors call the file.

    Raises DataError where a tensor is not there, is one too many, or does not fit."""
    names = _names(config, len(start))
    wanted = sorted([*OWN, *(STATE + one for one in names)])
    if sorted(tensors) != wanted:
        raise DataError(f"{name} is no session: expected tensors {wanted}, found {sorted(tensors)}")
    state = tuple(
        _entered(tensors[STATE + one], one, first, name) for one, first in zip(names, start, strict=True)
    )
    for one, dtype, dims in (
        (LAST, torch.float32, 2),
        (PENDING, torch.int32, 2),
        (HISTORY, torch.int32, 2),
        (TAIL, torch.uint8, 1),
        (GENERATOR, torch.uint8, 1),
    ):
        if tensors[one].dtype != dtype or tensors[one].dim() != dims:
            raise DataError(f"{name} is no session: {one} is {tensors[one].dtype} {list(tensors[one].shape)}")
    if tensors[LAST].shape[1] != width:
        raise DataError(f"{name} is no session: {LAST} has {tensors[LAST].shape[1]} columns, not {width}")
    try:
        tail = bytes(tensors[TAIL].tolist()).decode()
    except UnicodeDecodeError:
        raise DataError(f"{name} is no session: its text is not UTF-8") from None
    pending, history = _unpadded(tensors[PENDING]), _unpadded(tensors[HISTORY])
    return Parts(state, tensors[LAST], pending, history, tensors[GENERATOR], tail)


def _axes(name: str) -> str:
    return name.rpartition("_")[2]


def _names(config: Config, tensors: int) -> tuple[str, ...]:
    """How a policy's state is called in the file."""
    if not tensors:
        return ()
    if config.policy in CACHES:
        return KEYS_VALUES if tensors == len(KEYS_VALUES) else TEXT
    return MEMORY[config.policy]


def _entered(x: Tensor, name: str, start: Tensor, file: str) -> Tensor:
    """A state's tensor as the policy has it, rows first."""
    axes = _axes(name)
    if axes.startswith("L") and x.dim() == len(axes):
        layered = start.dim() == len(axes)
        x = x.transpose(0, 1) if layered else x[0]
        axes = f"{axes[1]}L{axes[2:]}" if layered else axes[1:]
    fits = x.dim() == start.dim() and all(
        a == b or axis == GROWS for axis, a, b in zip(axes, x.shape, start.shape, strict=True)
    )
    if not fits:
        what = f"{STATE}{name} of {list(x.shape)} does not fit the policy's {list(start.shape)}"
        raise DataError(f"{file} is no session: {what}")
    return x.to(start.device, start.dtype).contiguous()


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*ids, *[NONE] * (width - len(ids))] for ids in rows], dtype=torch.int32).view(
        len(rows), width
    )


def _unpadded(ids_BT: Tensor) -> list[list[int]]:
    return [[i for i in row if i != NONE] for row in ids_BT.tolist()]
