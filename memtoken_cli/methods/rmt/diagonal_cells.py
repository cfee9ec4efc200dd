"""What `prmt` and `armt` do before and behind a layer, for several layers at once.

The arithmetic is that of `layered.py` and `associative.py`; the layers of a step are the first axis.

Shape suffixes: B rows, F segments of all rows, S text tokens of a segment, T all columns, L layers, G layers
of a step, M memory slots, E model width, K associative key size.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from memtoken_cli.methods.rmt.associative import Associative, delta, gate, phi, recall
from memtoken_cli.methods.rmt.diagonal_group import Stacked, Unlike
from memtoken_cli.methods.rmt.layered import Layerwise
from memtoken_cli.methods.rmt.network import wide
from memtoken_cli.methods.rmt.policy import Policy, State


class At(NamedTuple):
    """The layers of a step: their weights and those of their memories, [G,...]."""

    layers: slice
    weights: dict[str, Tensor]
    own: dict[str, Tensor]


class Cells(Protocol):
    """What a policy does around layers. Own: its state as tensors [L or G,B,...]."""

    text: slice

    @property
    def stacked(self) -> Stacked | None:
        """The weights of the memories."""
        ...

    def vectors(self, x_FSE: Tensor) -> Tensor:
        """[F,T,E]: the columns of whole segments."""
        ...

    def begin(self, state: State) -> State: ...
    def end(self, own: State) -> State: ...

    def enter(self, at: At, h_GBTE: Tensor, own: State, fresh: bool) -> Tensor:
        """What the layers `at` read. fresh: the last of them is in its first segment."""
        ...

    def leave(self, at: At, h_GBTE: Tensor, own: State, fresh: bool) -> State: ...


class Slots:
    """Of prmt. Own: M [L,B,M,E]."""

    def __init__(self, policy: Layerwise) -> None:
        self.policy, self.m, self.stacked = policy, policy.slots, None
        self.text = slice(policy.slots, policy.slots + policy.size)

    def vectors(self, x_FSE: Tensor) -> Tensor:
        nothing = x_FSE.new_zeros(len(x_FSE), self.m, x_FSE.shape[2])
        return torch.cat([nothing, x_FSE, nothing], 1)

    def begin(self, state: State) -> State:
        return (state[0].transpose(0, 1).contiguous(),)

    def end(self, own: State) -> State:
        return (own[0].transpose(0, 1),)

    def enter(self, at: At, h_GBTE: Tensor, own: State, fresh: bool) -> Tensor:
        memory = own[0].to(h_GBTE.dtype)
        return torch.cat([memory, h_GBTE[:, :, self.text], memory], 2)

    def leave(self, at: At, h_GBTE: Tensor, own: State, fresh: bool) -> State:
        made_GBME = h_GBTE[:, :, -self.m :]
        return (self.policy.made(at.layers, made_GBME.flatten(1, 2)).view(made_GBME.shape),)


class Associations:
    """Of armt. Own: A [L,B,K,E], z [L,B,K], started [L,B]."""

    def __init__(self, policy: Associative) -> None:
        self.policy, self.m = policy, policy.slots
        self.text = slice(0, policy.size)
        self.stacked = Stacked(policy.memories)
        self.unit, self.gate_z = policy.config.normalise, policy.config.gate_z

    def vectors(self, x_FSE: Tensor) -> Tensor:
        tokens = self.policy.init_ME.to(x_FSE.dtype).expand(len(x_FSE), -1, -1)
        return torch.cat([x_FSE, tokens], 1)

    def begin(self, state: State) -> State:
        a, z, started_B = state
        return (
            a.transpose(0, 1).contiguous(),
            z.transpose(0, 1).contiguous(),
            started_B.expand(a.shape[1], -1),
        )

    def end(self, own: State) -> State:
        return own[0].transpose(0, 1), own[1].transpose(0, 1), own[2][0]

    def enter(self, at: At, h_GBTE: Tensor, own: State, fresh: bool) -> Tensor:
        a_GBKE, z_GBK, started_GB = own
        recalled = recall(phi(_each(wide(h_GBTE), at.own["q"]), self.unit), a_GBKE, z_GBK)
        if fresh:
            recalled = recalled.masked_fill(~started_GB[..., None, None], 0.0)
        return h_GBTE + recalled.to(h_GBTE.dtype)

    def leave(self, at: At, h_GBTE: Tensor, own: State, fresh: bool) -> State:
        a_GBKE, z_GBK, started_GB = own
        w_GBME = wide(h_GBTE[:, :, -self.m :])
        k_GBMK = phi(_each(w_GBME, at.own["k"]), self.unit)
        v_GBME = _each(w_GBME, at.own["v"])
        b_GBM1 = gate(w_GBME, at.own["b"][:, None], at.own["bias"][:, None, None])
        first_GB = ~started_GB if fresh else None
        a_GBKE, z_GBK = delta(k_GBMK, v_GBME, b_GBM1, a_GBKE, z_GBK, first_GB, self.gate_z)
        return a_GBKE, z_GBK, torch.ones_like(started_GB)


def _each(x_GBTE: Tensor, weight_GFE: Tensor) -> Tensor:
    """[G,B,T,F]: every group of rows by its own matrix."""
    return torch.bmm(x_GBTE.flatten(1, 2), weight_GFE.mT).view(*x_GBTE.shape[:3], -1)


def cells_of(policy: Policy) -> Cells:
    """Raises Unlike where layers do not have memories of their own."""
    if isinstance(policy, Layerwise):
        return Slots(policy)
    if isinstance(policy, Associative):
        return Associations(policy)
    raise Unlike("its memory comes from the top layer")
