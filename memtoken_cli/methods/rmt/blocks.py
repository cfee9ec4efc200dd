"""Memory as blocks of input vectors: `rmt`, and its ablations `static` (never updated) and `none`.

    Z_t = [M_t ; E(x_t) ; M_t]      H_t = Backbone(Z_t)      logits_t = LMHead(H_t[text])
    M_{t+1} = gain * H_t[write]                                     (RMT, arXiv 2207.06881, section 3)

Text never sees the write block, in either mask: that is what lets a cache decode it exactly.

Shape suffixes: B rows, M memory slots, W text columns of a segment, U columns fed at once, E model width, K
wanted columns.
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
from memtoken_cli.methods.rmt.places import laid, places_for
from memtoken_cli.methods.rmt.policy import Open, State, chosen


class Blocks:
    """rmt, static and none around one backbone. `training` switches the noise on the state on."""

    def __init__(self, network: Network, config: Config, seed: int) -> None:
        self.network, self.config = network, config
        self.size = config.segment
        dims = network.backbone.dims
        self.training = False
        self.places = places_for(config, dims.context, dims.windows)
        self.slots, self.writes = self.places.read, self.places.write > 0
        if self.places.front and network.backbone.tokenizer.bos_token_id is None:
            name = network.backbone.name
            raise UsageError(f"the tokenizer of {name} has no BOS to put in front", hint="rmt.sink=none")
        table = network.model.get_input_embeddings().weight.detach()
        spread = table.float().std()
        draw = torch.randn(self.slots, dims.width, generator=seeds.generator(seed, "memory"))
        self.init_ME = Parameter(draw.to(table.device) * spread)
        matched = self.writes and config.state_norm == "matched"
        self.gain_E = Parameter(torch.ones(dims.width, device=table.device)) if matched else None

    def parameters(self) -> Mapping[str, Parameter]:
        found = {"memory.init_MD": self.init_ME} if self.slots else {}
        return found | ({"memory.gain_D": self.gain_E} if self.gain_E is not None else {})

    @torch.no_grad()
    def calibrate(self, ids_BW: Tensor) -> None:
        """Start the gain where memory enters at the scale of token embeddings."""
        if self.gain_E is None:
            return
        x_BWE = self.network.embed(ids_BW).float()
        rows = len(ids_BW)
        count_B = torch.full((rows,), ids_BW.shape[1], device=ids_BW.device)
        self.gain_E.fill_(1.0)
        (made_BME,) = self.segment(ids_BW, count_B, self.start(rows), None)[1]
        self.gain_E.fill_(float(x_BWE.square().mean().sqrt() / made_BME.square().mean().sqrt()))

    def start(self, rows: int) -> State:
        return (self.init_ME.expand(rows, -1, -1),) if self.slots else ()

    def _before(self, state: State, rows: int) -> list[Tensor]:
        """The vectors in front of the text."""
        parts = []
        if self.places.front:
            bos = self.network.backbone.tokenizer.bos_token_id
            parts.append(self.network.embed(torch.full((rows, 1), bos, device=self.network.backbone.device)))
        if self.slots:
            parts.append(state[0].to(self.network.backbone.dtype))
        return parts

    def segment(
        self, ids_BW: Tensor, count_B: Tensor, state: State, wanted_K: Tensor | None
    ) -> tuple[Tensor | None, State]:
        B, W = ids_BW.shape
        parts = [*self._before(state, B), self.network.embed(ids_BW)]
        if self.writes:
            parts.append(state[0].to(self.network.backbone.dtype))
        position_BT, mask = laid(self.places, count_B, W, self.network.backbone.dtype)
        wanted = None if wanted_K is None else wanted_K + self.places.before
        x_BTE = torch.cat(parts, 1)
        hidden, logits = self._run(x_BTE, position_BT, mask, wanted)
        if not self.writes:
            return logits, state
        new = (self._state(hidden[:, -self.slots :]),)
        return logits, chosen(new, state, count_B > 0)

    def _run(
        self,
        x_BTE: Tensor,
        position_BT: Tensor,
        mask: Tensor,
        wanted: Tensor | None,
        cache: DynamicCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `Network.run`; with state_norm none the hidden state is the one before the final norm."""
        if self.config.state_norm != "none":
            return self.network.run(x_BTE, position_BT, mask, wanted, cache)
        raw: list[Tensor] = []
        last = len(self.network.layers) - 1

        def keep(layer: int, h: Tensor) -> None:
            if layer == last:
                raw.append(h)

        with between(self.network.layers, leave=keep):
            _, logits = self.network.run(x_BTE, position_BT, mask, wanted, cache)
        return raw[0], logits

    def _state(self, hidden_BME: Tensor) -> Tensor:
        made = wide(hidden_BME)
        if self.gain_E is not None:
            made = made * self.gain_E
        if self.training and self.config.state_noise:
            made = made + self.config.state_noise * torch.randn_like(made)
        return made

    def open(self, state: State, rows: int) -> Open:
        at = Open(state, DynamicCache())
        if self.places.before:
            position_BT = self.places.of_before(rows).to(self.network.backbone.device)
            mask = mask_of(self.network, self.places, 0, self.places.before, 0)
            self.network.run(torch.cat(self._before(state, rows), 1), position_BT, mask, None, at.cache)
        return at

    def feed(self, at: Open, ids_BU: Tensor, wanted: bool = True) -> Tensor | None:
        return feed(self.network, self.places, at, ids_BU, wanted)

    def close(self, at: Open) -> State:
        if not self.writes:
            return at.state
        rows, start = len(at.state[0]), self.places.before + at.count
        count_B = torch.full((rows,), at.count)
        position_BT = self.places.of_write(count_B).to(at.state[0].device)
        mask = mask_of(self.network, self.places, start, start + self.slots, at.count)
        x_BME = at.state[0].to(self.network.backbone.dtype)
        hidden, _ = self._run(x_BME, position_BT, mask, None, at.cache)
        return (self._state(hidden),)
