"""In which order states come and for how long: semi-Markov sequences of runs that fill a number of rows. What
the states look like is said in state_worlds. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

SHORTEST = 64  # rows of a run, where the series has room
TYPICAL = 750  # rows of a run, in the middle of all series
Habit = Literal["recurring", "once", "programme", "rest", "regimes"]


@dataclass(frozen=True)
class Run:
    """`rows` rows in one state."""

    state: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """How a world behaves, which a second series of it may share. typical: rows of a run; weight: how long
    each state's runs are beside the others'; order: the programme, if there is one."""

    habit: Habit
    typical: float
    spread: float
    weight: tuple[float, ...]
    order: tuple[int, ...]


def draw_plan(generator: Generator, states: int, rows: int, null: bool, regimes: bool) -> Plan:
    """Half recurring, a third with each state once, the rest a fixed programme; a null class comes between
    all others; regimes recur, with their motifs inside."""
    habit: Habit = ("recurring", "once", "programme")[int(generator.choice(3, p=(1 / 2, 1 / 3, 1 / 6)))]
    if null:
        habit = "rest"
    elif regimes:
        habit = "regimes"
    typical = float(np.exp(np.log(TYPICAL) + 0.7 * generator.standard_normal()))
    most, least = rows / SHORTEST / 1.3, states * generator.uniform(1.2, 2.5)
    typical = rows / max(1.0, min(most, max(rows / typical, least)))
    if habit == "once":
        typical = rows / states
    weight = np.exp(generator.uniform(0, 0.7) * generator.standard_normal(states))
    if null:
        weight[-1] *= np.exp(generator.uniform(0, 3.2))
    order = tuple(int(state) for state in generator.permutation(states))
    return Plan(habit, float(typical), float(generator.uniform(0.05, 0.8)), tuple(weight.tolist()), order)


def draw_runs(generator: Generator, plan: Plan, rows: int, group: Sequence[int]) -> list[Run]:
    """Runs that fill `rows` rows exactly; neighbours differ. Every state comes up where there is room."""
    count = max(1, round(rows / plan.typical))
    states = _order(generator, plan, max(count, min(len(plan.order), rows // SHORTEST)), group)
    raw = np.asarray([plan.weight[state] for state in states])
    raw = raw * np.exp(plan.spread * generator.standard_normal(len(states)))
    shortest = min(SHORTEST, rows // (2 * len(states)) or 1)
    spare = rows - shortest * len(states)
    lengths = shortest + np.floor(spare * raw / raw.sum()).astype(np.int64)
    lengths[-1] += rows - int(lengths.sum())
    return [Run(int(state), int(length)) for state, length in zip(states, lengths, strict=True)]


def _order(generator: Generator, plan: Plan, count: int, group: Sequence[int]) -> list[int]:
    total = len(plan.order)
    if total == 1:
        return [0]
    if plan.habit == "once":
        return list(plan.order)
    if plan.habit == "programme":
        return [plan.order[place % total] for place in range(max(count, total))]
    if plan.habit == "rest":
        null = total - 1
        doings = _shuffled(generator, list(range(null)), max(count // 2, null))
        return [state for doing in doings for state in (null, doing)] + [null]
    if plan.habit == "regimes":
        return _motifs(generator, plan, count, group)
    return _shuffled(generator, list(plan.order), max(count, total))


def _shuffled(generator: Generator, states: list[int], count: int) -> list[int]:
    """Rounds of the states, each shuffled, some of them drawn at will; no state twice in a row."""
    free = generator.random() < 0.5
    out = [states[place] for place in generator.permutation(len(states))]
    while len(out) < count:
        some = generator.choice(states, len(states)) if free else generator.permutation(states)
        out += [int(state) for state in some]
    out = [state for place, state in enumerate(out) if not place or state != out[place - 1]]
    return out[: max(count, len(states))]


def _motifs(generator: Generator, plan: Plan, count: int, group: Sequence[int]) -> list[int]:
    inside = {g: [state for state in plan.order if group[state] == g] for g in set(group)}
    regimes = _shuffled(generator, sorted(inside), max(len(inside), count // 3)) if len(inside) > 1 else [0]
    out: list[int] = []
    for g in regimes:
        stay = max(len(inside[g]), round(count / len(regimes) * generator.uniform(0.5, 1.5)))
        out += _shuffled(generator, inside[g], stay) if len(inside[g]) > 1 else inside[g]
    return [state for place, state in enumerate(out) if not place or state != out[place - 1]]
