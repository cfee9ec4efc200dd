"""Prompts as keys and values: read once, kept, and put together again for batches of any mixture.

Prompts that begin alike share what they begin with. A batch's `DynamicCache` is made anew each time: a
forward grows the one it is given, and would keep the graph of its step alive.

Shape suffixes: L layers, Z keys and values (2), B rows, N key/value heads, T tokens of a prompt, S shared
tokens, U further tokens, D head width, E model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError

SHORT = 128  # tokens up to which plain attention learns faster in bfloat16 on a CPU than the fused kernel
TOKENS = 2048  # padded tokens of one forward, about
ROWS = 32


@dataclass(frozen=True)
class Kept:
    """A prompt's keys and values: pieces kv_LZNTD laid end to end; the first may belong to others too."""

    pieces: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return sum(piece.shape[3] for piece in self.pieces)

    @property
    def own_bytes(self) -> int:
        """Without what it shares."""
        return self.pieces[-1].numel() * self.pieces[-1].element_size()


class Holds(Protocol):
    """What has a prompt's keys and values."""

    @property
    def kept(self) -> Kept | None: ...


@dataclass
class Prompted:
    """A batch of prompts that is ready to go on: rows are padded on the left.

    cache grows with every forward. seen_BT: True where a cached token is real. length_B: of each prompt.
    """

    cache: DynamicCache
    seen_BT: Tensor
    length_B: Tensor


# (rows of the call, states [B,T,E] of every layer (the last: after the final norm), where their tokens begin)
Visit = Callable[[Sequence[int], tuple[Tensor, ...], int], None]


@torch.no_grad()
def read(backbone: CausalLM, prompts: Sequence[Sequence[int]], visit: Visit) -> list[Kept]:
    """Every prompt's keys and values, in order; `visit` sees the hidden states on the way.

    What all prompts begin with is read once, and visited first with the rows (); then chunks of rows, padded
    on the right. Which prompts are read together decides the rounding: the same call gives the same bits.

    Raises DataError for a prompt without tokens, or beyond the context.
    """
    for ids in prompts:
        if not 0 < len(ids) <= backbone.dims.context:
            room = backbone.dims.context
            raise DataError(f"a prompt of {len(ids)} tokens for the {room} of {backbone.name}")
    S = shared_length(prompts)
    shared = None
    if S:
        shared = _forward(backbone, [list(prompts[0][:S])], None, partial(_visited, visit, (), 0))[0]
    found: dict[int, Kept] = {}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for run in chunks([len(prompts[i]) - S for i in order]):
        rows = [order[i] for i in run]
        own = _forward(
            backbone, [list(prompts[i][S:]) for i in rows], shared, partial(_visited, visit, rows, S)
        )
        for i, piece in zip(rows, own, strict=True):
            found[i] = Kept((piece,) if shared is None else (shared, piece))
    return [found[i] for i in range(len(prompts))]


def _visited(visit: Visit, rows: Sequence[int], first: int, states: tuple[Tensor, ...]) -> None:
    visit(rows, states, first)


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    listed = [list(p) for p in prompts]
    low, high = min(listed), max(listed)  # whatever these two share, all in between do
    limit = min(len(p) for p in prompts) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def chunks(lengths: Sequence[int]) -> list[range]:
    """Cuts rows of ascending length into runs that one forward takes."""
    out, start = [], 0
    for i, length in enumerate(lengths):
        if i > start and (i + 1 - start > ROWS or (i + 1 - start) * length > TOKENS):
            out.append(range(start, i))
            start = i
    return [*out, range(start, len(lengths))] if lengths else []


def _forward(
    backbone: CausalLM,
    rows: Sequence[Sequence[int]],
    shared: Tensor | None,
    seen: Callable[[tuple[Tensor, ...]], None],
) -> list[Tensor]:
    B, T = len(rows), max(len(row) for row in rows)
    ids_BT = torch.zeros(B, T, dtype=torch.long)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row)] = torch.tensor(row)
    S = 0 if shared is None else shared.shape[3]
    cache = DynamicCache() if shared is None else cache_of(shared[:, :, None].expand(-1, -1, B, -1, -1, -1))
    place_1T = torch.arange(S, S + T, device=backbone.device)[None]
    # pads stand behind what is real, so that causality alone hides them
    out = backbone.model.get_decoder()(
        inputs_embeds=backbone.model.get_input_embeddings()(ids_BT.to(backbone.device)),
        position_ids=place_1T.expand(B, T),
        cache=cache,
        use_cache=True,
        output_hidden_states=True,
    )
    seen((*out.hidden_states[:-1], out.last_hidden_state))
    both = [torch.stack([layer.keys, layer.values]) for layer in cache.layers]
    kv_LZBNTD = torch.stack(both)
    # clones: a view would hold the whole chunk
    return [kv_LZBNTD[:, :, b, :, S : S + len(row)].clone() for b, row in enumerate(rows)]


