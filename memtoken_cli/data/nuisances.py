"""What lies between a state and its recording: sensors that mix the sources, gain, offset, sign, noise,
drift, clipping, quantisation, dropped channels, gaps. Nothing here depends on the state. No torch here.

Shape suffixes: T rows, L latent sources, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from memtoken_cli.data.state_signals import slow
from memtoken_cli.data.state_templates import F32


@dataclass(frozen=True)
class Rig:
    """How channels see the sources; noise_C and drift_C are shares of a channel's own spread."""

    mix_LC: F32
    gain_C: F32
    offset_C: F32
    noise_C: F32
    drift_C: F32

    def varied(self, generator: Generator, step: float) -> Rig:
        """Another mounting of the same sensors: other gains, offsets and noise, mixed a little anew."""
        count = len(self.gain_C)
        turn_CC = np.eye(count, dtype=np.float32)
        turn_CC += np.float32(0.3 * step / np.sqrt(count)) * generator.standard_normal(
            (count, count), np.float32
        )
        size = np.exp(step * generator.standard_normal(count)).astype(np.float32)
        return replace(
            self,
            mix_LC=(self.mix_LC @ turn_CC).astype(np.float32),
            gain_C=self.gain_C * size,
            offset_C=self.offset_C + np.float32(step) * generator.standard_normal(count, np.float32),
            noise_C=self.noise_C * np.exp(step * generator.standard_normal(count)).astype(np.float32),
        )

    def record(self, generator: Generator, latent_TL: F32, gaps: bool) -> F32:
        """[T,C] from [T,L]. gaps: leave NaN where rows are missing; else straight lines, as readers do."""
        x_TC = latent_TL @ self.mix_LC
        spread_C = x_TC.std(0) + np.float32(1e-6)
        x_TC += self.noise_C * spread_C * generator.standard_normal(x_TC.shape, np.float32)
        _drift(generator, x_TC, self.drift_C * spread_C)
        _faults(generator, x_TC)
        x_TC = x_TC * self.gain_C + self.offset_C
        if generator.random() < 0.05:
            _gaps(generator, x_TC, gaps)
        return x_TC


def draw_rig(generator: Generator, sources: int, channels: int) -> Rig:
    """Channels in correlated groups: each listens to one source mostly, and to others by a world's leak."""
    own = np.sort(generator.integers(sources, size=channels))
    own[: min(sources, channels)] = np.arange(min(sources, channels))
    mix = np.zeros((sources, channels))
    mix[own, np.arange(channels)] = generator.choice((-1.0, 1.0), channels)
    leak = float(generator.choice((0.0, 0.1, 0.3, 1.0)))
    mix += leak / np.sqrt(sources) * generator.standard_normal(mix.shape)
    noise = 10 ** generator.uniform(-3.3, -0.5) * np.exp(0.5 * generator.standard_normal(channels))
    if channels > 2 and generator.random() < 0.2:  # channels that say nothing
        noise[generator.random(channels) < generator.uniform(0, 0.4)] = 10.0
    drift = generator.random(channels) * float(generator.choice((0.0, 0.0, 0.05, 0.15, 0.5)))
    return Rig(
        mix.astype(np.float32),
        np.exp(generator.standard_normal(channels)).astype(np.float32),
        generator.standard_normal(channels).astype(np.float32),
        noise.astype(np.float32),
        drift.astype(np.float32),
    )


def _drift(generator: Generator, x_TC: F32, size_C: F32) -> None:
    rows = len(x_TC)
    for channel in np.flatnonzero(size_C > 1e-3):
        curve = slow(generator, rows, rows / generator.uniform(1, 4))
        x_TC[:, channel] += size_C[channel] * curve.astype(np.float32)


def _faults(generator: Generator, x_TC: F32) -> None:
    """Clipping, quantisation, spikes, a sensor that stays at one value for a while; each seldom."""
    rows, channels = x_TC.shape
    if generator.random() < 0.08:
        low, high = np.quantile(x_TC, (generator.uniform(0, 0.05), generator.uniform(0.95, 1)), axis=0)
        np.clip(x_TC, low.astype(np.float32), high.astype(np.float32), out=x_TC)
    if generator.random() < 0.12:
        step_C = x_TC.std(0) * np.float32(10 ** generator.uniform(-2, -0.4)) + np.float32(1e-6)
        x_TC[:] = np.round(x_TC / step_C) * step_C
    if generator.random() < 0.06:
        count = int(generator.integers(1, 2 + rows // 300))
        at, where = generator.integers(rows, size=count), generator.integers(channels, size=count)
        x_TC[at, where] += 5 * x_TC.std() * generator.standard_normal(count, np.float32)
    if channels > 1 and generator.random() < 0.06:
        channel, start = int(generator.integers(channels)), int(generator.integers(rows))
        stop = start + int(rows * generator.uniform(0.02, 0.3))
        x_TC[start:stop, channel] = x_TC[start, channel]


def _gaps(generator: Generator, x_TC: F32, keep: bool) -> None:
    rows = len(x_TC)
    lost_T = np.zeros(rows, bool)
    for _ in range(int(generator.integers(1, 6))):
        start = int(generator.integers(1, rows - 2))
        lost_T[start : min(rows - 1, start + int(generator.integers(1, 60)))] = True
    lost, there = np.flatnonzero(lost_T), np.flatnonzero(~lost_T)
    for channel in range(x_TC.shape[1]):
        x_TC[lost, channel] = np.nan if keep else np.interp(lost, there, x_TC[there, channel])
