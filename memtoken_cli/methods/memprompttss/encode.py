"""The encoder of `tss-base`: a series of any number of channels and any sampling rate to tokens.

Channel by channel the same layers; channels meet by attention pooling with learned queries, so their order
and number do not matter. No weight knows a class, a channel index or a rate; time is crossed by
convolutions only, so the cost is linear and a block of rows plus its halo gives what the whole series
would.

Shape suffixes: T rows, C channels, N tokens, f inputs of a channel, F hand features, D width, H heads, B
batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memtoken_cli.methods.memprompttss.hand import (
    BLOCK,
    SHORT,
    centres,
    flat,
    halo,
    hand_features,
    moments,
    stride_for,
)
from memtoken_cli.methods.memprompttss.model import Encoded

PATCH = 16
COARSE = 4  # the second rate: one row for so many
WINDOWS = (16, 64, 256)
PER_WINDOW = (5, 7, 7)  # hand features of each window
INPUTS = PATCH + 2 * sum(PER_WINDOW)
DILATIONS = (1, 3, 9, 27)
KERNEL = 5
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    width: int = 96
    heads: int = 4


class Encoder(nn.Module):
    """[N,C,f] inputs of a series to [N,D]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D = shape.width
        self.heads = shape.heads
        self.inner = nn.Sequential(nn.Linear(INPUTS, D), nn.GELU(), nn.Linear(D, D), nn.GELU())
        self.query = nn.Linear(D, shape.heads)
        self.value = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(D, D, KERNEL, padding=KERNEL // 2 * d, dilation=d) for d in DILATIONS
        )
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in DILATIONS)
        self.out = nn.Linear(D, D)

    def channels(self, x_NCf: Tensor) -> Tensor:
        """Channels of one series to [N,D]: each head has its own weights over the channels."""
        h_NCD = self.inner(x_NCf)
        weight_NCH = self.query(h_NCD).softmax(1)
        v_NCHd = self.value(h_NCD).unflatten(2, (self.heads, -1))
        pooled_ND: Tensor = self.norm((weight_NCH[..., None] * v_NCHd).sum(1).flatten(1))
        return pooled_ND

    def time(self, x_BND: Tensor) -> Tensor:
        """Tokens to tokens that know their surroundings, [B,N,D]."""
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            mixed_BDN = convolution(norm(x_BND).transpose(1, 2))
            x_BND = x_BND + nn.functional.gelu(mixed_BDN).transpose(1, 2)
        out_BND: Tensor = self.out(x_BND)
        return out_BND


def windows_for(rows: int) -> tuple[int, ...]:
    """Windows of the hand features that heads read, in rows."""
    return WINDOWS if rows >= SHORT else WINDOWS[:2]


def inputs(x_TC: Singles, stride: int) -> Singles:
    """[N,C,f] of z-scored rows: the patch around each token, and hand features at both rates."""
    N = -(-len(x_TC) // stride)
    at_N = centres(len(x_TC), stride)
    index_NP = np.clip(at_N[:, None] + np.arange(PATCH) - PATCH // 2, 0, len(x_TC) - 1)
    patch_NCP = x_TC[index_NP].transpose(0, 2, 1)
    fine_NCf = hand_features(x_TC, WINDOWS, stride)
    slow_TC = np.add.reduceat(x_TC, np.arange(0, len(x_TC), COARSE), axis=0)
    slow_TC /= np.diff(np.append(np.arange(0, len(x_TC), COARSE), len(x_TC)))[:, None]
    slow_NCf = hand_features(slow_TC, WINDOWS, 1)[np.minimum(at_N // COARSE, len(slow_TC) - 1)]
    return np.concatenate([patch_NCP, fine_NCf, slow_NCf], 2).reshape(N, x_TC.shape[1], INPUTS)


def encode(
    encoder: Encoder,
    values_TC: Singles,
    gap_T: NDArray[np.bool_],
    channels: Sequence[str],
    block: int = BLOCK,
    stride: int | None = None,
) -> Encoded:
    """A whole series, in blocks of rows with a halo, where the encoder lies; embeddings and features are
    rounded to float16. stride: rows a token, if not as many as `stride_for` says."""
    rows, C = values_TC.shape
    stride = stride or stride_for(rows)
    mean_C, std_C = _scale(values_TC, gap_T)
    reach = _reach(stride)
    device = encoder.out.weight.device
    windows = windows_for(rows)
    first = sum(PER_WINDOW[: len(windows)])
    N = -(-rows // stride)
    hand_NF = torch.empty(N, C * first, dtype=torch.float16)
    embed_ND = torch.empty(N, encoder.out.out_features, dtype=torch.float16)
    unit = max(1, block // (stride * COARSE)) * stride * COARSE
    for a in range(0, rows, unit):
        b = min(a + unit, rows)
        low, high = max(0, a - reach), min(rows, b + reach)
        x_TC = ((values_TC[low:high] - mean_C) / std_C).astype(np.float32)
        x_TC[gap_T[low:high]] = 0
        x_NCf = inputs(x_TC, stride)
        kept = slice((a - low) // stride, (a - low) // stride + -(-(b - a) // stride))
        place = slice(a // stride, a // stride + (kept.stop - kept.start))
        hand_NF[place] = torch.from_numpy(x_NCf[kept, :, PATCH : PATCH + first].reshape(-1, C * first)).half()
        with torch.no_grad(), exact(device):
            parts = torch.from_numpy(x_NCf).split(8192)
            x_ND = torch.cat([encoder.channels(part.to(device)) for part in parts])
            embed_ND[place] = encoder.time(x_ND[None])[0, kept].half().cpu()
    gap_N = torch.from_numpy(gap_T[centres(rows, stride)])
    return Encoded(rows, stride, _standardised(hand_NF, gap_N), embed_ND, tuple(channels), gap_N)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """float32 as it is written: a GPU would round factors to TF32."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _scale(values_TC: Singles, gap_T: NDArray[np.bool_]) -> tuple[Singles, Singles]:
    """Mean and deviation of each channel; a constant one's is 1."""
    mean_C, std_C = moments(values_TC, gap_T)
    std_C[flat(mean_C, std_C)] = 1
    return mean_C.astype(np.float32), std_C.astype(np.float32)


def _reach(stride: int) -> int:
    """Rows beyond a block that its tokens depend on; whole tokens, and whole rows of the second rate."""
    tokens = KERNEL // 2 * sum(DILATIONS) * stride
    rows = max(halo(WINDOWS), (halo(WINDOWS) + 1) * COARSE) + PATCH
    unit = stride * COARSE
    return -(-(tokens + rows) // unit) * unit


def _standardised(hand_NF: Tensor, gap_N: Tensor) -> Tensor:
    """Features of mean 0 and deviation 1 over a series' tokens outside gaps, float16, in place."""
    kept_N = ~gap_N if bool(gap_N.any()) and not bool(gap_N.all()) else torch.ones_like(gap_N)
    count = int(kept_N.sum())
    parts = [slice(a, a + BLOCK) for a in range(0, len(hand_NF), BLOCK)]
    mean_F = torch.stack([hand_NF[p][kept_N[p]].double().sum(0) for p in parts]).sum(0) / count
    square_F = torch.stack([((hand_NF[p][kept_N[p]].double() - mean_F) ** 2).sum(0) for p in parts]).sum(0)
    std_F = (square_F / count).sqrt()
    scale_F = torch.where(std_F > 1e-3, 1 / std_F, 0)
    for p in parts:
        hand_NF[p] = ((hand_NF[p].double() - mean_F) * scale_F).half()
    return hand_NF