def cache_of(kv_LZBNTD: Tensor) -> DynamicCache:
    """A cache of full layers; a sliding window is the mask's business, so that padding cannot shift it."""
    return DynamicCache([(layer[0], layer[1]) for layer in kv_LZBNTD])


def batched(backbone: CausalLM, prompts: Sequence[Holds]) -> tuple[DynamicCache, Tensor | None]:
    """The prompts as one cache and its mask (long, [B,T]; None where all are of one length), for a caller
    that runs the decoder itself. Raises DataError where keys and values were not kept."""
    kept = [prompt.kept for prompt in prompts]
    found = [one for one in kept if one is not None]
    if len(found) < len(kept):
        raise DataError(f"prompts of {backbone.name} without their keys and values cannot be gone on from")
    made = together(found)
    return made.cache, None if bool(made.seen_BT.all()) else made.seen_BT.long()


def together(chosen: Sequence[Kept]) -> Prompted:
    """The prompts as one batch."""
    lengths = [one.length for one in chosen]
    L, Z, N, _, D = chosen[0].pieces[0].shape
    B, T = len(chosen), max(lengths)
    kv = chosen[0].pieces[0].new_zeros(L, Z, B, N, T, D)
    seen_BT = torch.zeros(B, T, dtype=torch.bool, device=kv.device)
    for b, one in enumerate(chosen):
        at = T - lengths[b]
        seen_BT[b, at:] = True
        for piece in one.pieces:
            kv[:, :, b, :, at : at + piece.shape[3]] = piece
            at += piece.shape[3]
    return Prompted(cache_of(kv), seen_BT, torch.tensor(lengths, device=kv.device))


def put(cache: DynamicCache, mask_BT: Tensor, row: int, kept: Kept, end: int) -> None:
    """Another prompt in a row of a batch's cache, its last token the row's token `end - 1`; the mask hides
    what else the row holds."""
    at = end - kept.length
    mask_BT[row] = 0
    mask_BT[row, at:end] = 1
    for piece in kept.pieces:
        T = piece.shape[3]
        for layer, (keys_NTD, values_NTD) in zip(cache.layers, piece, strict=True):
            layer.keys[row, :, at : at + T] = keys_NTD
            layer.values[row, :, at : at + T] = values_NTD
        at += T


def go_on(backbone: CausalLM, prompted: Prompted, x_BUE: Tensor, every: bool = False) -> tuple[Tensor, ...]:
    """States [B,U,E] of vectors that follow the prompts; gradients reach x. The cache grows by U.

    Only the final one, or (`every`) those of all layers, the embeddings first and the final one last.

    Rows that end early are padded on the right by their caller, who ignores what comes out there.
    """
    B, U = x_BUE.shape[:2]
    past = prompted.cache.get_seq_length() - prompted.seen_BT.shape[1]
    seen = torch.cat([prompted.seen_BT, prompted.seen_BT.new_ones(B, past + U)], 1)
    place_BU = prompted.length_B[:, None] + past + torch.arange(U, device=x_BUE.device)
    with _kernel(backbone, x_BUE):
        out = backbone.model.get_decoder()(
            inputs_embeds=x_BUE.to(backbone.dtype),
            attention_mask=seen.long(),
            position_ids=place_BU,
            cache=prompted.cache,
            use_cache=True,
            output_hidden_states=every,
        )
    return (*out.hidden_states[:-1], out.last_hidden_state) if every else (out.last_hidden_state,)


def _kernel(backbone: CausalLM, x_BUE: Tensor) -> AbstractContextManager[None]:
    learns = x_BUE.requires_grad and x_BUE.device.type == "cpu" and backbone.dtype == torch.bfloat16
    return sdpa_kernel(SDPBackend.MATH) if learns and x_BUE.shape[1] <= SHORT else nullcontext()
