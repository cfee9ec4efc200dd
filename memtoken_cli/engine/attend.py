"""The attention that reads a memory, at one layer: a `Site` and the layer's keys and values.

Memory is shared by every row and never copied. `attend` is the fast path (one fused kernel over own
tokens and memory, head by head at the head's own length); `naive` says the same in plain softmax,
serves models with soft caps or sinks, and is the oracle in tests. How a model comes to call it is
in `reading.py`.

Shape suffixes: B rows, T queries of a row, U own keys of a row, F queries of all rows laid flat,
H query heads, N key/value heads, G = H/N, M memory tokens of a head, D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .memory import LayerKV

CHUNK = 256

# (layer, head, start, stop) -> True [stop-start, M] where these queries must not see a memory token
Hidden = Callable[[int, int, int, int], Tensor]


@dataclass
class Packing:
    """Rows of unequal length in one flat row. start_B: where each begins; mask_BTT: who sees whom
    within a row, on padded places; index_BT: the flat token of each padded place; rows_F, cols_F:
    the padded place of each flat token."""

    lengths: tuple[int, ...]
    index_BT: Tensor
    rows_F: Tensor
    cols_F: Tensor
    mask_BTT: Tensor

    @cached_property
    def chunks(self) -> list[tuple[int, int, Tensor]]:
        """Runs of whole rows of about CHUNK tokens: (start, stop, mask [stop-start, stop-start])."""
        out, first, start = [], 0, 0
        for row in range(len(self.lengths)):
            size = sum(self.lengths[first : row + 1])
            last = row + 1 == len(self.lengths)
            if last or size + self.lengths[row + 1] > CHUNK:
                rows, cols = self.rows_F[start : start + size], self.cols_F[start : start + size]
                same = rows[:, None] == rows[None, :]
                mask_BTT = self.mask_BTT.expand(len(self.lengths), -1, -1)
                out.append(
                    (start, start + size, same & mask_BTT[rows[:, None], cols[:, None], cols[None, :]])
                )
                first, start = row + 1, start + size
        return out


@dataclass
class Site:
    """One attention layer at work: q_BHTD, its rows' own k_BNUD and v_BNUD (packed rows: B = 1, T = U = F),
    mask_BTU True where seen (None: packed, see `packing`), and what the model says about its logits."""

    layer: int
    module: nn.Module
    q_BHTD: Tensor
    k_BNUD: Tensor
    v_BNUD: Tensor
    mask_BTU: Tensor | None
    scaling: float
    softcap: float | None = None
    window: int | None = None
    sink_H: Tensor | None = None
    position_BT: Tensor | None = None
    packing: Packing | None = None

    @property
    def groups(self) -> int:
        return self.q_BHTD.shape[1] // self.k_BNUD.shape[1]

    @property
    def q_HFD(self) -> Tensor:
        return self.q_BHTD.transpose(0, 1).flatten(1, 2)

    @property
    def position_F(self) -> Tensor:
        assert self.position_BT is not None
        return self.position_BT.expand(self.q_BHTD.shape[0], self.q_BHTD.shape[2]).reshape(-1)

    def place(self, out_HFD: Tensor) -> Tensor:
        """Flat outputs where the model expects them: [B,T,H,D]."""
        B, _, T, _ = self.q_BHTD.shape
        out_HBTD: Tensor = out_HFD.unflatten(1, (B, T))
        return out_HBTD.permute(1, 2, 0, 3)

    def capped(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def far_FM(self, pos_M: Tensor | None, start: int, stop: int) -> Tensor | None:
        """True where a memory token lies outside a query's sliding window."""
        if self.window is None or pos_M is None:
            return None
        return self.position_F[start:stop, None] - pos_M[None, :] >= self.window

    def memory_logits(
        self, q_GFD: Tensor, k_MD: Tensor, hidden_FM: Tensor | None, bias_M: Tensor | None = None
    ) -> Tensor:
        """float32 [G,F,M] of one key/value head."""
        logits = self.capped((q_GFD.float() @ k_MD.float().T).mul_(self.scaling))
        if bias_M is not None:
            logits = logits + bias_M
        return logits if hidden_FM is None else logits.masked_fill_(hidden_FM, float("-inf"))

    def own_logits(self) -> Tensor:
        """float32 [H,F,U]: what each query thinks of its own row (packed: U padded places)."""
        q, k, mask = self.q_BHTD, self.k_BNUD, self.mask_BTU
        if self.packing is not None:
            q, k = self._pad(q), self._pad(k)
            mask = self.packing.mask_BTT
            if self.window is not None:
                at_BT = self.position_F[self.packing.index_BT]
                mask = mask & (at_BT[:, :, None] - at_BT[:, None, :] < self.window)
        assert mask is not None
        B, N, U, D = k.shape
        logits = (q.float().reshape(B, N, -1, D) * self.scaling) @ k.float().transpose(2, 3)
        logits = self.capped(logits.view(B, -1, q.shape[2], U)).masked_fill(~mask[:, None], float("-inf"))
        if self.packing is not None:
            return logits[self.packing.rows_F, :, self.packing.cols_F].transpose(0, 1)
        return logits.transpose(0, 1).flatten(1, 2)

    def own_output(self, weight_HFU: Tensor) -> Tensor:
        """[H,F,D]: the row's own values under these weights."""
        v, B, T = self.v_BNUD, self.q_BHTD.shape[0], self.q_BHTD.shape[2]
        H = weight_HFU.shape[0]
        if self.packing is None:
            w_BHTU = weight_HFU.unflatten(1, (B, T)).transpose(0, 1)
        else:
            v = self._pad(v)
            B, T = self.packing.index_BT.shape
            w_BTHU = weight_HFU.new_zeros(B, T, H, weight_HFU.shape[-1])
            w_BTHU = w_BTHU.index_put((self.packing.rows_F, self.packing.cols_F), weight_HFU.transpose(0, 1))
            w_BHTU = w_BTHU.transpose(1, 2)
        N, U, D = v.shape[1:]
        out: Tensor = (w_BHTU.to(v.dtype).reshape(B, N, -1, U) @ v).view(B, H, T, D)
        if self.packing is not None:
            return out[self.packing.rows_F, :, self.packing.cols_F].transpose(0, 1)
        return out.transpose(0, 1).flatten(1, 2)

    def _pad(self, x_1HFD: Tensor) -> Tensor:
        assert self.packing is not None
        return x_1HFD[0].transpose(0, 1)[self.packing.index_BT].transpose(1, 2)


