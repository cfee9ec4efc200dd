"""States without a prompt: statistics of half a period and a period, cut bottom-up, segments clustered.

Knows no model and no prompt. Windows are at least 1/200 of the series, so segments shorter than about 1.5 %
of it are not found, and the time taken hardly depends on its length.

Shape suffixes: T rows, C channels, N tokens (here of an eighth of a window), F features, D components, S
segments.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 16  # rows, below which there is one state
SHARE = 1 / 200  # of the series, that a window has at least
COMPONENTS = 8
PENALTY = 60.0  # what a change point costs, times log N and C^(1/3): channels change together, but not quite
APART = 0.8  # of two states' means, times C^(3/4)
SHORTEST = 24  # tokens of a segment
LONG = 200_000  # rows in which a period is looked for; longer series are thinned


def segment_unsupervised(x_TC: NDArray[np.floating], states: int | None = None) -> Ints:
    """[T] int64, the state of each row, numbered by first appearance. Nothing is random.

    states: how many, at most; None: as many as differ. Rows must be finite. Raises ValueError for fewer than
    one state.
    """
    if states is not None and states < 1:
        raise ValueError(f"{states} states")
    T = len(x_TC)
    if T < FEWEST or states == 1:
        return np.zeros(T, np.int64)
    width = max(2, min(max(period(x_TC) // 2, int(SHARE * T), 8), T // 8))
    stride = max(1, width // 8)
    z_ND = _components(_features(x_TC, width, stride))
    N = len(z_ND)
    C = x_TC.shape[1]
    penalty, shortest = PENALTY * np.log(N) * C ** (1 / 3), SHORTEST
    cuts = bottom_up(z_ND, penalty, shortest)
    while states is not None and len(cuts) <= states and shortest > 1:
        penalty, shortest = penalty / 2, max(1, shortest * 3 // 4)
        cuts = bottom_up(z_ND, penalty, shortest)
    sums = np.concatenate([np.zeros((1, z_ND.shape[1])), z_ND.cumsum(0)])
    mean_SD = np.diff(sums[cuts], axis=0) / np.diff(cuts)[:, None]
    state_N = np.repeat(_clusters(mean_SD, APART * C**0.75, states), np.diff(cuts))
    return by_appearance(state_N[np.minimum(np.arange(T) // stride, N - 1)])


def by_appearance(labels_T: NDArray[np.integer]) -> Ints:
    """The same partition, numbered 0, 1, ... in the order in which its parts first come."""
    _, first, label_T = np.unique(labels_T, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[label_T]


def period(x_TC: NDArray[np.floating]) -> int:
    """The lag, from 8 rows to an eighth of the series, at which the autocorrelation, averaged over channels,
    has its highest peak; 16 (or an eighth, if less) where it has none."""
    from scipy.fft import irfft, next_fast_len, rfft

    step = -(-len(x_TC) // LONG)
    T = len(x_TC) // step
    size = next_fast_len(2 * T)
    total_T = np.zeros(T)
    for c in range(x_TC.shape[1]):
        x_T = x_TC[: T * step, c].astype(np.float64).reshape(T, step).mean(1)
        power = np.abs(rfft(x_T - x_T.mean(), size)) ** 2
        found_T = irfft(power, size)[:T]
        total_T += found_T / max(float(found_T[0]), 1e-12)
    # each lag is seen T - lag times
    curve = total_T[: T // 8 + 2] * T / (T - np.arange(T // 8 + 2))
    (peaks,) = np.nonzero((curve[1:-1] > curve[:-2]) & (curve[1:-1] >= curve[2:]))
    peaks = peaks + 1
    peaks = peaks[peaks >= 8]
    lag = int(peaks[curve[peaks].argmax()]) if len(peaks) else min(16, max(T // 8, 1))
    return lag * step


def _features(x_TC: NDArray[np.floating], width: int, stride: int) -> Floats:
    """[N,F]: over windows of `width` and twice that, each channel's mean, log std, log mean |dx|, cube root
    of the third moment, and energies of the bands between moving means of width/32 to width/2."""
    T, C = x_TC.shape
    at_N = np.minimum(np.arange(-(-T // stride)) * stride + stride // 2, T - 1)
    windows = (width, 2 * width)
    columns: list[Floats] = []
    for c in range(C):
        x_T = x_TC[:, c].astype(np.float64)
        x_T = (x_T - x_T.mean()) / max(float(x_T.std()), 1e-9)
        level = _Moving(x_T, windows[-1])
        first = [level.mean(w, at_N) for w in windows]
        second = _means(x_T * x_T, windows, at_N)
        third = _means(x_T**3, windows, at_N)
        rough = _means(np.abs(np.diff(x_T, prepend=x_T[:1])), windows, at_N)
        for m, s, t, d in zip(first, second, third, rough, strict=True):
            spread = np.sqrt(np.maximum(s - m * m, 0))
            columns += [m, np.log(spread + 0.01), np.log(d + 0.001), np.cbrt(t - 3 * m * s + 2 * m**3)]
        low_T = x_T
        for b in sorted({max(2, round(width / part)) for part in (32, 16, 8, 4, 2)}):
            next_T = level.mean(b)
            energy = _means((low_T - next_T) ** 2, windows, at_N)
            columns += [np.log(np.sqrt(np.maximum(e, 0)) + 0.01) for e in energy]
            low_T = next_T
    return np.stack(columns, 1)


def _means(values_T: Floats, windows: tuple[int, ...], at_N: Ints) -> list[Floats]:
    moving = _Moving(values_T, max(windows))
    return [moving.mean(w, at_N) for w in windows]


class _Moving:
    """Moving means by differences of a running sum; edges repeat."""

    def __init__(self, values_T: Floats, widest: int) -> None:
        self.pad, self.rows = widest // 2 + 1, len(values_T)
        self.sums = np.zeros(self.rows + 2 * self.pad + 1)
        np.cumsum(np.pad(values_T, self.pad, mode="edge"), out=self.sums[1:])

    def mean(self, width: int, at_N: Ints | None = None) -> Floats:
        first = self.pad - width // 2
        if at_N is None:
            low_T = self.sums[first : first + self.rows]
            found: Floats = (self.sums[first + width : first + width + self.rows] - low_T) / width
            return found
        chosen: Floats = (self.sums[at_N + (first + width)] - self.sums[at_N + first]) / width
        return chosen


def _components(feature_NF: Floats) -> Floats:
    """[N,D] principal components of standardised features; their common scale is kept."""
    spread_F = feature_NF.std(0)
    z_NF = (feature_NF - feature_NF.mean(0)) / np.maximum(spread_F, 1e-6)
    u_ND, s_D, _ = np.linalg.svd(z_NF, full_matrices=False)
    found: Floats = (u_ND * s_D)[:, :COMPONENTS]
    return found


def bottom_up(z_ND: Floats, penalty: float, shortest: int) -> Ints:
    """[S+1] cuts from 0 to N: neighbours are merged, those first whose merging adds least squared error,
    until it would add `penalty` and both have `shortest` tokens."""
    N = len(z_ND)
    if N < 2:
        return np.array([0, N])
    mean, size = list(z_ND), [1.0] * N
    last, after, version = list(range(-1, N - 1)), [*range(1, N), -1], [0] * N
    joined = [False] * N
    gap_N = np.diff(z_ND, axis=0)
    heap = [(float(cost), i, i + 1, 0, 0) for i, cost in enumerate((gap_N * gap_N).sum(1) / 2)]
    heapq.heapify(heap)

    def offer(i: int, j: int) -> None:
        gap_D = mean[i] - mean[j]
        cost = size[i] * size[j] / (size[i] + size[j]) * float(gap_D @ gap_D)
        heapq.heappush(heap, (cost, i, j, version[i], version[j]))

    while heap:
        cost, i, j, at_i, at_j = heapq.heappop(heap)
        if joined[i] or joined[j] or version[i] != at_i or version[j] != at_j:
            continue
        if cost >= penalty and min(size[i], size[j]) >= shortest:
            continue
        total = size[i] + size[j]
        mean[i] = (mean[i] * size[i] + mean[j] * size[j]) / total
        size[i], joined[j], after[i] = total, True, after[j]
        version[i] += 1
        if after[i] >= 0:
            last[after[i]] = i
            offer(i, after[i])
        if last[i] >= 0:
            offer(last[i], i)
    return np.array([i for i in range(N) if not joined[i]] + [N])


def _clusters(mean_SD: Floats, apart: float, states: int | None) -> Ints:
    """[S] by average linkage, cut at a distance or to a number of states."""
    if len(mean_SD) < 2:
        return np.zeros(len(mean_SD), np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage(mean_SD, "average")
    chosen = (apart, "distance") if states is None else (states, "maxclust")
    return np.asarray(fcluster(tree, *chosen), np.int64)
