"""Memory of its own for every layer, as columns that each layer finds in place of what the one below made.

`prmt`: layer l reads [M^l_t ; h^{l-1} ; M^l_t], and its outputs at the write columns, at length one per
channel, become M^l_{t+1}: RMT's equation inside every layer (arXiv 2506.05229 leaves it loose).

`xl` (Transformer-XL, arXiv 1901.02860): the columns in front hold the inputs of layer l at the last C
positions, without gradient; the layer's own projections make keys and values of them. What the layer makes at
those columns is dropped. In floats it keeps L times what `rmt` keeps in as many positions.

Shape suffixes: B rows, L layers, M memory slots (xl: cached positions C), W text columns of a segment, U
columns fed at once, T all columns, E model width, K wanted columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import DynamicCache

from memtoken_cli.engine import seeds
from memtoken_cli.engine.between import between
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.network import Network, wide
from memtoken_cli.methods.rmt.piecewise import feed, mask_of
from memtoken_cli.methods.rmt.places import Places, additive, laid
from memtoken_cli.methods.rmt.policy import Open, State, chosen

EPSILON = 1e-6


class Layerwise:
    """prmt around one backbone."""

    def __init__(self, network: Network, config: Config, seed: int) -> None:
        self.network, self.config = network, config
        self.size, self.slots = config.segment, config.slots
        self.training = False
        dims = network.backbone.dims
        blocks = config.mask == "blocks"
        self.places = Places(
            config.positions, config.segment, self.slots, self.slots, 0, dims.context, blocks
        )
        self.places.check(dims.context, dims.windows)
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


class TransformerXL:
    """xl around one backbone with relative (rotary) positions. Raises UsageError for learned ones.

    State: (inputs [B,L,C,E], filled_B): the newest cached position stands last; the first `C - filled`
    columns of a row are empty."""

    def __init__(self, network: Network, config: Config, seed: int) -> None:
        self.network, self.config = network, config
        self.size, self.slots = config.segment, config.slots
        self.training = False
        dims = network.backbone.dims
        if not rotary(network):
            raise UsageError(
                "policy xl needs relative positions: cached inputs of a model with learned positions carry "
                "their old ones",
                hint="rmt.policy=window re-encodes",
            )
        self.places = Places("contiguous", config.segment, self.slots, 0, 0, dims.context)
        self.places.check(dims.context, dims.windows)
        self.shape = (dims.layers, self.slots, dims.width)

    def parameters(self) -> Mapping[str, Parameter]:
        return {}

    def calibrate(self, ids_BW: Tensor) -> None:
        pass

    def start(self, rows: int) -> State:
        device = self.network.backbone.device
        return (
            torch.zeros(rows, *self.shape, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def _sees(self, filled_B: Tensor, count_B: Tensor, columns: int) -> Tensor:
        """bool [B,T,T] over [cached C | text]: an empty cached column is seen by nobody but itself."""
        sees_BTT = self.places.sees(count_B, columns)
        empty_BC = torch.arange(self.slots, device=filled_B.device) < self.slots - filled_B[:, None]
        sees_BTT = sees_BTT.expand(len(filled_B), -1, -1).clone()
        sees_BTT[:, :, : self.slots] &= ~empty_BC[:, None, :]
        eye = torch.eye(sees_BTT.shape[1], dtype=torch.bool, device=filled_B.device)
        return sees_BTT | eye

    def _kept(self, cached_BCE: Tensor, text_BWE: Tensor, count_B: Tensor) -> Tensor:
        """The inputs at the last C positions of [cached ; real text], [B,C,E] float32."""
        both = torch.cat([cached_BCE, wide(text_BWE.detach())], 1)
        index_BC = count_B[:, None] + torch.arange(self.slots, device=count_B.device)
        return both.gather(1, index_BC[:, :, None].expand(-1, -1, both.shape[2]))

    def segment(
        self, ids_BW: Tensor, count_B: Tensor, state: State, wanted_K: Tensor | None
    ) -> tuple[Tensor | None, State]:
        B, W = ids_BW.shape
        inputs_BLCE, filled_B = state
        position_BT = self.places.whole(count_B, W)
        mask = additive(self._sees(filled_B, count_B, W), self.network.backbone.dtype)
        new: list[Tensor] = []

        def enter(layer: int, h: Tensor) -> Tensor:
            text = h[:, self.slots :]
            new.append(self._kept(inputs_BLCE[:, layer], text, count_B))
            return torch.cat([inputs_BLCE[:, layer].to(h.dtype), text], 1)

        x_BWE = self.network.embed(ids_BW)
        nothing = x_BWE.new_zeros(B, self.slots, x_BWE.shape[2])
        with between(self.network.layers, enter):
            wanted = None if wanted_K is None else wanted_K + self.slots
            _, logits = self.network.run(torch.cat([nothing, x_BWE], 1), position_BT, mask, wanted)
        filled = (filled_B + count_B).clamp(max=self.slots)
        return logits, chosen((torch.stack(new, 1), filled), state, count_B > 0)

    def open(self, state: State, rows: int) -> Open:
        at = Open(state, DynamicCache(), kept={"inputs": state[0]})
        if self.slots:
            inputs_BLCE = state[0].to(self.network.backbone.dtype)
            sees = self._sees(state[1], torch.zeros_like(state[1]), 0)
            mask = additive(sees, self.network.backbone.dtype)
            position_BT = self.places.of_before(rows).to(mask.device)
            with between(self.network.layers, lambda layer, _h: inputs_BLCE[:, layer]):
                x_BCE = torch.zeros_like(inputs_BLCE[:, 0])
                self.network.run(x_BCE, position_BT, mask, None, at.cache)
        return at

    def feed(self, at: Open, ids_BU: Tensor, wanted: bool = True) -> Tensor | None:
        B, U = ids_BU.shape
        start, stop = self.slots + at.count, self.slots + at.count + U
        position_BT = self.places.of_text(B, at.count, at.count + U).to(ids_BU.device)
        count_B = torch.full((B,), at.count + U, device=ids_BU.device)
        sees = self._sees(at.state[1], count_B, at.count + U)[:, start:stop, :stop]
        inputs_BLCE, fed_B = at.kept["inputs"], torch.full((B,), U, device=ids_BU.device)
        new: list[Tensor] = []

        def enter(layer: int, h: Tensor) -> Tensor:
            new.append(self._kept(inputs_BLCE[:, layer], h, fed_B))
            return h

        every = torch.arange(U, device=ids_BU.device) if wanted else None
        with between(self.network.layers, enter):
            _, logits = self.network.run(
                self.network.embed(ids_BU),
                position_BT,
                additive(sees, self.network.backbone.dtype),
                every,
                at.cache,
            )
        at.kept["inputs"] = torch.stack(new, 1)
        at.count += U
        return logits

    def close(self, at: Open) -> State:
        return at.kept["inputs"], (at.state[1] + at.count).clamp(max=self.slots)


def rotary(network: Network) -> bool:
    """Whether positions act between tokens alone: no input differs by where it stands."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=network.backbone.device)
    seen: list[Tensor] = []
    with torch.no_grad(), between(network.layers, lambda layer, h: _noted(seen, layer, h)):
        for place in (0, 1):
            mask = torch.zeros(1, 1, 1, 1, dtype=network.backbone.dtype, device=ids.device)
            network.run(network.embed(ids), torch.full_like(ids, place), mask)
    return bool(torch.equal(seen[0], seen[1]))


def _noted(seen: list[Tensor], layer: int, h: Tensor) -> Tensor:
    if layer == 0:
        seen.append(h)
    return h
