"""Closed curves that a state repeats, one beat long: sums of sines, smooth random curves, peaks as of a heart
beat, a machine's steps. How fast and how evenly they repeat is said elsewhere. No torch here.

Shape suffixes: P points of a template, L latent sources, H harmonics.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

F32 = NDArray[np.float32]
POINTS = 256


def waves(generator: Generator, sources: int) -> F32:
    """A sum of 1 to 4 harmonics, each source with phases of its own."""
    at_P = np.arange(POINTS) / POINTS
    orders = generator.choice(np.arange(1, 7), generator.integers(1, 5), replace=False)
    size_HL = generator.standard_normal((len(orders), sources)) / np.sqrt(orders)[:, None]
    turn_HL = generator.uniform(0, 2 * np.pi, (len(orders), sources))
    angle = 2 * np.pi * orders[None, :, None] * at_P[:, None, None] + turn_HL
    return np.asarray((size_HL * np.sin(angle)).sum(1), np.float32)


def _smooth(generator: Generator, sources: int) -> F32:
    """A smooth random closed curve through 5 to 16 points."""
    count = int(generator.integers(5, 17))
    knots = generator.standard_normal((count, sources))
    spectrum = np.fft.rfft(knots, axis=0)
    full = np.zeros((POINTS // 2 + 1, sources), complex)
    full[: len(spectrum)] = spectrum
    return np.fft.irfft(full, POINTS, axis=0).astype(np.float32)


def _peaks(generator: Generator, sources: int) -> F32:
    """A few narrow and broad bumps of either sign, as in an electrocardiogram."""
    at_P1 = np.arange(POINTS)[:, None] / POINTS
    total = np.zeros((POINTS, sources))
    for _ in range(int(generator.integers(2, 6))):
        width = 10 ** generator.uniform(-1.9, -0.8)
        apart = (at_P1 - generator.random() + 0.02 * generator.standard_normal(sources) + 0.5) % 1 - 0.5
        total += generator.standard_normal(sources) * np.exp(-0.5 * (apart / width) ** 2)
    return total.astype(np.float32)


def _pieces(generator: Generator, sources: int) -> F32:
    """Constant or sloped pieces with jumps between: squares, saws, a machine's steps."""
    count = int(generator.integers(2, 7))
    edges = np.sort(generator.choice(np.arange(8, POINTS - 8), count - 1, replace=False))
    piece_P = np.searchsorted(edges, np.arange(POINTS), side="right")
    level_PL = generator.standard_normal((count, sources))[piece_P]
    slope_PL = (generator.standard_normal((count, sources)) * (generator.random() < 0.5))[piece_P]
    return (level_PL + slope_PL * (np.arange(POINTS)[:, None] / POINTS - 0.5)).astype(np.float32)


SHAPES = (waves, waves, _smooth, _smooth, _peaks, _pieces)
