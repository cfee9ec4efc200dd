"""Memories in a row: the keys of a later one are turned on, as if its text had stood behind the earlier ones.

A rotary model's key of one position is its key of another, turned by a matrix that depends on the distance
only. The matrix of each layer is found by asking: the same tokens are read at two places while attention says
nothing, so that the layers see the same states. Where no turn explains the difference (learned positions),
nothing is moved. Text that none of the memories has read from another stays unread: see `memory.join`.

Shape suffixes: n tokens asked with, D head width, L layers, X tokens of all heads of a layer.
"""

from __future__ import annotations

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
        k_BNUD = site.k_BNUD
        wide = k_BNUD if k_BNUD.dtype == torch.float64 else k_BNUD.float()
        self.keys.append(wide.flatten(0, 2))
        return torch.zeros_like(site.q_BHTD).transpose(1, 2)


def turns(backbone: CausalLM, by: int) -> list[Tensor] | None:
    """float32 [D,D] a layer: k at position p, times it, is k at p + by. None where keys do not turn."""
    return _turns(backbone, (by,), 1, ASKED)[0]


@torch.no_grad()
def _turns(backbone: CausalLM, by: Sequence[int], places: int, asked: int) -> list[list[Tensor] | None]:
    """`turns` for several distances (float64 for a float64 model). The `asked` tokens stand at positions
    0..places-1 in turn before they are moved."""
    n = torch.arange(asked, device=backbone.device)
    ids_1n, place_1n = (n * 37 % backbone.dims.vocab)[None], (n % places)[None]
    found = []
    for position in (0, *by):
        reader = _Keys()
        with reading(backbone.model, reader):
            backbone.model(
                input_ids=ids_1n, position_ids=place_1n + position, use_cache=False, logits_to_keep=1
            )
        found.append(reader.keys)
    return [_explained(found[0], there) for there in found[1:]]


def _explained(here: Sequence[Tensor], there: Sequence[Tensor]) -> list[Tensor] | None:
    out = []
    for here_XD, there_XD in zip(here, there, strict=True):
        # orthogonal Procrustes
        left, _, right = torch.linalg.svd(here_XD.T @ there_XD)
        turn_DD = left @ right
        if (here_XD @ turn_DD - there_XD).norm() > TOLERANCE * there_XD.norm():
            return None
        out.append(turn_DD)
    return out


class Turning:
    """The turns of all distances up to `farthest`, made of those of the powers of two.

    They are found once, here: weights that are trained later do not change them. The keys are asked for at
    positions 0..places-1, so that no direction in which a head's keys lie at some place of a text is unseen.
    """

    def __init__(self, powers: Sequence[Tensor]) -> None:
        nowhere_LDD = torch.eye(powers[0].shape[-1]).to(powers[0]).expand_as(powers[0])
        self.powers, self._made = powers, {0: nowhere_LDD}

    @classmethod
    def of(cls, backbone: CausalLM, farthest: int, places: int) -> Turning | None:
        """None where the model's keys do not turn."""
        by = [2**i for i in range(farthest.bit_length())]
        asked = max(ASKED // 4, 4 * backbone.dims.head_dim // backbone.dims.kv_heads)
        found = [t for t in _turns(backbone, by, places, asked) if t is not None]
        return cls([torch.stack(turn) for turn in found]) if len(found) == len(by) else None

    def by(self, distance: int) -> Tensor:
        """[L,D,D]: see `turns`."""
        if distance not in self._made:
            rest = distance & (distance - 1)
            lowest = self.powers[(distance ^ rest).bit_length() - 1]
            self._made[distance] = self.by(rest) @ lowest
        return self._made[distance]


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
