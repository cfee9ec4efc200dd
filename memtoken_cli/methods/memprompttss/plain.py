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
    labels = level.labels
    if terms.needs_another(bound, labels, encoded.stride, encoded.rows):
        labels = (*labels, NAME)
    cost_NK = torch.ones(encoded.tokens, len(labels))
    states_N = torch.from_numpy(level.states_T[at_N].astype(np.int64)).clamp(min=0)
    cost_NK[torch.arange(encoded.tokens), states_N] = 0.0
    unary = Unary(labels, cost_NK, SWITCH * options.smooth, 1.0)
    return replace(chained(encoded, unary, bound, level.name, options, series.gap_T), silent=True)


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
