"""`xl` (Transformer-XL, arXiv 1901.02860): every layer also reads its own inputs at the last C positions.

They stand as columns in front of the text, without gradient; the layer's own projections make keys and values
of them. What the layer makes at those columns is dropped. In floats it keeps L times what `rmt` keeps in as
many positions.

Shape suffixes: B rows, L layers, C cached positions, W text columns of a segment, U columns fed at once, T
all columns, E model width, K wanted columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import DynamicCache

from memtoken_cli.engine.between import between
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.network import Network, rotary, wide
from memtoken_cli.methods.rmt.places import additive, places_for
from memtoken_cli.methods.rmt.policy import Open, State, chosen


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
        self.places = places_for(config, dims.context, dims.windows)
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
