"""Watching attention while a prompt is read: how much every token receives, layer by layer.

One row is read in chunks of queries, so that no [T,T] weights are ever held. Which tokens to keep is not
decided here.

Shape suffixes: N key/value heads, G query heads of each, C queries of a chunk, M tokens of the memory, T
tokens of the row, S = M + T, D head width, F tokens of the row laid flat (all of it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attend import Packing, Site
from .backbone import CausalLM
from .memory import LayerKV, Layers
from .packed import Packed
from .trie import empty_memory

CHUNK = 256
REPEAT = 2048  # KVzip's chunk of context

Add = Callable[[Tensor, Tensor, int], None]  # (total_NS, weight_NGCS, index of the chunk's first query)


@dataclass
class Watcher:
    """A reader of one row: attends as the model would and hands the weights of each chunk to `add`.

    totals[layer]: float32 [N,S], zeros at first; S runs over the memory's tokens and then the row's own.
    """

    layers: Sequence[LayerKV]
    add: Add
    packing: Packing | None
    position_BT: Tensor | None
    totals: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, site: Site) -> Tensor:
        kv = self.layers[site.layer]
        B, _, T, D = site.q_BHTD.shape
        N, M = len(kv.sizes), kv.sizes[0]
        assert B == 1 and len(set(kv.sizes)) == 1, "one row and heads of equal length"
        q_NGTD = site.q_BHTD[0].view(N, -1, T, D)
        k_NSD = torch.cat([kv.k_XD.view(N, M, D).to(q_NGTD.dtype), site.k_BNUD[0]], 1)
        v_NSD = torch.cat([kv.v_XD.view(N, M, site.v_BNUD.shape[-1]).to(q_NGTD.dtype), site.v_BNUD[0]], 1)
        seen_TS = torch.cat([self._seen(site, kv), self._own(site)], 1)
        total_NS = self.totals.setdefault(site.layer, torch.zeros(N, M + T, device=k_NSD.device))
        outs = []
        for first in range(0, T, CHUNK):
            q_NGCD = q_NGTD[:, :, first : first + CHUNK]
            logits = site.capped((q_NGCD @ k_NSD[:, None].transpose(2, 3)).float() * site.scaling)
            logits = logits.masked_fill(~seen_TS[first : first + CHUNK], float("-inf"))
            if site.sink_H is not None:
                sink = site.sink_H.float().view(N, -1, 1, 1).expand(-1, -1, logits.shape[2], 1)
                weight_NGCS = torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
            else:
                weight_NGCS = logits.softmax(-1)
            self.add(total_NS, weight_NGCS, first)
            outs.append(weight_NGCS.to(v_NSD.dtype) @ v_NSD[:, None])
        return site.place(torch.cat(outs, 2).flatten(0, 1))

    def _seen(self, site: Site, kv: LayerKV) -> Tensor:
        """bool [T,M]: which tokens of the memory a sliding window lets each query see."""
        T, M = site.q_BHTD.shape[2], kv.sizes[0]
        far_TM = site.far_FM(None if kv.pos_X is None else kv.pos_X[:M], 0, T)
        return torch.ones(T, M, dtype=torch.bool, device=site.q_BHTD.device) if far_TM is None else ~far_TM

    def _own(self, site: Site) -> Tensor:
        """bool [T,T]: which tokens of its own row each query sees."""
        T = site.q_BHTD.shape[2]
        seen_TT = torch.ones(T, T, dtype=torch.bool, device=site.q_BHTD.device).tril()
        far_TT = site.far_FM(site.position_F, 0, T)
        return seen_TT if far_TT is None else seen_TT & ~far_TT


@torch.no_grad()
def watch(backbone: CausalLM, ids: Sequence[int], memory: Layers, add: Add) -> list[Tensor]:
    """totals_NS of every layer after the row `ids` was read behind `memory` (heads of equal length)."""
    packed = Packed.rows([list(ids)], memory.next_position)
    memory = memory.to(backbone.device)
    watcher = Watcher(
        memory.layers, add, packed.packing(backbone.device), packed.position_F[None].to(backbone.device)
    )
    backbone.run_with(packed, watcher, packed.last_B)
    return [watcher.totals[layer] for layer in range(len(memory.layers))]


def context_attention(backbone: CausalLM, ids: Sequence[int], add: Add) -> list[Tensor]:
    """`watch` of a prompt read for the first time: [N,T] a layer."""
    return watch(backbone, ids, empty_memory(backbone), add)


def repeat_attention(
    backbone: CausalLM, memory: Layers, ids: Sequence[int], ask: Sequence[int]
) -> list[Tensor]:
    """The largest weight [N,M] that each token of the whole memory gets while `ask` and then a chunk of its
    own text are read behind it. Chunks are shorter where the context has no room for 2,048."""

    def largest(total_NS: Tensor, weight_NGCS: Tensor, first: int) -> None:
        torch.maximum(total_NS, weight_NGCS.amax((1, 2)), out=total_NS)

    room = max(1, min(REPEAT, backbone.dims.context - memory.next_position - len(ask)))
    best: list[Tensor] = []
    for start in range(0, len(ids), room):
        totals = watch(backbone, [*ask, *ids[start : start + room]], memory, largest)
        found = [x[:, : kv.sizes[0]] for x, kv in zip(totals, memory.layers, strict=True)]
        best = found if not best else [torch.maximum(a, b) for a, b in zip(best, found, strict=True)]
    return best
