"""What kinds of recordings there are: of which parts their states consist, how often and how large.
The states themselves are drawn in state_worlds. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from numpy.random import Generator

from memtoken_cli.data.state_signals import Chirp, Course, Cycle, Events, Hum, Level, Part, Switch


class Kind(Protocol):
    def draw(self, generator: Generator, sources: int, period: float) -> Part: ...


@dataclass(frozen=True)
class Share:
    """A kind of part, the chance that a state has one, and the range of its size (log-uniform)."""

    kind: Kind
    chance: float
    low: float
    high: float


@dataclass(frozen=True)
class Theme:
    """What the states of a world are made of. usual: how often such a world is drawn. calm: the chance that a
    state moves less than others, as sitting beside running. blur: the chance of smooth worlds."""

    usual: float
    calm: float
    blur: float
    shares: tuple[Share, ...]


THEMES = {
    "body": Theme(  # motion capture: postures and gaits
        2.5,
        0.45,
        0.6,
        (
            Share(Level, 1.0, 0.4, 2.0),
            Share(Cycle, 0.75, 0.2, 1.5),
            Share(Hum, 0.9, 0.01, 0.3),
            Share(Events, 0.15, 0.3, 1.0),
        ),
    ),
    "inertial": Theme(  # accelerometers, gyroscopes: vigour tells as much as posture
        2.0,
        0.8,
        0.2,
        (
            Share(Level, 1.0, 0.1, 0.8),
            Share(Cycle, 0.8, 0.3, 1.5),
            Share(Hum, 1.0, 0.05, 0.8),
            Share(Events, 0.3, 0.3, 1.0),
        ),
    ),
    "plant": Theme(  # hydraulics, tanks: set points, ramps, a little of everything else
        1.5,
        0.45,
        0.5,
        (
            Share(Level, 1.0, 0.7, 2.0),
            Share(Course, 0.45, 0.2, 1.0),
            Share(Hum, 1.0, 0.01, 0.3),
            Share(Cycle, 0.2, 0.05, 0.4),
            Share(Switch, 0.1, 0.2, 1.0),
        ),
    ),
    "waves": Theme(  # electroencephalogram, vibration: bands of noise
        1.5,
        0.3,
        0.25,
        (
            Share(Hum, 1.0, 0.5, 1.5),
            Share(Hum, 0.6, 0.2, 1.0),
            Share(Cycle, 0.3, 0.2, 1.0),
            Share(Events, 0.3, 0.3, 1.0),
            Share(Chirp, 0.15, 0.3, 1.0),
            Share(Level, 0.2, 0.1, 0.8),
        ),
    ),
    "shapes": Theme(  # templates that repeat: heart beats, outlines, gestures
        2.0,
        0.15,
        0.25,
        (
            Share(Cycle, 1.0, 0.7, 1.3),
            Share(Hum, 0.9, 0.01, 0.4),
            Share(Level, 0.3, 0.05, 0.5),
            Share(Events, 0.1, 0.3, 1.0),
        ),
    ),
    "house": Theme(  # power, traffic: steps and pulses
        1.0,
        0.3,
        0.1,
        (
            Share(Level, 0.8, 0.2, 1.2),
            Share(Switch, 0.7, 0.3, 1.3),
            Share(Events, 0.5, 0.3, 1.2),
            Share(Hum, 0.8, 0.02, 0.4),
        ),
    ),
    "free": Theme(
        1.5,
        0.4,
        0.25,
        tuple(
            Share(kind, 0.45, 0.1, 1.3) for kind in (Level, Cycle, Hum, Chirp, Events, Switch, Course, Hum)
        ),
    ),
}
