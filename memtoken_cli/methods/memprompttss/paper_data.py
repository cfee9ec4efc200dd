"""Labelled series as the paper's protocol takes them: subsequences in the files' order, in three parts.

Class ids are those of `merge_labels`, level by level, over all files; all levels share the model's outputs.

Shape suffixes: B subsequences, L rows of one, C channels, G levels, X rows of a series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.data.labelled import Labelled, read_labelled
from memtoken_cli.engine import seeds
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss.config import Config, DataConfig
from memtoken_cli.methods.memprompttss.placement import Said, say, single_rows, spread_rows, stacked
from memtoken_cli.methods.memprompttss.windows import Geometry, merge_labels


@dataclass(frozen=True)
class Part:
    """Subsequences: x_BLC standardised, y_GBL classes a level, real_B: rows that are no padding; names: the
    series and first row of each."""

    x_BLC: Tensor
    y_GBL: Tensor
    real_B: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.real_B)

    def real_BL(self, of: Tensor | None = None) -> Tensor:
        """True where a row is no padding."""
        real_B = self.real_B if of is None else self.real_B[of]
        return torch.arange(self.x_BLC.shape[1]) < real_B[:, None]


@dataclass(frozen=True)
class Material:
    """train, valid, test. channels: names of those that vary; mean_C, std_C: what x was standardised with.
    classes: the ids as written behind every class, level by level; digest: of the parts."""

    train: Part
    valid: Part
    test: Part
    channels: tuple[str, ...]
    mean_C: Tensor
    std_C: Tensor
    classes: tuple[tuple[tuple[int, ...], ...], ...]
    digest: str

    @property
    def outputs(self) -> int:
        """K: as many as the finest level has."""
        return max(map(len, self.classes))

    @property
    def levels(self) -> int:
        return len(self.classes)


def material(data: DataConfig, config: Config, seed: int) -> Material:
    """Everything that a backend is trained and examined on. Raises DataError where the files do not agree, or
    leave a part without a subsequence."""
    source = _series(data, seed)
    target = [] if data.transfer is None else read_labelled(data.transfer, data.channels)
    _agree([*source, *target])
    y_by_level, classes = _levels([*source, *target], data)
    geometry = Geometry(config.rows, config.stride, config.windows)
    pad = config.tail == "pad"
    own = [piece for i, s in enumerate(source) for piece in _pieces(s, i, geometry, pad)]
    other = [piece for i, s in enumerate(target, len(source)) for piece in _pieces(s, i, geometry, pad)]
    parts = _split(own, other, data, config)
    series = [*source, *target]
    used = series if config.stats_from == "all" else None
    mean_C, std_C, kept = _statistics(used, parts[0], series)
    train, valid, test = (_part(p, series, y_by_level, geometry, mean_C, std_C, kept) for p in parts)
    digest = hashlib.sha256(repr([_names(p, series) for p in parts]).encode())
    for s in series:
        digest.update(np.ascontiguousarray(s.values_TC).tobytes() + s.states_T.tobytes())
    names = tuple(series[0].channels[i] for i in kept)
    mean, std = torch.tensor(mean_C[kept]), torch.tensor(std_C[kept])
    return Material(train, valid, test, names, mean, std, classes, digest.hexdigest())


Piece = tuple[int, int, int]
"""Index of the series, first row, rows that are there."""


def _series(data: DataConfig, seed: int) -> list[Labelled]:
    if data.path is not None:
        found = read_labelled(data.path, data.channels)
        return found if data.limit is None else found[: data.limit]
    from memtoken_cli.data.states import make

    made = data.generated
    found = []
    for i in range(made.series):
        rng = np.random.default_rng(seeds.derive(seed, "series", i))
        sample = make(rng, rows=made.rows, channels=made.channels, states=made.states)
        names = tuple(f"c{c}" for c in range(sample.values_TC.shape[1]))
        values_TC = np.nan_to_num(sample.values_TC).astype(np.float32)
        found.append(Labelled(f"series-{i:03d}", values_TC, sample.states_T.astype(np.int64), names))
    return found


def _agree(series: Sequence[Labelled]) -> None:
    for s in series[1:]:
        if s.channels != series[0].channels:
            raise DataError(
                f"columns {', '.join(s.channels)} where {series[0].name} has {', '.join(series[0].channels)}",
                hint="files of one folder have the same feature columns",
                where=s.source,
            )


def _levels(
    series: Sequence[Labelled], data: DataConfig
) -> tuple[list[list[NDArray[np.int64]]], tuple[tuple[tuple[int, ...], ...], ...]]:
    """Classes of every level and series, and the written ids behind each class."""
    every_X = np.concatenate([s.states_T for s in series])
    cuts = np.cumsum([s.rows for s in series])[:-1]
    by_level, classes = [], []
    for level in range(data.levels):
        merged_X = merge_labels(every_X, data.group, level)
        by_level.append(np.split(merged_X, cuts))
        ids = [tuple(np.unique(every_X[merged_X == k]).tolist()) for k in range(int(merged_X.max()) + 1)]
        classes.append(tuple(ids))
    return by_level, tuple(classes)


def _pieces(series: Labelled, index: int, geometry: Geometry, pad: bool) -> list[Piece]:
    L = geometry.length
    starts = range(0, series.rows if pad else series.rows - L + 1, L)
    return [(index, start, min(L, series.rows - start)) for start in starts]


def _split(
    own: list[Piece], other: list[Piece], data: DataConfig, config: Config
) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """Parts in the files' order; the shares of numbers that do not divide are rounded down."""
    n = len(own)
    if other:
        cut = int((1 - data.valid) * n) if data.valid else n
        trained = own if config.transfer_val == "train" else own[:cut]
        parts = (trained, own[cut:], other)
    else:
        first, second = int(data.train * n), int((data.train + data.valid) * n + 1e-9)
        parts = (own[:first], own[first:second], own[second:])
    names = ("train", "valid", "test") if data.valid else ("train", "test")
    lacking = [name for name, part in zip(("train", "valid", "test"), parts, strict=True) if not part]
    lacking = [name for name in lacking if name in names]
    if lacking:
        raise DataError(
            f"{n} subsequences of {config.length} rows leave none for {', '.join(lacking)}",
            hint="memprompttss.rows=N or memprompttss.windows=N, smaller, or longer series",
        )
    return parts


