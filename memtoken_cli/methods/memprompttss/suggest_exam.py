"""Clicks to accuracy .90 by a user who labels what is suggested, against one who labels rows at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memtoken_cli.methods.memprompttss.scene import Given, Scene
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys
from memtoken_cli.methods.memprompttss.segmenter import Segmenter
from memtoken_cli.methods.memprompttss.subject import Subject
from memtoken_cli.metrics.intervals import paired

ENOUGH = 0.9


def suggested(
    scenes: Sequence[Scene], subject: Subject, clicks: int, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Means over series (and draws); `share`: what suggestions need of the clicks that random rows need."""
    ours = [following(scene, subject, clicks) for scene in scenes]
    chance = [
        [at_random(scene, subject, clicks, draw) for scene in scenes] for draw in range(seed, seed + draws)
    ]
    gap = paired(ours, chance, seed)
    return [
        {
            "method": "suggest",
            "clicks90": float(np.mean(ours)),
            "random": float(np.mean(chance)),
            "share": float(np.mean(ours) / np.mean(chance)),
            "over": gap.value,
            "over_low": gap.low,
            "over_high": gap.high,
        }
    ]


def following(scene: Scene, subject: Subject, clicks: int) -> int:
    """Clicks to .90, each on the first suggestion (a first one without any prompt); clicks + 1 if never."""
    series = scene.series
    segmenter = Segmenter(subject.model, keys=SegmentKeys(cache="off"))
    segmenter.fit(series.values_TC, channels=series.channels)
    for click in range(1, clicks + 1):
        found = segmenter.suggest(1)
        if not found:
            return clicks + 1
        row = found[0].row
        segmenter.prompt({"row": row, "label": str(series.states_T[row])})
        if _right(scene, segmenter) >= ENOUGH:
            return click
    return clicks + 1


def _right(scene: Scene, segmenter: Segmenter) -> float:
    states_T = segmenter.predict().states_T
    return float((states_T[scene.at_N] == scene.truth_N.astype(str)).mean())


def at_random(scene: Scene, subject: Subject, clicks: int, seed: int) -> int:
    """Clicks to .90 on tokens drawn at random, none twice."""
    order = np.random.default_rng(seed).permutation(scene.tokens)
    for click in range(1, min(clicks, scene.tokens) + 1):
        at_P = order[:click]
        states_N = subject(scene, Given(scene, at_P, scene.truth_N[at_P]))
        if float((states_N == scene.truth_N).mean()) >= ENOUGH:
            return click
    return clicks + 1
