"""Seeded labelled series without end: states in an order (state_orders), rendered as a world's signals
(state_worlds), seen by sensors (nuisances). The shipped segmentation model learns from nothing else. What to
ask about them, and where to click, is not said here. No torch here.

Shape suffixes: T rows, C channels, L latent sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from memtoken_cli.data.nuisances import Rig, draw_rig
from memtoken_cli.data.state_orders import Plan, Run, draw_plan, draw_runs
from memtoken_cli.data.state_templates import F32
from memtoken_cli.data.state_worlds import World, draw_world
from memtoken_cli.io.atomic import write_bytes

MOST_STATES, MOST_CHANNELS = 10, 24


@dataclass(frozen=True)
class Sample:
    """values_TC float32; states_T int64, ids of `names`; coarse_T the same for `coarse_names`, or None where
    the world has no regimes. A second series of the world uses the same ids."""

    values_TC: F32
    states_T: NDArray[np.int64]
    coarse_T: NDArray[np.int64] | None
    names: tuple[str, ...]
    coarse_names: tuple[str, ...]


@overload
def make(
    generator: Generator,
    rows: int | None = None,
    channels: int | None = None,
    states: int | None = None,
    pair: Literal[False] = False,
    gaps: bool = False,
) -> Sample: ...


@overload
def make(
    generator: Generator,
    rows: int | None = None,
    channels: int | None = None,
    states: int | None = None,
    *,
    pair: Literal[True],
    gaps: bool = False,
) -> tuple[Sample, Sample]: ...


def make(
    generator: Generator,
    rows: int | None = None,
    channels: int | None = None,
    states: int | None = None,
    pair: bool = False,
    gaps: bool = False,
) -> Sample | tuple[Sample, Sample]:
    """A series of a world drawn for it, or with `pair` two of one world whose sensors differ.

    Args:
        rows: 1,024 to 16,384 where not told; at least 64. channels: 1 to 24. states: 2 to 10.
        gaps: missing rows are NaN; else straight lines, as readers make of short gaps.

    Raises ValueError for fewer than 64 rows, no channel or no state.
    """
    made = make_many(generator, 2 if pair else 1, rows, channels, states, gaps)
    return (made[0], made[1]) if pair else made[0]


def make_many(
    generator: Generator,
    count: int,
    rows: int | None = None,
    channels: int | None = None,
    states: int | None = None,
    gaps: bool = False,
) -> list[Sample]:
    """`count` series of one world with the same state ids: other subjects, other mountings of the sensors,
    most of them in the order of the first one. Arguments and errors as in `make`."""
    rows = int(np.exp(generator.uniform(np.log(1024), np.log(16384)))) if rows is None else rows
    channels = _channels(generator) if channels is None else channels
    if states is None:
        states = int(generator.integers(2, max(3, min(MOST_STATES, rows // 300)) + 1))
    if rows < 64 or channels < 1 or states < 1:
        raise ValueError(f"{rows} rows, {channels} channels, {states} states: at least 64, 1 and 1")
    null = states > 2 and generator.random() < 0.15
    regimes = states > 3 and not null and generator.random() < 0.3
    sources = int(generator.integers(1, channels + 1, 2).max())
    plan = draw_plan(generator, states, rows, null, regimes)
    world = draw_world(generator, sources, states, null, plan.typical)
    rig = draw_rig(generator, sources, channels)
    made = [_sample(generator, world, rig, plan, rows, regimes, gaps)]
    step = float(10 ** generator.uniform(-2, -0.8))
    for _ in range(1, count):
        other = world.varied(generator, step)
        fresh = generator.random() < 0.4  # else the same programme
        order = draw_plan(generator, states, rows, null, regimes) if fresh else plan
        moved = rig.varied(generator, float(generator.uniform(0.02, 0.4)))
        made.append(_sample(generator, other, moved, order, rows, regimes, gaps))
    return made


def _channels(generator: Generator) -> int:
    low, high = ((1, 1), (2, 4), (5, 9), (10, MOST_CHANNELS))[
        int(generator.choice(4, p=(0.2, 0.3, 0.3, 0.2)))
    ]
    return int(generator.integers(low, high + 1))


def _sample(
    generator: Generator, world: World, rig: Rig, plan: Plan, rows: int, regimes: bool, gaps: bool
) -> Sample:
    rate = float(2 ** generator.uniform(-1, 1)) if generator.random() < 0.25 else 1.0
    inner = max(64, round(rows * rate))  # resampled afterwards
    runs = draw_runs(generator, plan, inner, world.group)
    latent_TL = render(generator, world, runs, inner)
    states_T = np.repeat([run.state for run in runs], [run.rows for run in runs]).astype(np.int64)
    if inner != rows:
        at_T = np.linspace(0, inner - 1, rows)
        left_T = at_T.astype(np.int64)
        right_T = np.minimum(left_T + 1, inner - 1)
        share_T1 = (at_T - left_T).astype(np.float32)[:, None]
        latent_TL = latent_TL[left_T] * (1 - share_T1) + latent_TL[right_T] * share_T1
        states_T = states_T[np.rint(at_T).astype(np.int64)]
    values_TC = rig.record(generator, latent_TL, gaps)
    group = np.asarray(world.group, np.int64)
    return Sample(
        values_TC=np.ascontiguousarray(values_TC, np.float32),
        states_T=states_T,
        coarse_T=group[states_T] if regimes else None,
        names=tuple(f"state{index}" for index in range(len(world.states))),
        coarse_names=tuple(f"regime{index}" for index in range(max(world.group) + 1)) if regimes else (),
    )


def render(generator: Generator, world: World, runs: list[Run], rows: int) -> F32:
    """[T,L]: each run with some rows more on either side, faded into its neighbours."""
    total_TL = np.zeros((rows, world.sources), np.float32)
    start, before = 0, 0  # before: half of the blend at the start of this run
    for place, run in enumerate(runs):
        after = 0
        if place + 1 < len(runs):
            after = int(generator.integers(world.blend // 2 + 1))
            after = min(after, run.rows // 2, runs[place + 1].rows // 2)
        stop = start + run.rows
        seen_TL = world.states[run.state].render(
            generator, before + run.rows + after, world.sources, world.wobble
        )
        if world.even:
            seen_TL = (seen_TL - seen_TL.mean(0)) / (seen_TL.std(0) + np.float32(0.01))
        weight_T = np.ones(len(seen_TL), np.float32)
        weight_T[: 2 * before] = _rise(2 * before)
        if after:
            weight_T[-2 * after :] = 1 - _rise(2 * after)
        total_TL[start - before : stop + after] += seen_TL * weight_T[:, None]
        start, before = stop, after
    for part, size in world.background:
        total_TL += np.float32(size) * part.render(generator, rows, 1.0)
    return _blurred(total_TL, world.smooth)


def _blurred(x_TL: F32, span: int) -> F32:
    """Two moving means of `span` rows: a triangle."""
    if span < 2:
        return x_TL
    from scipy.ndimage import uniform_filter1d

    once = uniform_filter1d(x_TL, span, axis=0, mode="nearest")
    return np.asarray(uniform_filter1d(once, span, axis=0, mode="nearest"), np.float32)


def _rise(rows: int) -> F32:
    return ((np.arange(rows) + 0.5) / max(1, rows)).astype(np.float32)


def write_csv(
    sample: Sample,
    path: Path | str,
    rate: float = 50.0,
    labelled: bool = True,
    channels: Sequence[str] | None = None,
) -> None:
    """CSV: `t` in seconds at `rate` rows a second, `c0, c1, ...` or the names told, and the column `state`
    (ids) where labelled. NaN is an empty cell."""
    columns = channels or [f"c{index}" for index in range(sample.values_TC.shape[1])]
    lines = [",".join(["t", *columns, *(["state"] if labelled else [])])]
    for row, values in enumerate(sample.values_TC):
        cells = [f"{row / rate:.10g}", *("" if np.isnan(value) else f"{value:.4g}" for value in values)]
        if labelled:
            cells.append(str(int(sample.states_T[row])))
        lines.append(",".join(cells))
    write_bytes(Path(path), ("\n".join(lines) + "\n").encode())
