"""What a generated state looks like: parts that are drawn, varied a little, and rendered for as many rows as
wanted. Which states follow which, and what a sensor does to them, is said elsewhere. No torch here.

Shape suffixes: T rows, L latent sources, P points of a template, S set points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from memtoken_cli.data.state_templates import F32, POINTS, SHAPES, waves

SETTLE = 256  # rows at most for a filter to forget its start


class Part(Protocol):
    """One ingredient of a state; a state is the sum of its parts."""

    def varied(self, generator: Generator, step: float) -> Self:
        """A neighbour of this part; step 0 is the part itself, 1 hardly related."""
        ...

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        """[T,L], another realisation each time. tempo: 2 runs at double speed."""
        ...


def slow(generator: Generator, rows: int, span: float) -> NDArray[np.float64]:
    """A smooth random curve [T] of about unit size, which turns every `span` rows."""
    knots = generator.standard_normal(int(rows / span) + 3)
    shift = generator.random()
    return np.interp(np.arange(rows) / span + shift, np.arange(len(knots)), knots)


def gains(generator: Generator, sources: int, spread: float, active: float) -> F32:
    """Signed log-normal gains [L], each zero with chance 1 - active, never all."""
    sign = generator.choice((-1.0, 1.0), sources)
    size = np.exp(spread * generator.standard_normal(sources))
    on = generator.random(sources) < active
    on[generator.integers(sources)] = True
    return np.asarray(sign * size * on, np.float32)


def _active(generator: Generator) -> float:
    return float(generator.choice((0.35, 0.9, 0.9)))  # an arm alone, or all of a body


def _moved(generator: Generator, value_L: F32, step: float, scale: float = 1.0) -> F32:
    return value_L + np.float32(step * scale) * generator.standard_normal(value_L.shape, np.float32)


def _scaled(generator: Generator, value: float, step: float) -> float:
    return float(value * np.exp(step * generator.standard_normal()))


@dataclass(frozen=True)
class Level:
    """A posture or a set point that wanders: mean_L plus wander_L times a slow curve of `span` rows."""

    mean_L: F32
    wander_L: F32
    span: float

    @classmethod
    def draw(cls, generator: Generator, sources: int, period: float) -> Self:
        mean = generator.standard_normal(sources, np.float32)
        wander = 10 ** generator.uniform(-2.5, -0.3)
        return cls(
            mean,
            gains(generator, sources, 0.5, 0.8) * np.float32(wander),
            float(period * np.exp(generator.uniform(-0.5, 2.5))),
        )

    def varied(self, generator: Generator, step: float) -> Self:
        return replace(self, mean_L=_moved(generator, self.mean_L, step, 0.7))

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        count = 1 + (len(self.mean_L) > 2)
        curve = np.stack([slow(generator, rows, self.span / tempo) for _ in range(count)], 1)
        pick = np.arange(len(self.mean_L)) % curve.shape[1]
        return self.mean_L + self.wander_L * curve[:, pick].astype(np.float32)


@dataclass(frozen=True)
class Cycle:
    """A template repeated with jitter (gait, heart beats, machines): template_PL every `period` rows.

    unrest: how far the tempo wanders. swell: how far the size does."""

    template_PL: F32
    period: float
    unrest: float
    swell: float

    @classmethod
    def draw(cls, generator: Generator, sources: int, period: float) -> Self:
        shape = SHAPES[generator.integers(len(SHAPES))](generator, sources)
        shape = shape - shape.mean(0)
        shape = shape / (shape.std(0) + 1e-6) * gains(generator, sources, 0.5, _active(generator))
        return cls(
            shape.astype(np.float32),
            _scaled(generator, period, 0.35),
            float(generator.uniform(0, 0.15)),
            float(generator.uniform(0, 0.3)),
        )

    def varied(self, generator: Generator, step: float) -> Self:
        other = waves(generator, self.template_PL.shape[1])
        size = np.exp(step * 0.7 * generator.standard_normal(self.template_PL.shape[1]))
        shape = (self.template_PL + step * 0.7 * self.template_PL.std() * other) * size
        return replace(
            self, template_PL=shape.astype(np.float32), period=_scaled(generator, self.period, step * 0.4)
        )

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        rate = tempo / self.period * np.exp(self.unrest * slow(generator, rows, 1.5 * self.period))
        phase = np.cumsum(rate) + generator.random()
        where = ((phase % 1.0) * POINTS).astype(np.int64) % POINTS
        size = 1 + self.swell * slow(generator, rows, self.period)
        return self.template_PL[where] * size.astype(np.float32)[:, None]


@dataclass(frozen=True)
class Hum:
    """Filtered noise, AR(2) with poles at `radius` and `angle`: vibration, bands of brain waves."""

    gain_L: F32
    radius: float
    angle: float

    @classmethod
    def draw(cls, generator: Generator, sources: int, period: float) -> Self:
        angle = 2 * np.pi / max(3.0, period * np.exp(generator.uniform(-3, 0)))
        radius = float(1 - 10 ** generator.uniform(-2.0, -0.1))
        return cls(
            gains(generator, sources, 0.4, _active(generator)),
            radius,
            float(angle * (generator.random() < 0.8)),
        )

    def varied(self, generator: Generator, step: float) -> Self:
        radius = 1 - min(0.9, _scaled(generator, 1 - self.radius, 1.2 * step))
        size = np.exp(0.8 * step * generator.standard_normal(len(self.gain_L)))
        return replace(
            self,
            gain_L=(self.gain_L * size).astype(np.float32),
            radius=radius,
            angle=min(np.pi, _scaled(generator, self.angle, 0.5 * step)),
        )

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        from scipy.signal import lfilter

        settle = min(SETTLE, int(4 / (1 - self.radius)))
        white = generator.standard_normal((rows + settle, len(self.gain_L)), np.float32)
        a1, a2 = 2 * self.radius * np.cos(min(np.pi, self.angle * tempo)), -(self.radius**2)
        # the stationary variance of an AR(2)
        size = np.sqrt(max(1e-9, (1 + a2) * ((1 - a2) ** 2 - a1**2) / (1 - a2)))
        made = lfilter(np.asarray([size], np.float32), np.asarray([1, -a1, -a2], np.float32), white, axis=0)
        return np.asarray(made[settle:], np.float32) * self.gain_L


@dataclass(frozen=True)
class Chirp:
    """A sine whose frequency sweeps between two ends, there and back, every `span` rows."""

    gain_L: F32
    low: float
    high: float
    span: float

    @classmethod
    def draw(cls, generator: Generator, sources: int, period: float) -> Self:
        low = 1 / (period * np.exp(generator.uniform(0, 1)))
        return cls(
            gains(generator, sources, 0.4, 0.8),
            float(low),
            float(low * generator.uniform(1.5, 5)),
            float(period * generator.uniform(2, 8)),
        )

    def varied(self, generator: Generator, step: float) -> Self:
        low = _scaled(generator, self.low, 0.5 * step)
        return replace(self, low=low, high=low * max(1.2, _scaled(generator, self.high / self.low, step)))

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        at_T = np.arange(rows) * tempo / self.span + generator.random()
        swing_T = np.abs(at_T % 2 - 1)
        phase_T = np.cumsum(tempo * (self.low + (self.high - self.low) * swing_T))
        angle_TL = 2 * np.pi * (phase_T[:, None] + np.arange(len(self.gain_L)) * 0.25 + generator.random())
        seen_TL: F32 = (1.4 * np.sin(angle_TL)).astype(np.float32) * self.gain_L
        return seen_TL


@dataclass(frozen=True)
class Events:
    """Things that happen now and then: decaying pulses, or bursts of noise, `rate` of them a row on average.

    even: 1 makes them come at equal distances. noisy: the share of noise inside."""

    gain_L: F32
    rate: float
    length: float
    even: float
    noisy: float

    @classmethod
    def draw(cls, generator: Generator, sources: int, period: float) -> Self:
        return cls(
            gains(generator, sources, 0.6, 0.6) * np.float32(1.5),
            float(1 / (period * np.exp(generator.uniform(-0.3, 1.2)))),
            float(period * np.exp(generator.uniform(-2.5, -0.5))),
            float(generator.random()),
            float(generator.choice((0.0, 0.0, 1.0, 1.0, 0.5))),
        )

    def varied(self, generator: Generator, step: float) -> Self:
        size = np.exp(0.5 * step * generator.standard_normal(len(self.gain_L)))
        return replace(
            self,
            gain_L=(self.gain_L * size).astype(np.float32),
            rate=_scaled(generator, self.rate, step),
            length=_scaled(generator, self.length, step),
        )

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        from scipy.signal import lfilter

        count = int(rows * self.rate * tempo * 1.5) + 2
        gap = (self.even + (1 - self.even) * generator.exponential(1.0, count)) / (self.rate * tempo)
        at = (np.cumsum(gap) - gap[0] * generator.random()).astype(np.int64)
        spikes_T = np.zeros(rows, np.float32)
        at = at[at < rows]
        spikes_T[at] = np.exp(0.3 * generator.standard_normal(len(at)))
        keep = float(np.exp(-tempo / max(1.0, self.length)))
        rise = float(np.exp(-4 * tempo / max(1.0, self.length)))
        fall_T = lfilter((1.0,), (1.0, -keep), spikes_T) - lfilter((1.0,), (1.0, -rise), spikes_T)
        shape_TL = np.asarray(fall_T, np.float32)[:, None] * self.gain_L
        if not self.noisy:
            return shape_TL
        white_TL = generator.standard_normal(shape_TL.shape, np.float32)
        return shape_TL * (np.float32(1 - self.noisy) + np.float32(self.noisy) * white_TL)


@dataclass(frozen=True)
class Switch:
    """Steps between a few set points, held for `dwell` rows on average: household appliances, valves."""

    level_SL: F32
    dwell: float

    @classmethod
    def draw(cls, generator: Generator, sources: int, period: float) -> Self:
        count = int(generator.integers(2, 5))
        level = generator.standard_normal((count, sources), np.float32) * gains(generator, sources, 0.3, 0.6)
        return cls(level.astype(np.float32), float(period * np.exp(generator.uniform(-0.5, 1))))

    def varied(self, generator: Generator, step: float) -> Self:
        return replace(
            self,
            level_SL=_moved(generator, self.level_SL, step, 0.7),
            dwell=_scaled(generator, self.dwell, step),
        )

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        dwell = max(2.0, self.dwell / tempo)
        lengths = 1 + generator.gamma(2.0, dwell / 2, int(3 * rows / dwell) + 4).astype(np.int64)
        piece_T = np.searchsorted(np.cumsum(lengths), np.arange(rows), side="right")
        state = generator.integers(len(self.level_SL), size=int(piece_T[-1]) + 1)
        return self.level_SL[state[piece_T]]


@dataclass(frozen=True)
class Course:
    """A curve over the whole segment: a tank that fills, a lift that starts and stops, a ramp."""

    knot_SL: F32
    sharp: float

    @classmethod
    def draw(cls, generator: Generator, sources: int, period: float) -> Self:
        count = int(generator.integers(2, 6))
        knots = generator.standard_normal((count, sources), np.float32) * gains(generator, sources, 0.4, 0.7)
        return cls(knots.astype(np.float32), float(generator.choice((1.0, 1.0, 4.0, 30.0))))

    def varied(self, generator: Generator, step: float) -> Self:
        return replace(self, knot_SL=_moved(generator, self.knot_SL, step, 0.7))

    def render(self, generator: Generator, rows: int, tempo: float) -> F32:
        at_T = np.linspace(0, len(self.knot_SL) - 1.001, rows)
        left_T = at_T.astype(np.int64)
        share_T1 = (1 - (1 - (at_T - left_T)) ** self.sharp)[:, None]  # sharp: nearly a jump, then rest
        before_TL, after_TL = self.knot_SL[left_T], self.knot_SL[left_T + 1]
        return (before_TL * (1 - share_T1) + after_TL * share_T1).astype(np.float32)
