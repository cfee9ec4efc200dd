"""Worlds: sets of states that belong together, as those of one machine, one body or one kind of recording do.
States of a world are drawn afresh or as neighbours of each other, so that some pairs are hard to tell apart.
In which order they come is said in state_orders; no torch here.

Shape suffixes: T rows, L latent sources.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from memtoken_cli.data.state_signals import Cycle, Hum, Level, Part
from memtoken_cli.data.state_templates import F32
from memtoken_cli.data.state_themes import THEMES, Kind


@dataclass(frozen=True)
class State:
    """A sum of parts with sizes; mix_LL couples the sources anew. pool: instead of parts, phases that
    come in any order, each for `stay` rows or so (a null class: anything)."""

    parts: tuple[tuple[Part, float], ...]
    mix_LL: F32 | None = None
    pool: tuple[State, ...] = ()
    stay: float = 100.0

    def varied(self, generator: Generator, step: float) -> State:
        """A neighbour: one part or all of them moved, or their sizes, or the coupling of the sources."""
        if self.pool:
            return replace(self, pool=tuple(one.varied(generator, step) for one in self.pool))
        touched = generator.random(len(self.parts)) < generator.choice((0.5, 1.0))
        touched[generator.integers(len(touched))] = True
        moved = tuple(
            (part.varied(generator, step), float(size * np.exp(0.5 * step * generator.standard_normal())))
            if touch
            else (part, size)
            for (part, size), touch in zip(self.parts, touched, strict=True)
        )
        return replace(self, parts=moved)

    def render(self, generator: Generator, rows: int, sources: int, wobble: float) -> F32:
        """[T,L]: one occurrence, whose tempo, sizes and level differ a little from the next one's."""
        if self.pool:
            return self._pooled(generator, rows, sources, wobble)
        tempo = float(np.exp(0.3 * wobble * generator.standard_normal()))
        total_TL = np.zeros((rows, sources), np.float32)
        for part, size in self.parts:
            size_now = size * np.exp(wobble * generator.standard_normal())
            total_TL += np.float32(size_now) * part.render(generator, rows, tempo)
        if self.mix_LL is not None:
            total_TL = total_TL @ self.mix_LL
        return total_TL + np.float32(wobble) * generator.standard_normal(sources, np.float32)

    def _pooled(self, generator: Generator, rows: int, sources: int, wobble: float) -> F32:
        pieces, left = [], rows
        while left > 0:
            length = min(left, 8 + int(self.stay * generator.exponential()))
            one = self.pool[int(generator.integers(len(self.pool)))]
            pieces.append(one.render(generator, length, sources, wobble))
            left -= length
        return np.concatenate(pieces)


@dataclass(frozen=True)
class World:
    """states: by id. group: the coarse regime of each state. background: in all states alike. wobble: how
    far occurrences of one state differ. smooth: rows that a limb or a filter blurs. even: every run is
    shifted and scaled to mean 0 and deviation 1, so that only its shape tells. blend: rows at most in which
    one state passes into the next."""

    theme: str
    sources: int
    states: tuple[State, ...]
    group: tuple[int, ...]
    background: tuple[tuple[Part, float], ...]
    wobble: float
    smooth: int
    even: bool
    blend: int

    def varied(self, generator: Generator, step: float) -> World:
        """The same states of another subject or machine."""
        return replace(self, states=tuple(state.varied(generator, step) for state in self.states))


def draw_world(generator: Generator, sources: int, states: int, null: bool, typical: float) -> World:
    """A seeded world. null: the last state is a null class, mixed from many. typical: rows of a run, in which
    things repeat 3 to 60 times."""
    names = tuple(THEMES)
    usual = np.asarray([THEMES[name].usual for name in names])
    theme = names[int(generator.choice(len(names), p=usual / usual.sum()))]
    period = max(8.0, typical / float(np.exp(generator.uniform(np.log(3), np.log(60)))))
    draw = _coupled if generator.random() < 0.1 else _related
    made = draw(generator, theme, sources, states, period)
    group = _grouped(generator, states)
    if generator.random() < 0.5:  # regimes share something
        made = _regimes(generator, made, group, sources, period)
    if null:
        made[-1] = _null(generator, theme, made[:-1], sources, period)
    background: tuple[tuple[Part, float], ...] = ()
    if generator.random() < 0.5:
        kind: Kind = (Hum, Hum, Cycle, Level)[int(generator.integers(4))]
        size = float(10 ** generator.uniform(-1.8, -0.3))
        background = ((kind.draw(generator, sources, period * generator.choice((0.3, 1.0, 5.0))), size),)
    wobble = float(10 ** generator.uniform(-2.3, -0.5))
    even = generator.random() < (0.4 if theme == "shapes" else 0.07)
    blend = int(generator.choice((32, 96), p=(0.85, 0.15)))
    smooth = _smooth(generator, theme, period)
    return World(theme, sources, tuple(made), group, background, wobble, smooth, even, blend)


