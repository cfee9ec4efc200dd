"""`prmt`: memory of its own for every layer, as columns that it finds in place of what the one below made.

Layer l reads [M^l_t ; h^{l-1} ; M^l_t], and its outputs at the write columns, at length one per channel,
become M^l_{t+1}: RMT's equation inside every layer (arXiv 2506.05229 leaves it loose).

Shape suffixes: B rows, L layers, M memory slots, W text columns of a segment, U columns fed at once, T all
columns, E model width, K wanted columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import DynamicCache

from memtoken_cli.engine import seeds
from memtoken_cli.engine.between import between
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.network import Network, wide
from memtoken_cli.methods.rmt.piecewise import feed, mask_of
from memtoken_cli.methods.rmt.places import laid, places_for
from memtoken_cli.methods.rmt.policy import Open, State, chosen

EPSILON = 1e-6


class Layerwise:
    """prmt around one backbone."""

    def __init__(self, network: Network, config: Config, seed: int) -> None:
        self.network, self.config = network, config
        self.size, self.slots = config.segment, config.slots
        self.training = False
        dims = network.backbone.dims
        self.places = places_for(config, dims.context, dims.windows)
        table = network.model.get_input_embeddings().weight.detach()
        shape = (dims.layers, self.slots, dims.width)
        draw = torch.randn(shape, generator=seeds.generator(seed, "memory"))
        self.init_LME = Parameter(draw.to(table.device) * table.float().std())
        gain = torch.ones(dims.layers, 1, dims.width, device=table.device)
        self.gain_LME = Parameter(gain) if config.state_norm == "matched" else None

    def parameters(self) -> Mapping[str, Parameter]:
        named = {"memory.init_LMD": self.init_LME}
        return named | ({"memory.gain_LMD": self.gain_LME} if self.gain_LME is not None else {})

    @torch.no_grad()
    def calibrate(self, ids_BW: Tensor) -> None:
        """Start the gain where each layer's memory enters at the scale of that layer's text."""
        if self.gain_LME is None:
            return
        B, W = ids_BW.shape
        found: dict[int, float] = {}
        text = slice(self.slots, self.slots + W)

        def note(layer: int, h: Tensor) -> Tensor:
            found[layer] = float(h[:, text].float().square().mean().sqrt())
            return h

        with between(self.network.layers, note):
            self.segment(ids_BW, torch.full((B,), W, device=ids_BW.device), self.start(B), None)
        for layer, scale in found.items():
            self.gain_LME[layer].fill_(scale)

    def start(self, rows: int) -> State:
        return (self.init_LME.expand(rows, -1, -1, -1),)

    def made(self, layer: int | slice, output_BME: Tensor) -> Tensor:
        """M^l_{t+1} of what layer l made at the write columns, float32. A slice of layers: [G,B * M,E]."""
        w = wide(output_BME)
        if self.config.state_norm != "none":
            w = w * torch.rsqrt(w.square().mean(-1, keepdim=True) + EPSILON)
        if self.gain_LME is not None:
            w = w * self.gain_LME[layer]
        if self.training and self.config.state_noise:
            w = w + self.config.state_noise * torch.randn_like(w)
        return w

    def segment(
        self, ids_BW: Tensor, count_B: Tensor, state: State, wanted_K: Tensor | None
    ) -> tuple[Tensor | None, State]:
        B, W = ids_BW.shape
        m = self.slots
        position_BT, mask = laid(self.places, count_B, W, self.network.backbone.dtype)
        new: list[Tensor] = []

        def enter(layer: int, h: Tensor) -> Tensor:
            memory = state[0][:, layer].to(h.dtype)
            return torch.cat([memory, h[:, m:-m], memory], 1)

        def leave(layer: int, h: Tensor) -> None:
            new.append(self.made(layer, h[:, -m:]))

        x_BWE = self.network.embed(ids_BW)
        nothing = x_BWE.new_zeros(B, m, x_BWE.shape[2])
        with between(self.network.layers, enter, leave):
            wanted = None if wanted_K is None else wanted_K + m
            _, logits = self.network.run(torch.cat([nothing, x_BWE, nothing], 1), position_BT, mask, wanted)
        return logits, chosen((torch.stack(new, 1),), state, count_B > 0)

    def open(self, state: State, rows: int) -> Open:
        at = Open(state, DynamicCache())
        memory_BLME = state[0].to(self.network.backbone.dtype)
        position_BT = self.places.of_before(rows).to(memory_BLME.device)
        with between(self.network.layers, lambda layer, _h: memory_BLME[:, layer]):
            self.network.run(
                torch.zeros_like(memory_BLME[:, 0]),
                position_BT,
                mask_of(self.network, self.places, 0, self.slots, 0),
                None,
                at.cache,
            )
        return at

    def feed(self, at: Open, ids_BU: Tensor, wanted: bool = True) -> Tensor | None:
        return feed(self.network, self.places, at, ids_BU, wanted)

    def close(self, at: Open) -> State:
        rows, start = len(at.state[0]), self.slots + at.count
        memory_BLME = at.state[0].to(self.network.backbone.dtype)
        position_BT = self.places.of_write(torch.full((rows,), at.count)).to(memory_BLME.device)
        new: list[Tensor] = []
        with between(
            self.network.layers,
            lambda layer, _h: memory_BLME[:, layer],
            lambda layer, h: new.append(self.made(layer, h)),
        ):
            mask = mask_of(self.network, self.places, start, start + self.slots, at.count)
            self.network.run(torch.zeros_like(memory_BLME[:, 0]), position_BT, mask, None, at.cache)
        return (torch.stack(new, 1),)
