"""Memories in a row: the keys of a later one are turned on, as if its text had stood behind the earlier ones.

A rotary model's key of one position is its key of another, turned by a matrix that depends on the distance
only. The matrix of each layer is found by asking: the same tokens are read at two places while attention says
nothing, so that the layers see the same states. Where no turn explains the difference (learned positions),
nothing is moved. Text that none of the memories has read from another stays unread: see `memory.join`.

Shape suffixes: n tokens asked with, D head width, X tokens of all heads of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .attend import Packing, Site
from .backbone import CausalLM
from .memory import LayerKV, Layers, join
from .reading import reading

ASKED = 512
TOLERANCE = 0.02  # of the keys' length; bfloat16 leaves 0.0025
ROOM = 256  # positions that must be left for what reads the row


@dataclass
class _Keys:
    """A reader that notes keys and attends to nothing."""

    packing: Packing | None = None
    position_BT: Tensor | None = None
    keys: list[Tensor] = field(default_factory=list)

    def __call__(self, site: Site) -> Tensor:
        self.keys.append(site.k_BNUD.float().flatten(0, 2))
        return torch.zeros_like(site.q_BHTD).transpose(1, 2)


@torch.no_grad()
def turns(backbone: CausalLM, by: int) -> list[Tensor] | None:
    """float32 [D,D] a layer: k at position p, times it, is k at p + by. None where keys do not turn."""
    ids_1n = (torch.arange(ASKED, device=backbone.device) * 37 % backbone.dims.vocab)[None]
    found = []
    for position in (0, by):
        reader = _Keys()
        with reading(backbone.model, reader):
            backbone.model(input_ids=ids_1n, position_ids=torch.full_like(ids_1n, position), use_cache=False)
        found.append(reader.keys)
    out = []
    for here, there in zip(*found, strict=True):
        # orthogonal Procrustes
        left, _, right = torch.linalg.svd(here.T @ there)
        turn_DD = left @ right
        if (here @ turn_DD - there).norm() > TOLERANCE * there.norm():
            return None
        out.append(turn_DD)
    return out


def moved(backbone: CausalLM, memory: Layers, by: int) -> Layers | None:
    """The memory as if its text had begun at position `by`: queries that go on behind it read exactly what
    they read before. None where the model's keys do not turn."""
    if by == 0:
        return memory
    found = turns(backbone, by)
    if found is None:
        return None
    return Layers(
        tuple(_turned(kv, turn_DD, by) for kv, turn_DD in zip(memory.layers, found, strict=True)),
        memory.next_position + by,
    )


def in_a_row(backbone: CausalLM, memories: Sequence[Layers]) -> Layers:
    """`join`, each memory moved behind the one before. Where the row would leave the context, or keys do not
    turn, all of them begin at position 0 as `join` has them. Raises DataError as `join` does.

    A later memory gives up the token of its own position 0: it is the sink that a prompt needs once, and
    a second one draws attention away from all that was kept."""
    joined = join(memories)
    ends = [sum(m.next_position for m in memories[: i + 1]) for i in range(len(memories))]
    if ends[-1] > backbone.dims.context - ROOM:
        return joined
    placed = [memories[0]]
    for memory, by in zip(memories[1:], ends, strict=False):
        there = moved(backbone, memory, by)
        if there is None:
            return joined
        placed.append(_sinkless(there, by))
    return join(placed)


def _turned(kv: LayerKV, turn_DD: Tensor, by: int) -> LayerKV:
    k_XD = (kv.k_XD.float() @ turn_DD.to(kv.k_XD.device)).to(kv.k_XD.dtype)
    return replace(kv, k_XD=k_XD, pos_X=None if kv.pos_X is None else kv.pos_X + by)


def _sinkless(memory: Layers, start: int) -> Layers:
    """Without the first token of each head, where it stands at `start`: a sliding window may have lost it."""
    layers = []
    for kv in memory.layers:
        kept = []
        for k_MD, _, _, pos_M in kv.heads():
            first = len(k_MD) > 0 and (pos_M is None or int(pos_M[0]) == start)
            kept.append(torch.arange(int(first), len(k_MD), device=k_MD.device))
        layers.append(kv.take(kept))
    return replace(memory, layers=tuple(layers))