def _smooth(generator: Generator, theme: str, period: float) -> int:
    if generator.random() > THEMES[theme].blur:
        return 1
    return max(1, int(np.exp(generator.uniform(np.log(3), np.log(max(4.0, period / 3))))))


def draw_state(generator: Generator, theme: str, sources: int, period: float) -> State:
    """One state of a theme, with at least one part."""
    shares = THEMES[theme].shares
    has = generator.random(len(shares)) < np.asarray([share.chance for share in shares])
    if not has.any():
        has[int(generator.integers(len(shares)))] = True
    vigour = 10 ** generator.uniform(-1.8, 0) if generator.random() < THEMES[theme].calm else 1.0
    parts = tuple(
        (
            share.kind.draw(generator, sources, period),
            float(np.exp(generator.uniform(np.log(share.low), np.log(share.high))))
            * (1.0 if share.kind is Level else vigour),
        )
        for share, there in zip(shares, has, strict=True)
        if there
    )
    return State(parts)


def _related(generator: Generator, theme: str, sources: int, states: int, period: float) -> list[State]:
    near, step = generator.beta(1.0, 1.6), float(np.exp(generator.uniform(np.log(0.25), np.log(1.3))))
    made = [_phased(generator, draw_state(generator, theme, sources, period), period)]
    while len(made) < states:
        if generator.random() < near:
            made.append(made[int(generator.integers(len(made)))].varied(generator, step))
        else:
            made.append(_phased(generator, draw_state(generator, theme, sources, period), period))
    return made


def _phased(generator: Generator, state: State, period: float) -> State:
    """Now and then a state of two to four phases that are not told apart: steps, then a turn, then steps."""
    if generator.random() > 0.07:
        return state
    step = float(generator.uniform(0.15, 0.6))
    phases = [state.varied(generator, step) for _ in range(int(generator.integers(1, 4)))]
    return State((), pool=(state, *phases), stay=period * float(np.exp(generator.uniform(-0.3, 1.5))))


def _coupled(generator: Generator, theme: str, sources: int, states: int, period: float) -> list[State]:
    """States that differ in nothing but the sizes of their sources, or in how these hang together."""
    one = draw_state(generator, theme, sources, period)
    made = []
    for _ in range(states):
        mix = np.diag(np.exp(0.8 * generator.standard_normal(sources)))
        if sources > 1 and generator.random() < 0.7:
            turn = np.linalg.qr(generator.standard_normal((sources, sources)))[0]
            mix = turn if generator.random() < 0.5 else mix @ turn
        made.append(replace(one, mix_LL=mix.astype(np.float32)))
    return made


def _grouped(generator: Generator, states: int) -> tuple[int, ...]:
    group: list[int] = []
    while len(group) < states:
        group += [group[-1] + 1 if group else 0] * int(generator.integers(2, 4))
    return tuple(group[:states])


def _regimes(
    generator: Generator, made: list[State], group: tuple[int, ...], sources: int, period: float
) -> list[State]:
    common = [(Level.draw(generator, sources, period), float(generator.uniform(0.2, 1))) for _ in set(group)]
    return [_with(state, common[g]) for state, g in zip(made, group, strict=True)]


def _with(state: State, part: tuple[Part, float]) -> State:
    if state.pool:
        return replace(state, pool=tuple(_with(one, part) for one in state.pool))
    return replace(state, parts=(*state.parts, part))


def _null(generator: Generator, theme: str, others: list[State], sources: int, period: float) -> State:
    """Rest, and now and then something that looks like one of the others."""
    rest = State(((Level.draw(generator, sources, period), 0.5), (Hum.draw(generator, sources, period), 0.1)))
    pool = [rest, rest.varied(generator, 0.5), rest.varied(generator, 1.0)]
    pool += [draw_state(generator, theme, sources, period) for _ in range(int(generator.integers(1, 4)))]
    if others and generator.random() < 0.5:
        pool.append(others[int(generator.integers(len(others)))].varied(generator, 0.8))
    return State((), pool=tuple(pool), stay=period * float(np.exp(generator.uniform(0.5, 3))))