def _statistics(
    everywhere: Sequence[Labelled] | None, train: Sequence[Piece], series: Sequence[Labelled]
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[int]]:
    """Mean and std of every channel, and the channels whose std is not 0."""
    if everywhere is None:
        rows = np.concatenate([series[i].values_TC[start : start + real] for i, start, real in train])
    else:
        rows = np.concatenate([s.values_TC for s in everywhere])
    wide = rows.astype(np.float64)
    mean_C, std_C = wide.mean(0).astype(np.float32), wide.std(0).astype(np.float32)
    kept = [i for i, std in enumerate(std_C) if std > 0]
    if not kept:
        raise DataError("every channel is constant", where=series[0].source or None)
    return mean_C, std_C, kept


def _part(
    pieces: Sequence[Piece],
    series: Sequence[Labelled],
    y_by_level: Sequence[Sequence[NDArray[np.int64]]],
    geometry: Geometry,
    mean_C: NDArray[np.float32],
    std_C: NDArray[np.float32],
    kept: list[int],
) -> Part:
    """Padding repeats the last row."""
    L = geometry.length
    if not pieces:
        empty = torch.zeros(len(y_by_level), 0, L, dtype=torch.int64)
        return Part(torch.zeros(0, L, len(kept)), empty, torch.zeros(0, dtype=torch.int64), ())

    def filled(x: NDArray[np.generic], start: int, real: int) -> NDArray[np.generic]:
        return x[np.minimum(np.arange(start, start + L), start + real - 1)]

    x_BLC = np.stack([filled(series[i].values_TC, start, real) for i, start, real in pieces])
    x_BLC = (x_BLC[..., kept] - mean_C[kept]) / std_C[kept]
    y_GBL = np.stack([[filled(y[i], start, real) for i, start, real in pieces] for y in y_by_level])
    real_B = torch.tensor([real for _, _, real in pieces])
    x = torch.from_numpy(x_BLC.astype(np.float32))
    return Part(x, torch.from_numpy(y_GBL), real_B, _names(pieces, series))


def _names(pieces: Sequence[Piece], series: Sequence[Labelled]) -> tuple[str, ...]:
    """Pieces under their series' names."""
    return tuple(f"{series[i].name}@{start}" for i, start, _ in pieces)


@dataclass(frozen=True)
class Asking:
    """How prompts are drawn. hit: the share of windows that spread ones lie in."""

    geometry: Geometry
    placement: str
    prompts: int
    hit: float = 0.25
    p_wrong: float = 0.0

    @classmethod
    def of(cls, config: Config, prompts: int, hit: float, p_wrong: float = 0.0) -> Asking:
        geometry = Geometry(config.rows, config.stride, config.windows)
        return cls(geometry, config.placement, prompts, hit, p_wrong)

    def with_hit(self, hit: float) -> Asking:
        return replace(self, hit=hit)

    def draw(self, part: Part, of: Sequence[int], level: int, classes: int, *names: seeds.Name) -> Said:
        """Prompts of these subsequences, each from the stream `names` (a seed first) and its own name."""
        said = []
        for b in of:
            seed, *rest = names
            generator = seeds.generator(int(seed), "said", *rest, part.names[b], level)
            if self.placement == "single":
                row_P = single_rows(self.geometry, self.hit, self.prompts).clamp(max=int(part.real_B[b]) - 1)
            else:
                row_P = spread_rows(self.geometry, self.hit, self.prompts, int(part.real_B[b]), generator)
            said.append(say(row_P, part.y_GBL[level, b], classes, self.p_wrong, generator))
        return stacked(said)
