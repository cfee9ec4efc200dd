"""Attention and the feed-forward layer that encoder, writer and readers are built of.

Written out rather than taken from `torch.nn`, since a memory may be empty, and a row of a batch must not feel
its neighbours through a fused path.

Shape suffixes: B rows, Q queries, M keys, D width, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, linear, relu, scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head attention, started as torch's own; over no keys it is its output bias."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        q_BQD: Tensor,
        k_BMD: Tensor,
        v_BMD: Tensor,
        seen_BM: Tensor | None = None,
    ) -> Tensor:
        """[B,Q,D]; seen_BM: True where a key counts (a row without any gets the output bias)."""
        Wq, Wk, Wv = self.weight.chunk(3)
        bq, bk, bv = self.bias.chunk(3)
        q = self._split(linear(q_BQD, Wq, bq))
        if k_BMD.shape[1] == 0:
            mixed = torch.zeros_like(q)
        else:
            k, v = self._split(linear(k_BMD, Wk, bk)), self._split(linear(v_BMD, Wv, bv))
            mask = None if seen_BM is None else seen_BM[:, None, None, :]
            p = self.drop if self.training else 0.0
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
            if seen_BM is not None:
                mixed = torch.where(seen_BM.any(1)[:, None, None, None], mixed, 0.0)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    @torch.no_grad()
    def pass_on(self) -> None:
        """What is read is passed on as it is, and mixed by training only."""
        width = self.out.weight.shape[0]
        torch.nn.init.eye_(self.weight[2 * width :])
        torch.nn.init.eye_(self.out.weight)

    def weights(self, q_BQD: Tensor, k_BMD: Tensor) -> Tensor:
        """[B,Q,M]: how much each query looks at each key, the mean of the heads."""
        Wq, Wk, _ = self.weight.chunk(3)
        bq, bk, _ = self.bias.chunk(3)
        q, k = self._split(linear(q_BQD, Wq, bq)), self._split(linear(k_BMD, Wk, bk))
        looks: Tensor = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return looks.mean(1)

    def _split(self, x_BQD: Tensor) -> Tensor:
        split: Tensor = x_BQD.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)


@torch.no_grad()
def mirrored(label: nn.Linear, head: nn.Linear) -> None:
    """Labels start as loud as other embeddings, and the head finds a class where its label is."""
    nn.init.normal_(label.weight)
    classes, width = head.weight.shape
    head.weight.copy_(label.weight[:, :classes].T / width**0.5)


class Mlp(nn.Module):
    """Linear, ReLU or GELU, dropout, Linear."""

    def __init__(self, width: int, hidden: int, drop: float, smooth: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop, self.smooth = drop, smooth

    def forward(self, x: Tensor) -> Tensor:
        h = gelu(self.up(x)) if self.smooth else relu(self.up(x))
        out: Tensor = self.down(dropout(h, self.drop, self.training))
        return out
