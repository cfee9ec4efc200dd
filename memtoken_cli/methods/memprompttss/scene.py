"""A series as an exam sees it: tokens of 8 rows, judged at their centre; hand features; what was said of it.

The features are `hand.py`'s; contestants that answer are `contestants.py`'s.

Shape suffixes: T rows, C channels, N tokens, F hand features, P prompts, M samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memtoken_cli.data.labelled import Labelled
from memtoken_cli.methods.memprompttss.hand import centres, hand_features, standardise, windows_for, zscore

STRIDE = 8
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scene:
    """series: with its truth, which contestants must not read. Hand features are made when asked for."""

    series: Labelled

    @cached_property
    def at_N(self) -> Ints:
        """The row that each token is judged at."""
        return centres(self.series.rows, STRIDE)

    @cached_property
    def truth_N(self) -> Ints:
        return self.series.states_T[self.at_N]

    @cached_property
    def hand_NF(self) -> Floats:
        """Hand features, each z-scored over the series' tokens."""
        x_TC, _, _ = zscore(self.series.values_TC)
        found_NCf = hand_features(x_TC, windows_for(self.series.rows), STRIDE)
        return standardise(found_NCf.reshape(self.tokens, -1)).astype(np.float64)

    @property
    def tokens(self) -> int:
        return len(self.at_N)


@dataclass(frozen=True, eq=False)
class Given:
    """Point prompts on tokens of a scene: `at_P` and their true states, in the order they came."""

    scene: Scene
    at_P: Ints
    states_P: Ints

    @cached_property
    def known(self) -> Ints:
        """The states that have a prompt, sorted: the columns of costs."""
        return np.unique(self.states_P)

    @cached_property
    def columns_P(self) -> Ints:
        return np.searchsorted(self.known, self.states_P)

    def samples(self, reach: int) -> tuple[Ints, Ints, Ints]:
        """(token, column, prompt) of every token within `reach` of a prompt; near prompts share tokens."""
        low_P = np.maximum(self.at_P - reach, 0)
        high_P = np.minimum(self.at_P + reach + 1, self.scene.tokens)
        at_M = np.concatenate([np.arange(a, b) for a, b in zip(low_P, high_P, strict=True)])
        prompt_M = np.repeat(np.arange(len(self.at_P)), high_P - low_P)
        return at_M, self.columns_P[prompt_M], prompt_M


# (the series asked about, what is known) -> a state of `given.known` for every token
Contestant = Callable[[Scene, Given], Ints]
