"""Hand features of a series' tokens: level, spread, roughness and band energies over moving windows.

Channel by channel and linear in the rows (running sums in float64). Filling gaps, cutting a long series into
blocks and normalising features over the whole of it are the caller's; `moments`, `zscore` and `standardise`
help.

Shape suffixes: T rows, C channels, N tokens, f features of one channel, F features of a token (C f).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

VERSION = 1  # of the features: banks and caches hold it
BANDS = (4, 8, 16, 32)
SHORT = 4000  # rows, below which windows are short
BLOCK = 65_536  # rows: the canonical unit, whatever unit a series was read in
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


def windows_for(rows: int) -> tuple[int, ...]:
    """The windows, in rows, for a series of this length."""
    return (16, 64) if rows < SHORT else (64, 256)


def stride_for(rows: int) -> int:
    """Rows a token, for a series of this length."""
    return max(1, rows // 500) if rows < SHORT else 8


def centres(rows: int, stride: int) -> NDArray[np.int64]:
    """[N] the row that a token is judged by; the last token may be short."""
    at_N = np.arange(-(-rows // stride)) * stride + stride // 2
    return np.minimum(at_N, rows - 1)


def halo(windows: Sequence[int], stride: int = 1) -> int:
    """Rows beyond a block, on each side, that its features depend on; a multiple of `stride`."""
    reach = max(windows) // 2 + BANDS[-1] // 2 + 1
    return -(-reach // stride) * stride


def names(channels: Sequence[str], windows: Sequence[int]) -> tuple[str, ...]:
    """The F features' names, in the order of `hand_features(...).reshape(N, -1)`."""
    kinds = [
        f"{kind}{w}"
        for w in windows
        for kind in ("mean", "std", "step", *(f"band{b}:" for b in BANDS if b < w))
    ]
    return tuple(f"{channel}.{kind}" for channel in channels for kind in kinds)


def hand_features(x_TC: NDArray[np.floating], windows: Sequence[int], stride: int) -> Singles:
    """[N,C,f] float32 of z-scored rows without NaN, at the tokens' centres.

    For a window w: the moving mean; log(std + .01); log(mean |dx| + .001); and for b in 4, 8, 16, 32 below w,
    log(rms_w(lo_prev - lo_b) + .01) with lo_b the moving mean of width b and lo_prev the one before (x at
    first). A moving mean of even width w at row i covers i - w/2 to i + w/2 - 1; edges repeat, each time.
    """
    T, C = x_TC.shape
    at_N = centres(T, stride)
    widths = [b for b in BANDS if b < max(windows)]
    columns: list[Floats] = []
    for c in range(C):
        x_T = np.ascontiguousarray(x_TC[:, c], dtype=np.float64)
        found: list[Floats] = []
        step_T = np.abs(np.diff(x_T, prepend=x_T[:1]))
        x_sum, square_sum, step_sum = (_Running(v, max(windows)) for v in (x_T, x_T * x_T, step_T))
        bands: list[_Running] = []
        low_T = x_T
        for b in widths:
            next_T = x_sum.mean(b)
            gap_T = low_T - next_T
            bands.append(_Running(gap_T * gap_T, max(windows)))
            low_T = next_T
        for w in windows:
            mean_N = x_sum.mean(w, at_N)
            spread_N = np.sqrt(np.maximum(square_sum.mean(w, at_N) - mean_N * mean_N, 0))
            found += [mean_N, np.log(spread_N + 0.01), np.log(step_sum.mean(w, at_N) + 0.001)]
            for b, band in zip(widths, bands, strict=True):
                if b < w:
                    found.append(np.log(np.sqrt(np.maximum(band.mean(w, at_N), 0)) + 0.01))
        columns.append(np.stack(found, 1))
    return np.stack(columns, 1).astype(np.float32)


class _Running:
    """Moving means of one column by differences of its running sum."""

    def __init__(self, values_T: Floats, widest: int) -> None:
        self.pad = widest // 2 + 1
        self.rows = len(values_T)
        padded = np.concatenate(
            [[0.0], np.full(self.pad, values_T[0]), values_T, np.full(self.pad, values_T[-1])]
        )
        self.sums = np.cumsum(padded)

    def mean(self, width: int, at_N: NDArray[np.int64] | None = None) -> Floats:
        """At every row, or at those of `at_N`."""
        first = self.pad - width // 2
        if at_N is None:
            high, low = self.sums[first + width : first + width + self.rows], self.sums[first:]
            found: Floats = (high - low[: self.rows]) / width
            return found
        chosen: Floats = (self.sums[at_N + (first + width)] - self.sums[at_N + first]) / width
        return chosen


def moments(values_TC: NDArray[np.floating], gap_T: NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
    """Mean and deviation of each channel outside gaps, merged block by block (Chan et al.): no copy of the
    series."""
    C = values_TC.shape[1]
    count, mean_C, square_C = 0, np.zeros(C), np.zeros(C)
    for a in range(0, len(values_TC), BLOCK):
        part = values_TC[a : a + BLOCK]
        part = (part if gap_T is None else part[~gap_T[a : a + BLOCK]]).astype(np.float64)
        if not len(part):
            continue
        own_C = part.mean(0)
        gap_C = own_C - mean_C
        total = count + len(part)
        square_C += ((part - own_C) ** 2).sum(0) + gap_C**2 * count * len(part) / total
        mean_C += gap_C * len(part) / total
        count = total
    return mean_C, np.sqrt(square_C / max(count, 1))


def flat(mean_C: Floats, std_C: Floats) -> NDArray[np.bool_]:
    """[C] whether a channel's deviation is what rounding alone makes of a constant."""
    found: NDArray[np.bool_] = std_C <= 1e-7 * np.maximum(np.abs(mean_C), 1e-30)
    return found


def zscore(
    values_TC: NDArray[np.floating], gap_T: NDArray[np.bool_] | None = None
) -> tuple[Singles, Floats, Floats]:
    """Values of mean 0 and deviation 1 a channel over rows outside gaps, with the mean and deviation of each;
    gaps become 0. A constant channel becomes 0."""
    mean_C, std_C = moments(values_TC, gap_T)
    flat_C = flat(mean_C, std_C)
    scaled = ((values_TC - mean_C) / np.where(flat_C, 1.0, std_C)).astype(np.float32)
    scaled[:, flat_C] = 0
    if gap_T is not None:
        scaled[gap_T] = 0
    return scaled, mean_C, std_C


def standardise(feature_NF: NDArray[np.floating], kept_N: NDArray[np.bool_] | None = None) -> Singles:
    """Features of mean 0 and deviation 1 over a series' tokens (or `kept_N` of them); constant ones are 0."""
    seen = feature_NF if kept_N is None or not kept_N.any() else feature_NF[kept_N]
    mean_F = seen.mean(0, dtype=np.float64)
    std_F = seen.std(0, dtype=np.float64)
    scaled: Singles = ((feature_NF - mean_F) / np.maximum(std_F, 1e-6)).astype(np.float32)
    return scaled
