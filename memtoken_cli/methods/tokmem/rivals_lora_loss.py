"""The loss of responses behind their prompts, with gradients through both: what LoRA is trained by.

Rows of a batch lie flat behind what their prompts begin with (the chat template's head, at least), which is
read once: no padding, and nothing twice. `padded_loss` is the plain way, and that of models with sliding
windows.

Shape suffixes: B rows, T tokens of a row, F tokens of all rows laid flat, E model width, W positions with a
target, V vocabulary, S tokens that all prompts begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.prefix_cache import shared_length
from memtoken_cli.methods.tokmem.examples import IGNORE

SHARED = -1  # the owner of tokens that every row begins with


@dataclass(frozen=True)
class Line:
    """A prompt's ids, and its response's with the end token."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def response_loss(backbone: CausalLM, batch: Sequence[Line]) -> tuple[Tensor, int]:
    """(summed cross-entropy of the responses and end tokens, how many)."""
    if any(window is not None for window in backbone.dims.windows):
        return padded_loss(backbone, batch)
    S = shared_length([line.prompt for line in batch])
    ids = list(batch[0].prompt[:S])
    place, owner, target = list(range(S)), [SHARED] * S, [IGNORE] * S
    for b, line in enumerate(batch):
        own = (*line.prompt[S:], *line.response[:-1])
        ids += own
        place += range(S, S + len(own))
        owner += [b] * len(own)
        target += [IGNORE] * (len(own) - len(line.response)) + list(line.response)
    device, F = backbone.device, len(ids)
    owner_F = torch.tensor(owner, device=device)
    seen_FF = (owner_F == SHARED)[None] | (owner_F[:, None] == owner_F)
    seen_FF &= torch.ones(F, F, dtype=torch.bool, device=device).tril()
    hidden_FF = torch.zeros(F, F, dtype=backbone.dtype, device=device)
    hidden_FF.masked_fill_(~seen_FF, torch.finfo(backbone.dtype).min)
    h_FE = backbone.model.get_decoder()(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([place], device=device),
        attention_mask=hidden_FF[None, None],
        use_cache=False,
    ).last_hidden_state[0]
    return _summed(backbone, h_FE, torch.tensor(target, device=device))


def padded_loss(backbone: CausalLM, batch: Sequence[Line]) -> tuple[Tensor, int]:
    """`response_loss` of rows that are padded on the right."""
    T = max(len(line.prompt) + len(line.response) for line in batch) - 1
    ids_BT = torch.zeros(len(batch), T, dtype=torch.long)
    target_BT = torch.full((len(batch), T), IGNORE)
    mask_BT = torch.zeros(len(batch), T, dtype=torch.long)
    for b, line in enumerate(batch):
        row, start = (*line.prompt, *line.response[:-1]), len(line.prompt) - 1
        ids_BT[b, : len(row)] = torch.tensor(row)
        mask_BT[b, : len(row)] = 1
        target_BT[b, start : start + len(line.response)] = torch.tensor(line.response)
    device = backbone.device
    h_BTE = backbone.model.get_decoder()(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
    ).last_hidden_state
    return _summed(backbone, h_BTE.flatten(0, 1), target_BT.flatten().to(device))


def _summed(backbone: CausalLM, h_FE: Tensor, target_F: Tensor) -> tuple[Tensor, int]:
    wanted_F = target_F != IGNORE
    logits_WV = vocab.logits(backbone, h_FE[wanted_F])
    return cross_entropy(logits_WV, target_F[wanted_F], reduction="sum"), int(wanted_F.sum())
