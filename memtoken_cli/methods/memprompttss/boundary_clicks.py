"""Click simulation in which every second click shows a change point instead of a label.

Shape suffixes: N tokens.
"""

from __future__ import annotations

import numpy as np

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.methods.memprompttss.clicks import first_click, next_click
from memtoken_cli.methods.memprompttss.scene import Ints, Scene
from memtoken_cli.methods.memprompttss.subject import LEVEL, Subject, point
from memtoken_cli.metrics.segmentation import MARGIN


def boundary_clicks(scene: Scene, subject: Subject, clicks: int) -> Ints:
    """The states after `clicks` clicks: labels by the usual rule, and in between the change point that was
    missed beside the longest segments (a label, where none was missed, or while a state has no name: a change
    point cannot give it one)."""
    truth_N = scene.truth_N
    at = [first_click(truth_N)]
    said = [point(scene, at[0], int(truth_N[at[0]]))]
    shown: set[int] = set()
    states_N = subject.ask(scene, scene, said).states_N
    for click in range(1, clicks):
        wrong_N = states_N != truth_N
        named = bool(np.isin(truth_N, truth_N[at]).all()) and len(at) > 1
        missed = worst_miss(scene, states_N, shown) if named and click % 2 else None
        if missed is not None:
            shown.add(missed)
            row = missed
            said.append(Prompt(f"b-{row}", "boundary", row, row + 1, (), LEVEL, scene.series.name))
        elif wrong_N.any():
            at.append(next_click(truth_N, wrong_N, at, click))
            said.append(point(scene, at[-1], int(truth_N[at[-1]])))
        else:
            continue
        states_N = subject.ask(scene, scene, said).states_N
    return states_N


def worst_miss(scene: Scene, states_N: Ints, shown: set[int]) -> int | None:
    """The row of a true change point, not shown yet, that has no change within the margin of CP-F1: the one
    between the two segments of which the shorter is longest. None: all were found."""
    found = scene.at_N[np.flatnonzero(np.diff(states_N)) + 1]
    changes = scene.series.changes
    edges = np.concatenate([[0], changes, [scene.series.rows]])
    best: tuple[int, int] | None = None
    for i, row in enumerate(changes.tolist()):
        near = len(found) and int(np.abs(found - row).min()) <= MARGIN * scene.series.rows
        if near or row in shown:
            continue
        weight = int(min(edges[i + 1] - edges[i], edges[i + 2] - edges[i + 1]))
        if best is None or weight > best[0]:
            best = (weight, row)
    return None if best is None else best[1]
