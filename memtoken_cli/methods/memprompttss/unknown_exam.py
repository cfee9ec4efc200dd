"""What `unknown=auto` finds: prompts of all states but one, and the rows that are then marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memtoken_cli.methods.memprompttss.scene import Given, Scene
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys
from memtoken_cli.methods.memprompttss.segmenter import Segmenter
from memtoken_cli.methods.memprompttss.subject import Subject
from memtoken_cli.methods.memprompttss.transfer import drawn
from memtoken_cli.methods.memprompttss.unknown import NAME

HELD = 3  # states of a series that are left out in turn, at most


def unknown(
    scenes: Sequence[Scene], subject: Subject, ks: Sequence[int], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """A row a number of points a state: the share of the rows of the state without a prompt that are marked
    (`found`), and of all others (`false`); means over cases. Series of two states are left out."""
    rows = []
    for k in ks:
        marked = [
            shares(scene, subject, drawn(scene, k, seed), held)
            for scene in scenes
            for seed in seeds
            for held in left_out(scene, seed)
        ]
        if marked:
            found, false = np.array(marked).T
            rows.append(
                {
                    "method": f"{k} point{'s' * (k > 1)}",
                    "cases": len(marked),
                    "found": float(found.mean()),
                    "false": float(false.mean()),
                }
            )
    return rows


def left_out(scene: Scene, seed: int) -> list[int]:
    """States to be held out in turn; none where no two would be left."""
    states = np.unique(scene.truth_N)
    if len(states) < 3:
        return []
    picked: list[int] = np.random.default_rng(seed).permutation(states)[:HELD].tolist()
    return picked


def shares(scene: Scene, subject: Subject, given: Given, held: int) -> tuple[float, float]:
    """(found, false) with the prompts of one state left out."""
    series = scene.series
    segmenter = Segmenter(subject.model, keys=SegmentKeys(cache="off", unknown="auto"))
    segmenter.fit(series.values_TC, channels=series.channels)
    pairs = zip(given.at_P.tolist(), given.states_P.tolist(), strict=True)
    said = [{"row": int(scene.at_N[at]), "label": str(state)} for at, state in pairs if state != held]
    [level], _ = segmenter.prompt(*said).levels()
    strange_K = np.array([label.startswith(NAME) for label in level.labels])
    marked_N = strange_K[level.states_T[scene.at_N]]
    of_it_N = scene.truth_N == held
    return float(marked_N[of_it_N].mean()), float(marked_N[~of_it_N].mean())
