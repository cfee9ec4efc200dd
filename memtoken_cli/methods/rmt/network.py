"""One forward of the backbone over explicit columns: vectors in, last hidden state and wanted logits out.

Shape suffixes: B rows, T columns, E model width, W wanted columns, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.between import between


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is that already: how a state and its arithmetic are kept."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass
class Network:
    """A backbone as the policies use it. No hidden state of another layer is ever kept."""

    backbone: CausalLM

    @property
    def model(self) -> PreTrainedModel:
        return self.backbone.model

    @property
    def layers(self) -> nn.ModuleList:
        return self.backbone.layers

    def embed(self, ids_BT: Tensor) -> Tensor:
        """[B,T,E] as the model embeds them: families that scale do so here."""
        return self.model.get_input_embeddings()(ids_BT)

    def run(
        self,
        x_BTE: Tensor,
        position_BT: Tensor,
        mask: Tensor,
        wanted_W: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(hidden_BTE after the final norm, `wide` logits_BWV at the columns wanted_W or None).

        mask: additive [B or 1,1,T,past + T]. With a cache the columns stand behind what it holds."""
        said = {
            "inputs_embeds": x_BTE.to(self.backbone.dtype),
            "position_ids": position_BT,
            "attention_mask": mask,
            "cache": cache,
            "use_cache": cache is not None,
        }
        if wanted_W is None:
            return self.model.get_decoder()(**said).last_hidden_state, None
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            kept.append(output.last_hidden_state)

        handle = self.model.get_decoder().register_forward_hook(keep)
        try:
            out = self.model(**said, logits_to_keep=wanted_W)
        finally:
            handle.remove()
        return kept[0], wide(out.logits)


@torch.no_grad()
def rotary(network: Network) -> bool:
    """Whether positions act between tokens alone: what enters the first layer does not differ by them."""
    seen: list[Tensor] = []

    def note(_layer: int, h: Tensor) -> Tensor:
        seen.append(h)
        return h

    ids_11 = torch.zeros(1, 1, dtype=torch.long, device=network.backbone.device)
    mask = torch.zeros(1, 1, 1, 1, dtype=network.backbone.dtype, device=ids_11.device)
    with between(network.layers[:1], note):
        for place in (0, 1):
            network.run(network.embed(ids_11), torch.full_like(ids_11, place), mask)
    return torch.equal(*seen)
