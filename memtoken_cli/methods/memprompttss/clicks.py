"""Click simulation: a user who labels the middle of the longest wrong run until all is right.

    from memtoken_cli.methods.memprompttss.clicks import on_folder
    from memtoken_cli.methods.memprompttss.contestants import ROWS
    from memtoken_cli.methods.memprompttss.subject import Subject
    print(on_folder("DIR", Subject(model)).line())              # or ROWS["mix"], or a function of your own:
    print(on_folder("DIR", lambda scene, given: ...).line())    # states of `given.known` for scene.tokens

A whole series in tokens of 8 rows; the first click is the centre of its longest segment. Features are made
once a series: give the same `Scene`s (`scenes(DIR)`) to several contestants.

Shape suffixes: N tokens, P prompts, R clicks, S series.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memtoken_cli.data.labelled import read_labelled
from memtoken_cli.methods.memprompttss.scene import Contestant, Floats, Given, Ints, Scene
from memtoken_cli.metrics.segmentation import auc30, noc90

CLICKS = 30
MARKS = (1, 5, 10, 20, 30)
NOBODY = np.iinfo(np.int64).min  # a state that is nobody's


@dataclass(frozen=True)
class Course:
    """One series: accuracy and macro-F1 after every click, and the tokens clicked."""

    name: str
    accuracy_R: Floats
    macro_f1_R: Floats
    at_P: Ints

    @property
    def auc(self) -> float:
        """Mean accuracy over the clicks (AUC30 where they are 30)."""
        return auc30(self.accuracy_R.tolist(), len(self.accuracy_R))

    @property
    def noc(self) -> int:
        """The first click with accuracy .90 or more, else one more than there were."""
        return noc90(self.accuracy_R.tolist(), clicks=len(self.accuracy_R))


@dataclass(frozen=True)
class Courses:
    """One contestant over several series."""

    items: tuple[Course, ...]

    @property
    def auc(self) -> float:
        return float(np.mean([c.auc for c in self.items]))

    @property
    def noc(self) -> float:
        return float(np.mean([c.noc for c in self.items]))

    def at(self, click: int) -> tuple[float, float]:
        """Mean accuracy and macro-F1 after `click` clicks (after the last, where there were fewer)."""
        i = min(click, len(self.items[0].accuracy_R)) - 1
        accuracy = [c.accuracy_R[i] for c in self.items]
        return float(np.mean(accuracy)), float(np.mean([c.macro_f1_R[i] for c in self.items]))

    def row(self) -> dict[str, float]:
        """The figures of a table's row."""
        last = len(self.items[0].accuracy_R)
        found = {"auc": self.auc, "noc90": self.noc}
        for click in (m for m in MARKS if m <= last):
            accuracy, macro = self.at(click)
            found |= {f"acc@{click}": accuracy, f"f1@{click}": macro}
        return found

    def line(self) -> str:
        return "  ".join(f"{key} {value:.4f}" for key, value in self.row().items())


def scenes(path: str | Path, channels: str | None = None) -> list[Scene]:
    """Every labelled series of a folder. Raises DataError."""
    return [Scene(series) for series in read_labelled(path, channels)]


def on_folder(
    path: str | Path, contestant: Contestant, clicks: int = CLICKS, channels: str | None = None
) -> Courses:
    """The contestant on every series of a folder."""
    return over(scenes(path, channels), contestant, clicks)


def over(found: Iterable[Scene], contestant: Contestant, clicks: int = CLICKS) -> Courses:
    return Courses(tuple(simulate(scene, contestant, clicks) for scene in found))


def ceiling(scene: Scene, given: Given) -> Ints:
    """The contestant that propagates the labels clicked so far without an error; it reads the truth."""
    return np.where(np.isin(scene.truth_N, given.known), scene.truth_N, NOBODY)


def simulate(scene: Scene, contestant: Contestant, clicks: int = CLICKS) -> Course:
    """The course of one contestant on one series. Once all is right, no further click is made."""
    truth_N = scene.truth_N
    at = [first_click(truth_N)]
    accuracy: list[float] = []
    macro: list[float] = []
    for click in range(1, clicks + 1):
        at_P = np.array(at)
        states_N = contestant(scene, Given(scene, at_P, truth_N[at_P]))
        wrong_N = states_N != truth_N
        accuracy.append(1 - float(wrong_N.mean()))
        macro.append(macro_f1(truth_N, states_N))
        if not wrong_N.any():
            missing = clicks - click
            accuracy += [1.0] * missing
            macro += [1.0] * missing
            break
        if click < clicks:
            at.append(next_click(truth_N, wrong_N, at, click))
    return Course(scene.series.name, np.array(accuracy), np.array(macro), np.array(at))


def first_click(truth_N: Ints) -> int:
    start, end = longest(truth_N, np.ones(len(truth_N), dtype=bool))
    return (start + end) // 2


def next_click(truth_N: Ints, wrong_N: np.ndarray, at: Sequence[int], click: int) -> int:
    """The centre of the longest run of wrong tokens of one true state; where that is prompted already,
    a wrong token drawn with `click` as the seed."""
    start, end = longest(truth_N, wrong_N)
    centre = (start + end) // 2
    if centre in at:
        return int(np.random.default_rng(click).choice(np.flatnonzero(wrong_N)))
    return centre


def longest(states_N: Ints, chosen_N: np.ndarray) -> tuple[int, int]:
    """(start, end) of the longest run of chosen tokens of one state; the first of several. One is chosen."""
    edge_N = np.flatnonzero((np.diff(states_N) != 0) | (np.diff(chosen_N.astype(np.int8)) != 0)) + 1
    starts = np.concatenate([[0], edge_N])
    ends = np.concatenate([edge_N, [len(states_N)]])
    length = np.where(chosen_N[starts], ends - starts, 0)
    i = int(length.argmax())
    return int(starts[i]), int(ends[i])


def macro_f1(truth_N: Ints, states_N: Ints) -> float:
    """Mean F1 over the states that are true somewhere."""
    found = []
    for state in np.unique(truth_N):
        true, said = truth_N == state, states_N == state
        found.append(2 * float((true & said).sum()) / float(true.sum() + said.sum()))
    return float(np.mean(found))
