"""Levels that no memory decides: the unsupervised one, perhaps under boundary prompts, and that of a series
of a few rows, where every row takes the nearest prompt's label.

Shape suffixes: T rows in hand, N tokens, K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from memtoken_cli.data.prompts import DEFAULT_LEVEL, Prompt
from memtoken_cli.data.series import Series
from memtoken_cli.methods.memprompttss import hard as terms
from memtoken_cli.methods.memprompttss.levels import Level, Options, chained, merge_short
from memtoken_cli.methods.memprompttss.model import Encoded, Unary
from memtoken_cli.methods.memprompttss.unknown import NAME

SWITCH = 3.0  # what a switch costs where prompts correct an unsupervised result; a wrong token costs 1
FEWEST = 16  # rows below which a series is one segment


def level_of(series: Series, encoded: Encoded, states: int | None) -> Level:
    """States s1, s2, ... by first appearance, found in the rows alone; `states`: how many."""
    from memtoken_cli.methods.memprompttss.unsup import segment_unsupervised

    if len(series) < FEWEST:
        found_T = np.zeros(len(series), np.int64)
    else:
        values_TC = series.values_TC
        if bool(series.gap_T.any()):
            values_TC = _filled(values_TC)
        found_T = np.asarray(segment_unsupervised(values_TC, states), np.int64)
    labels = tuple(f"s{k + 1}" for k in range(int(found_T.max()) + 1))
    states_T = found_T.astype(np.int16)
    states_T[series.gap_T] = -1
    return Level(DEFAULT_LEVEL, labels, states_T, None, (), silent=True)


def constrained(
    level: Level, series: Series, encoded: Encoded, own: Sequence[Prompt], options: Options
) -> Level:
    """The unsupervised level under prompts that have no label: boundaries and stretches without one."""
    bound = [prompt for prompt in own if prompt.type != "not"]
    if not bound:
        states_T = level.states_T.copy()
        if options.shortest > 1:
            flat = np.zeros((encoded.tokens, len(level.labels)), np.float32)
            merge_short(states_T, options.shortest, flat, encoded.stride, own)
        return replace(level, states_T=states_T)
    at_N = np.minimum(np.arange(encoded.tokens) * encoded.stride + encoded.stride // 2, encoded.rows - 1)
    labels, found_T = level.labels, level.states_T
    if options.states is None:
        labels, found_T = _split(labels, found_T, bound, terms.HELD * encoded.stride)
    found_N = found_T[at_N].astype(np.int64)
    if terms.needs_another(bound, labels, encoded.stride, encoded.rows):
        labels = (*labels, NAME)
    cost_NK = torch.ones(encoded.tokens, len(labels))
    cost_NK[torch.arange(encoded.tokens), torch.from_numpy(found_N).clamp(min=0)] = 0.0
    unary = Unary(labels, cost_NK, SWITCH * options.smooth, 1.0)
    made = chained(encoded, unary, bound, level.name, options, series.gap_T)
    if options.shortest <= 1:
        # where nothing was changed nearby, changes stand at their rows and not at the edges of tokens
        changed_N = np.pad(made.states_T[at_N] != found_N, 1)
        kept_N = ~(changed_N[:-2] | changed_N[1:-1] | changed_N[2:])
        kept_T = np.repeat(kept_N, encoded.stride)[: len(series)]
        made.states_T[kept_T] = found_T[kept_T]
        terms.overlay(made.states_T, bound, made.labels, encoded.stride)
    return replace(made, silent=True)


def _split(
    labels: tuple[str, ...], states_T: np.ndarray, bound: Sequence[Prompt], reach: int
) -> tuple[tuple[str, ...], np.ndarray]:
    """With a new state on the shorter side of a boundary that lies `reach` rows or more inside a run: a
    change that was not found parts two states. One that was found nearby moves there by itself."""
    states_T = states_T.copy()
    for prompt in bound:
        row = prompt.start
        start, end = terms.run_of(states_T, row)
        if prompt.type != "boundary" or min(row - start, end - row) < reach or states_T[row] < 0:
            continue
        states_T[slice(start, row) if row - start < end - row else slice(row, end)] = len(labels)
        labels = (*labels, f"s{len(labels) + 1}")
    return labels, states_T


def nearest(
    series: Series, encoded: Encoded, own: Sequence[Prompt], labels: Sequence[str], name: str
) -> Level:
    """Every row's label is that of the prompt nearest in time; the earlier of two as near."""
    shown = [prompt for prompt in own if prompt.type == "label"]
    index = {label: k for k, label in enumerate(labels)}
    states_T = np.full(len(series), -1, np.int16)
    for row in range(len(series)):
        away = [max(p.start - row, row - (p.end - 1), 0) for p in shown]
        if away:
            states_T[row] = index[shown[int(np.argmin(away))].labels[0]]
    return Level(name, tuple(labels), states_T, None, tuple(own))


def _filled(values_TC: np.ndarray) -> np.ndarray:
    """Gaps bridged linearly, whatever their length: only so that there is something to look at."""
    out_TC = values_TC.copy()
    at_T = np.arange(len(out_TC))
    for c in range(out_TC.shape[1]):
        known_T = np.isfinite(out_TC[:, c])
        out_TC[~known_T, c] = np.interp(at_T[~known_T], at_T[known_T], out_TC[known_T, c])
    return out_TC
