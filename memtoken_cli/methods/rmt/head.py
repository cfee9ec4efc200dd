"""The vocabulary head by itself: the vector that entered it, and the logits of a stored one.

Between two segments a session holds no cache; its next token follows from that one vector of E numbers.

Shape suffixes: B rows, K columns, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memtoken_cli.engine.backbone import CausalLM


@contextmanager
def heard(backbone: CausalLM) -> Iterator[list[Tensor]]:
    """Inside, every input [B,K,E] of the vocabulary head is noted in the list."""
    found: list[Tensor] = []

    def note(_head: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0])

    handle = backbone.model.get_output_embeddings().register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def logits_of(backbone: CausalLM, last_BE: Tensor) -> Tensor:
    """float32 [B,V] of hidden states after the final norm, with whatever the model does to its logits."""

    def put(_decoder: nn.Module, _args: Any, output: Any) -> Any:
        output.last_hidden_state = last_BE[:, None].to(backbone.device, backbone.dtype)
        return output

    handle = backbone.model.get_decoder().register_forward_hook(put)
    try:
        ids_B1 = torch.zeros(len(last_BE), 1, dtype=torch.long, device=backbone.device)
        logits: Tensor = backbone.model(input_ids=ids_B1, use_cache=False).logits[:, -1].float()
    finally:
        handle.remove()
    return logits