def naive(site: Site, kv: LayerKV, hidden: Hidden | None = None) -> Tensor:
    """Softmax over memory and own tokens together, in plain steps: [B,T,H,D]."""
    q_HFD, own_HFU, G = site.q_HFD, site.own_logits(), site.groups
    F = q_HFD.shape[1]
    outs, weights = [], []
    for n, (k_MD, v_MD, bias_M, pos_M) in enumerate(kv.heads()):
        heads = slice(n * G, n * G + G)
        logits = site.memory_logits(q_HFD[heads], k_MD, unseen(site, n, pos_M, hidden, 0, F), bias_M)
        parts = [logits, own_HFU[heads]]
        if site.sink_H is not None:
            parts.append(site.sink_H[heads, None, None].float().expand(-1, F, 1))
        weight = torch.cat(parts, -1).softmax(-1)
        M = k_MD.shape[0]
        outs.append(weight[..., :M].to(q_HFD.dtype) @ v_MD.to(q_HFD.dtype))
        weights.append(weight[..., M : M + own_HFU.shape[-1]])
    return site.place(torch.cat(outs) + site.own_output(torch.cat(weights)))


def attend(site: Site, kv: LayerKV, hidden: Hidden | None = None) -> Tensor:
    """`naive` by the fused kernel, where the model's logits allow it and rows share one key list."""
    if site.softcap is not None or site.sink_H is not None or site.q_BHTD.shape[0] > 1:
        return naive(site, kv, hidden)
    q_HFD, k_NUD, v_NUD = site.q_BHTD[0], site.k_BNUD[0], site.v_BNUD[0]
    F, dtype, G = q_HFD.shape[1], q_HFD.dtype, site.groups
    if site.packing is not None:
        chunks = site.packing.chunks
    else:
        assert site.mask_BTU is not None
        chunks = [(0, F, site.mask_BTU[0])]
    memory = list(kv.heads())
    together = kv.uniform and kv.bias_X is None and hidden is None
    outs = []
    for start, stop, own_mask in chunks:
        own = slice(start, stop) if site.packing is not None else slice(None)
        if site.window is not None and site.packing is not None:
            at_F = site.position_F[start:stop]
            own_mask = own_mask & (at_F[:, None] - at_F[None, :] < site.window)
        heads = []
        for n in [slice(0, len(memory))] if together else [slice(n, n + 1) for n in range(len(memory))]:
            part = memory[n]
            k_MD, bias_M, pos_M = part[0][0], part[0][2], part[0][3]
            out_of_sight = unseen(site, n.start, pos_M, hidden, start, stop)
            seen_FM = own_mask.new_ones(stop - start, len(k_MD)) if out_of_sight is None else ~out_of_sight
            mask = torch.cat([own_mask, seen_FM], 1)
            if bias_M is not None:
                pad = bias_M.new_zeros(own_mask.shape[1])
                weightless = torch.cat([pad, bias_M]).expand(mask.shape)
                mask = weightless.masked_fill(~mask, float("-inf")).to(dtype)
            heads.append(
                scaled_dot_product_attention(
                    q_HFD[None, n.start * G : n.stop * G, start:stop],
                    torch.cat([k_NUD[n, own], torch.stack([p[0] for p in part]).to(dtype)], 1)[None],
                    torch.cat([v_NUD[n, own], torch.stack([p[1] for p in part]).to(dtype)], 1)[None],
                    attn_mask=mask,
                    scale=site.scaling,
                    enable_gqa=G > 1,
                )[0]
            )
        outs.append(torch.cat(heads))
    return site.place(torch.cat(outs, 1))


def unseen(
    site: Site, n: int, pos_M: Tensor | None, hidden: Hidden | None, start: int, stop: int
) -> Tensor | None:
    """True where these queries do not see a token of head n: too far for the window, or hidden."""
    far = site.far_FM(pos_M, start, stop)
    if hidden is None:
        return far
    behind = hidden(site.layer, n, start, stop)
    return behind if far is None else behind | far


@dataclass
class Read:
    """The reader of a finished memory. hidden: memory tokens that some queries must not see."""

    layers: tuple[LayerKV, ...]
    packing: Packing | None = None
    position_BT: Tensor | None = None
    hidden: Hidden | None = None

    def __call__(self, site: Site) -> Tensor:
        return attend(site, self.layers[site.layer], self.hidden)
