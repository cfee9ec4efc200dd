"""A bank on another series: prompts on one, figures on the next, which gets none.

Whether a bank survives its file and the end of a process is what tests of `bank_file.py` show; here it stays
in memory.

Shape suffixes: N tokens, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memtoken_cli.methods.memprompttss.contestants import ROWS, smooth
from memtoken_cli.methods.memprompttss.exam_data import reordered
from memtoken_cli.methods.memprompttss.scene import Contestant, Floats, Given, Ints, Scene
from memtoken_cli.methods.memprompttss.subject import Subject, points
from memtoken_cli.metrics.segmentation import accuracy, macro_f1

CLASSICAL = ("knn", "knn-potts", "logreg-smooth", "logreg-potts", "forest-smooth")
OURS = "tss-off"


@dataclass(frozen=True)
class Score:
    """One pair under one draw."""

    accuracy: float
    macro_f1: float

    @property
    def named(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}


@dataclass(frozen=True)
class Asked:
    """What was drawn: prompts on A, and a seed for what else is random."""

    given: Given
    seed: int


Entrant = Callable[[Scene, Asked], Ints]


def drawn(scene: Scene, k: int, seed: int) -> Given:
    """k tokens of every state (all, where it has fewer), at random."""
    rng = np.random.default_rng(seed)
    at: list[Ints] = []
    for state in np.unique(scene.truth_N):
        of_it = np.flatnonzero(scene.truth_N == state)
        at.append(rng.choice(of_it, min(k, len(of_it)), replace=False))
    at_P = np.concatenate(at)
    return Given(scene, at_P, scene.truth_N[at_P])


def entrants(subjects: Mapping[str, Subject]) -> dict[str, Entrant]:
    """Contestants by name; `subjects`: the model with order "off" and "auto"."""

    def plain(contestant: Contestant) -> Entrant:
        return lambda scene, asked: contestant(scene, asked.given)

    found: dict[str, Entrant] = {name: plain(ROWS[name]) for name in CLASSICAL}
    found |= {f"tss-{order}": plain(subject) for order, subject in subjects.items()}
    if "off" in subjects:
        off = subjects["off"]
        found["tss-empty"] = lambda scene, asked: silent(off, scene, asked)
        found["tss-shuffled"] = lambda scene, asked: shuffled(off, scene, asked)
    found["majority"] = lambda scene, asked: np.full(scene.tokens, _most(asked.given.scene.truth_N))
    return found


def silent(subject: Subject, scene: Scene, asked: Asked) -> Ints:
    """Nothing is read from the bank: every state costs the same, and the chain is left with its ties."""
    from dataclasses import replace

    import torch

    from memtoken_cli.methods.memprompttss import potts

    answer = subject.ask(scene, asked.given.scene, points(asked.given))
    flat = replace(answer.unary, cost_NK=torch.zeros_like(answer.unary.cost_NK), switch_KK=None)
    path_N = potts.decode(flat.cost_NK, flat.lam).states_N
    return replace(answer, unary=flat, path_N=path_N).states_N


def shuffled(subject: Subject, scene: Scene, asked: Asked) -> Ints:
    """The labels have changed places among the bank's rows."""
    return subject.ask(scene, asked.given.scene, points(asked.given), deranged=asked.seed).states_N


def forest_full(scene: Scene, source: Scene) -> Ints:
    """60 trees on every token of A, smoothed: what all of A's labels are worth."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(60, random_state=0).fit(source.hand_NF, source.truth_N)
    p_NK: Floats = np.asarray(model.predict_proba(scene.hand_NF))
    found: Ints = np.asarray(model.classes_)[smooth(p_NK).argmax(1)]
    return found


def score(scene: Scene, states_N: Ints) -> Score:
    return Score(accuracy(scene.truth_N, states_N), macro_f1(scene.truth_N, states_N))


@dataclass(frozen=True)
class Table:
    """scores: by (row, k), one list a pair of one score a draw. k is 0 for a row without draws."""

    scores: Mapping[tuple[str, int], Sequence[Sequence[Score]]]

    def row(self, name: str, k: int) -> dict[str, Any]:
        """Means over pairs and draws."""
        every = [one for pair in self.scores[name, k] for one in pair]
        return {column: float(np.mean([one.named[column] for one in every])) for column in every[0].named}

    def by_pair(self, name: str, k: int, column: str = "accuracy") -> list[float]:
        """The mean over draws of every pair."""
        return [float(np.mean([one.named[column] for one in pair])) for pair in self.scores[name, k]]


def compare(
    pairs: Sequence[tuple[Scene, Scene]],
    subjects: Mapping[str, Subject],
    wanted: Sequence[str],
    ks: Sequence[int],
    draws: Sequence[int],
    shuffle: bool,
    note: Callable[[str], None] = lambda text: None,
) -> Table:
    """Every wanted row on every pair; with `shuffle`, the subjects also where B's segments are reordered
    (rows `tss-off-reordered`, `tss-auto-reordered`)."""
    known = entrants(subjects)
    scores: dict[tuple[str, int], list[list[Score]]] = {}
    for source, target in pairs:
        note(f"transfer: {source.series.name} to {target.series.name}")
        others = {"": target}
        if shuffle:
            others["-reordered"] = Scene(reordered(target.series, draws[0]))
        for k in ks:
            given = [Asked(drawn(source, k, seed), seed) for seed in draws]
            for name in (n for n in wanted if n in known):
                ordered = name in ("tss-off", "tss-auto")
                for suffix, scene in others.items() if ordered else [("", target)]:
                    found = [score(scene, known[name](scene, asked)) for asked in given]
                    scores.setdefault((name + suffix, k), []).append(found)
        if "forest-full" in wanted:
            scores.setdefault(("forest-full", 0), []).append([score(target, forest_full(target, source))])
    return Table(scores)


def _most(states_N: Ints) -> int:
    ids, counts = np.unique(states_N, return_counts=True)
    return int(ids[counts.argmax()])
