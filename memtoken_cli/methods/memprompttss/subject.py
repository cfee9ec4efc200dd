"""A model as a contestant: it encodes a series once, writes a prompt once, and is decoded by the chain.

What a user gets is `segmenter.py`'s; here nothing is kept on rows that an exam does not look at.

Shape suffixes: N tokens of the exam, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.methods.memprompttss import levels
from memtoken_cli.methods.memprompttss.model import Encoded, Model, Unary, Written
from memtoken_cli.methods.memprompttss.scene import Given, Ints, Scene

LEVEL = "default"


@dataclass(frozen=True)
class Answer:
    """A level as it was decoded. own: the prompts on the series itself; path_N: states of the model's tokens,
    as columns of `unary`; at_N: those that the exam's tokens lie in."""

    encoded: Encoded
    unary: Unary
    own: tuple[Prompt, ...]
    path_N: Tensor
    at_N: Ints

    @property
    def states_N(self) -> Ints:
        """The exam's tokens' states, as ids."""
        ids = np.array([int(label) for label in self.unary.labels])
        found: Ints = ids[self.path_N.numpy()[self.at_N]]
        return found

    @property
    def confidence_N(self) -> NDArray[np.float32]:
        """The chain's marginals of those states."""
        _, solved = levels.solve(self.encoded, self.unary, self.own)
        own_N: NDArray[np.float32] = solved().gather(1, self.path_N[:, None])[:, 0].numpy()
        return own_N[self.at_N]


@dataclass(eq=False)
class Subject:
    """order: as in `segment`; it tells only where prompts stand on another series. A contestant."""

    model: Model
    order: str = "off"
    _encoded: WeakKeyDictionary[Scene, Encoded] = field(default_factory=WeakKeyDictionary)
    _written: WeakKeyDictionary[Scene, dict[Prompt, Written]] = field(default_factory=WeakKeyDictionary)

    def __call__(self, scene: Scene, given: Given) -> Ints:
        return self.ask(scene, given.scene, points(given)).states_N

    def ask(
        self, scene: Scene, source: Scene, prompts: Sequence[Prompt], deranged: int | None = None
    ) -> Answer:
        """States from prompts of one level that stand on the series `source`. With `deranged`, a seed, the
        labels change places among the rows of the bank."""
        ordered = sorted(prompts, key=lambda p: (p.level, p.start, p.type))
        rows = self.written(source, ordered)
        if deranged is not None:
            rows = relabelled(rows, np.random.default_rng(deranged))
        encoded = self.encoded(scene)
        unary = self.model.read(encoded, scene.series.name, rows, prompts[0].level, self.order)
        own = tuple(row.prompt for row in rows) if source is scene else ()
        path_N, _ = levels.solve(encoded, unary, own)
        return Answer(encoded, unary, own, path_N, np.minimum(scene.at_N // encoded.stride, len(path_N) - 1))

    def encoded(self, scene: Scene) -> Encoded:
        if scene not in self._encoded:
            series = scene.series
            gap_T = np.zeros(series.rows, dtype=bool)
            self._encoded[scene] = self.model.encode(series.values_TC, gap_T, series.channels)
        return self._encoded[scene]

    def written(self, scene: Scene, prompts: Sequence[Prompt]) -> list[Written]:
        """A bank row for each prompt; rows that were made before are not made again."""
        known = self._written.setdefault(scene, {})
        fresh = [prompt for prompt in prompts if prompt not in known]
        if fresh:
            made = self.model.write(self.encoded(scene), fresh, scene.series.name)
            known.update(zip(fresh, made, strict=True))
        return [known[prompt] for prompt in prompts]


def points(given: Given, level: str = LEVEL) -> list[Prompt]:
    """Label prompts where a contestant's stand."""
    pairs = zip(given.at_P.tolist(), given.states_P.tolist(), strict=True)
    return [point(given.scene, at, state, level) for at, state in pairs]


def point(scene: Scene, at: int, state: int, level: str = LEVEL) -> Prompt:
    """A label prompt at the row that a token is judged at."""
    row = int(scene.at_N[at])
    return Prompt(f"{level}-{row}", "label", row, row + 1, (str(state),), level, scene.series.name)


def relabelled(rows: Sequence[Written], generator: np.random.Generator) -> list[Written]:
    """The rows with their labels exchanged: of 200 draws the one that leaves fewest as they were."""
    label_P = np.array([row.prompt.labels[0] for row in rows])
    draws = [generator.permutation(label_P) for _ in range(200)]
    new_P = max(draws, key=lambda drawn: int((drawn != label_P).sum()))
    return [
        replace(row, prompt=replace(row.prompt, labels=(str(new),)))
        for row, new in zip(rows, new_P, strict=True)
    ]
