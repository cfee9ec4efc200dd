"""The one new layer of MemCom: memory tokens attend to the source's hidden states of the same depth.

    CrossAttn_l(LN U_l, LN S_l, LN S_l)

The output projection starts at zero, so that training starts from "memory ignored". With places, counted in
shares of the source (one a memory token), each token starts by looking at its own share and nothing else:
without that, all tokens see the same mean of the whole source and training finds no way out of it.

Shape suffixes: B rows, M memory tokens, T source tokens, E model width, H heads, D head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

FASTEST, THETA = math.pi, 100.0  # radians a share of the fastest channel; how much slower the slowest is
PEAK = 6.0  # the logit of looking at one's own place at the start


class CrossAttention(nn.Module):
    """Multi-head attention from U_l [B,M,E] to S_l [B,T,E]; with places, queries and keys are rotated.

    copies: what is added before training, as a multiple of the normalised states looked at.
    """

    def __init__(self, width: int, heads: int, copies: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.memory_norm, self.source_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        D = width // heads
        here = torch.zeros(D)
        here[: D // 2] = math.sqrt(PEAK * math.sqrt(D) / max(1, D // 2))
        with torch.no_grad():
            for linear in (self.query, self.key):
                linear.weight.mul_(0.1)
                linear.bias.copy_(here.repeat(heads))
            if copies:
                nn.init.eye_(self.value.weight)
            self.out.weight.copy_(copies * torch.eye(width))

    def forward(
        self,
        u_BME: Tensor,
        s_BTE: Tensor,
        seen_BT: Tensor | None = None,
        place_BM: Tensor | None = None,
        place_BT: Tensor | None = None,
    ) -> Tensor:
        """What is added to U_l, [B,M,E]. seen_BT: False at padding."""
        source_BTE = self.source_norm(s_BTE.to(self.key.weight.dtype))
        memory_BME = self.memory_norm(u_BME.to(self.key.weight.dtype))
        q, k, v = (
            self._cut(self.query(memory_BME)),
            self._cut(self.key(source_BTE)),
            self._cut(self.value(source_BTE)),
        )
        if place_BM is not None and place_BT is not None:
            q, k = rotate(q, place_BM), rotate(k, place_BT)
        mask = None if seen_BT is None else seen_BT[:, None, None, :]
        out_BHMD = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        added: Tensor = self.out(out_BHMD.transpose(1, 2).flatten(2)).to(u_BME.dtype)
        return added

    def _cut(self, x_BTE: Tensor) -> Tensor:
        x_BTHD: Tensor = x_BTE.unflatten(-1, (self.heads, -1))
        return x_BTHD.transpose(1, 2)


def rotate(x_BHTD: Tensor, place_BT: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021); places may be fractions. An odd last channel is left as it is."""
    half = x_BHTD.shape[-1] // 2
    rate = FASTEST * THETA ** -(torch.arange(half, device=x_BHTD.device, dtype=torch.float32) / half)
    angle_B1TD = (place_BT.float()[..., None] * rate)[:, None]
    cos, sin = angle_B1TD.cos().to(x_BHTD.dtype), angle_B1TD.sin().to(x_BHTD.dtype)
    a, b, rest = x_BHTD[..., :half], x_BHTD[..., half : 2 * half], x_BHTD[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
