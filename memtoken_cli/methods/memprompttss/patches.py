"""The paper's encoder of a window: patches of rows, positions, a small transformer; and rows out of patches.

Shape suffixes: B windows or crops, T rows of one, C channels, N patches, X rows of a patch, D width, K
    classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from memtoken_cli.methods.memprompttss.attention import Attention, Mlp
from memtoken_cli.methods.memprompttss.config import Config
from memtoken_cli.methods.memprompttss.windows import Geometry

EPS = 1e-5  # of RevIN


def revin(x_BTC: Tensor) -> Tensor:
    """Each window and channel with mean 0 and (biased) variance 1; never undone."""
    mean = x_BTC.mean(1, keepdim=True)
    return (x_BTC - mean) / (x_BTC.var(1, unbiased=False, keepdim=True) + EPS).sqrt()


def positions(count: int, width: int) -> Tensor:
    """[N,D] sines and cosines of base 10000, of places 0..count-1."""
    return places(torch.arange(count, dtype=torch.float32), width)


def places(at: Tensor, width: int) -> Tensor:
    """[...,D] sines and cosines of any places."""
    rate = torch.exp(torch.arange(0, width, 2, device=at.device) * (-math.log(10000.0) / width))
    angle = at[..., None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def overlap_average(x_BNK: Tensor, patch: int, stride: int) -> Tensor:
    """[B,T,K]: every row the mean of the patches that it lies in."""
    B, N, K = x_BNK.shape
    T = (N - 1) * stride + patch
    at_NX = torch.arange(N, device=x_BNK.device)[:, None] * stride + torch.arange(patch, device=x_BNK.device)
    count_T = torch.zeros(T, device=x_BNK.device).index_add_(
        0, at_NX.flatten(), torch.ones(at_NX.numel(), device=x_BNK.device)
    )
    spread = x_BNK[:, :, None].expand(B, N, patch, K).reshape(B, N * patch, K)
    total = x_BNK.new_zeros(B, T, K).index_add(1, at_NX.flatten(), spread)
    return total / count_T[:, None].to(total.dtype)


class EncoderLayer(nn.Module):
    """Post-norm: x = LN(x + SA(x)), x = LN(x + MLP(x)), ReLU, four times as wide inside."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, drop)
        self.mlp = Mlp(width, 4 * width, drop, smooth=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + dropout(self.attention(x, x, x), self.drop, self.training))
        out: Tensor = self.norm2(x + dropout(self.mlp(x), self.drop, self.training))
        return out


class PatchEncoder(nn.Module):
    """x_BTC -> z_BND. With `time_attention: false`, as released, a patch attends to the same patch of the
    other rows of the batch."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        D = config.width
        self.patch, self.stride = config.patch, config.patch_stride
        self.over_time, self.drop = config.time_attention, config.dropout
        self.embed = nn.Linear(config.patch * channels, D, bias=False)
        self.layers = nn.ModuleList(
            EncoderLayer(D, config.heads, config.dropout) for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(D)
        self.stats = nn.Linear(2 * channels, D) if config.window_stats else None

    def windows(self, x_BLC: Tensor, geometry: Geometry) -> Tensor:
        """[B,W,N,D] of every window of subsequences of L rows."""
        x_BWTC = geometry.cut(x_BLC)
        z: Tensor = self(x_BWTC.flatten(0, 1))
        z_BWND: Tensor = z.unflatten(0, x_BWTC.shape[:2])
        return z_BWND

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B,N,D], or [B,N+1,D] where the window's mean and spread are a token of their own, the last one."""
        patches_BNCX = revin(x_BTC).unfold(1, self.patch, self.stride)
        x: Tensor = self.embed(patches_BNCX.flatten(2))
        x = x + positions(x.shape[1], x.shape[2]).to(x)
        if self.stats is not None:
            spread = (x_BTC.var(1, unbiased=False) + EPS).log() / 2
            x = torch.cat([x, self.stats(torch.cat([x_BTC.mean(1), spread], 1))[:, None]], 1)
        x = dropout(x, self.drop, self.training)
        if not self.over_time:
            x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        if not self.over_time:
            x = x.transpose(0, 1)
        out: Tensor = self.norm(x)
        return out
