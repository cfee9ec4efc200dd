"""What other kinds of prompts are worth: intervals, boundaries, negatives, two levels, wrong labels; how
honest the confidence is, what is marked as unknown, and whether following suggestions pays.

Clicks come from `clicks.py`'s rule. Figures are over the exam's tokens.

Shape suffixes: N tokens, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.methods.memprompttss.boundary_clicks import boundary_clicks
from memtoken_cli.methods.memprompttss.clicks import longest, simulate
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.methods.memprompttss.scene import Given, Scene
from memtoken_cli.methods.memprompttss.subject import LEVEL, Subject, point, points
from memtoken_cli.methods.memprompttss.suggest_exam import suggested
from memtoken_cli.methods.memprompttss.transfer import drawn
from memtoken_cli.methods.memprompttss.unknown_exam import unknown
from memtoken_cli.methods.memprompttss.windows import merge_labels
from memtoken_cli.metrics.calibration import ece
from memtoken_cli.metrics.intervals import mean, paired
from memtoken_cli.metrics.segmentation import accuracy, cp_f1

POINTS = 5  # a state, beside one interval of it
CALIBRATED = 10  # clicks after which confidence is judged
SHARE = 0.5  # of its segment that an interval covers, in its middle
BOUNDED = (6, 10, 20)  # clicks after which change points are judged
WRONG = (0.0, 0.05, 0.1)
NEGATIVES = range(3, 11)  # clicks after which a wrong run gets a negative
FINE, COARSE = "fine", "coarse"


def table(
    scenes: Sequence[Scene],
    subject: Subject,
    wanted: Sequence[str],
    keys: EvaluateKeys,
    seed: int,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows of `part` and what was measured; means over series and draws, differences with the 95 % interval
    of a bootstrap over series."""
    seeds = range(seed, seed + (1 if keys.smoke else keys.seeds))
    parts: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
        "interval": lambda: intervals(scenes, subject, seeds),
        "boundary": lambda: [
            row for clicks in BOUNDED if clicks <= keys.clicks for row in boundaries(scenes, subject, clicks)
        ],
        "negative": lambda: negatives(scenes, subject),
        "levels": lambda: levels(scenes, subject, seeds, keys.coarse),
        "noise": lambda: noise(scenes, subject, seeds),
        "calibration": lambda: calibration(scenes, subject),
        "unknown": lambda: unknown(scenes, subject, keys.k, seeds),
        "suggest": lambda: suggested(scenes, subject, keys.clicks, 1 if keys.smoke else 5, seed),
    }
    rows: list[dict[str, Any]] = []
    for part in wanted:
        note(f"prompts: {part}")
        rows += [{"part": part, **row} for row in parts[part]()]
    return rows


def intervals(scenes: Sequence[Scene], subject: Subject, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One interval a state (the middle half of one of its segments) against five points a state."""
    one, five = [], []
    for scene in scenes:
        for seed in seeds:
            said = [interval(scene, state, seed) for state in np.unique(scene.truth_N).tolist()]
            one.append(accuracy(scene.truth_N, subject.ask(scene, scene, said).states_N))
            given = drawn(scene, POINTS, seed)
            five.append(accuracy(scene.truth_N, subject(scene, given)))
    return [_against("interval", one, f"{POINTS} points", five, len(seeds))]


def interval(scene: Scene, state: int, seed: int) -> Prompt:
    """The middle half of a segment of this state, drawn with `seed`."""
    states_T = scene.series.states_T
    start_S = np.concatenate([[0], scene.series.changes])
    end_S = np.concatenate([scene.series.changes, [scene.series.rows]])
    of_it = np.flatnonzero(states_T[start_S] == state)
    s = int(np.random.default_rng([seed, abs(state)]).choice(of_it))
    length = int(end_S[s] - start_S[s])
    low = int(start_S[s]) + int(length * (1 - SHARE) / 2)
    high = max(low + 1, low + int(length * SHARE))
    return Prompt(f"{LEVEL}-{low}-{high}", "label", low, high, (str(state),), LEVEL, scene.series.name)


def boundaries(scenes: Sequence[Scene], subject: Subject, clicks: int) -> list[dict[str, Any]]:
    """CP-F1 after as many clicks, all of them labels, or every second one a change point."""
    labels, mixed = [], []
    for scene in scenes:
        course = simulate(scene, subject, clicks)
        given = Given(scene, course.at_P, scene.truth_N[course.at_P])
        labels.append(cp_f1(scene.truth_N, subject(scene, given)))
        mixed.append(cp_f1(scene.truth_N, boundary_clicks(scene, subject, clicks)))
    row = _against("labels and boundaries", mixed, "labels", labels, 1)
    return [{"clicks": clicks, "figure": "cp_f1", **row}]


def negatives(scenes: Sequence[Scene], subject: Subject) -> list[dict[str, Any]]:
    """After some clicks the longest wrong run is told what it is not: how often that state leaves it."""
    gone: list[bool] = []
    left: list[float] = []
    for scene in scenes:
        course = simulate(scene, subject, max(NEGATIVES))
        for clicks in (c for c in NEGATIVES if c <= len(course.at_P)):
            at_P = course.at_P[:clicks]
            said = points(Given(scene, at_P, scene.truth_N[at_P]))
            states_N = subject.ask(scene, scene, said).states_N
            wrong_N = states_N != scene.truth_N
            if not wrong_N.any():
                continue
            start, end = longest(states_N, wrong_N)
            row = int(scene.at_N[(start + end) // 2])
            state = str(states_N[start])
            no = Prompt(f"not-{row}", "not", row, row + 1, (state,), LEVEL, scene.series.name)
            after_N = subject.ask(scene, scene, [*said, no]).states_N[start:end]
            kept = float((after_N == int(state)).mean())
            gone.append(kept == 0)
            left.append(kept)
    if not gone:
        return [{"method": "negative", "cases": 0}]
    return [
        {
            "method": "negative",
            "cases": len(gone),
            "removed": np.mean(gone).item(),
            "left": np.mean(left).item(),
        }
    ]


def levels(
    scenes: Sequence[Scene], subject: Subject, seeds: Sequence[int], coarse: Mapping[int, int] | None
) -> list[dict[str, Any]]:
    """Three points a fine state, each said at both levels, against the coarse level mapped from the fine."""
    own, mapped, agree, fine = [], [], [], []
    for scene in scenes:
        of_fine = parents(scene, coarse)
        truth_N = np.array([of_fine[s] for s in scene.truth_N.tolist()])
        for seed in seeds:
            given = drawn(scene, 3, seed)
            below = subject.ask(scene, scene, points(given, FINE)).states_N
            pairs = zip(given.at_P.tolist(), given.states_P.tolist(), strict=True)
            said = [point(scene, at, of_fine[state], COARSE) for at, state in pairs]
            above = subject.ask(scene, scene, said).states_N
            up = np.array([of_fine[s] for s in below.tolist()])
            own.append(accuracy(truth_N, above))
            mapped.append(accuracy(truth_N, up))
            agree.append(accuracy(up, above))
            fine.append(accuracy(scene.truth_N, below))
    row = _against("coarse", own, "coarse from fine", mapped, len(seeds))
    return [row | {"consistent": float(np.mean(agree)), "fine": float(np.mean(fine))}]


def parents(scene: Scene, coarse: Mapping[int, int] | None) -> dict[int, int]:
    """The coarse state of every fine one: as told (else itself), or pairs by first occurrence."""
    states = np.unique(scene.series.states_T)
    if coarse is not None:
        return {int(state): coarse.get(int(state), int(state)) for state in states}
    merged_T = merge_labels(scene.series.states_T, 2, 1)
    first = [int(np.argmax(scene.series.states_T == state)) for state in states]
    return {int(state): int(merged_T[at]) for state, at in zip(states, first, strict=True)}


def noise(scenes: Sequence[Scene], subject: Subject, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Five points a state, of which a share has another state's label."""
    rows = []
    for share in WRONG:
        found = []
        for scene in scenes:
            for seed in seeds:
                found.append(
                    accuracy(scene.truth_N, subject(scene, spoilt(drawn(scene, POINTS, seed), share, seed)))
                )
        rows.append({"method": f"{share:.0%} wrong", "accuracy": float(np.mean(found))})
    return rows


def spoilt(given: Given, share: float, seed: int) -> Given:
    """Each label, with this chance, another state's."""
    rng = np.random.default_rng([seed, 7])
    states_P = given.states_P.copy()
    for i in np.flatnonzero(rng.random(len(states_P)) < share):
        others = given.known[given.known != states_P[i]]
        if len(others):
            states_P[i] = rng.choice(others)
    return Given(given.scene, given.at_P, states_P)


def calibration(scenes: Sequence[Scene], subject: Subject) -> list[dict[str, Any]]:
    """Expected calibration error of the chain's confidence after ten clicks, pooled over series."""
    sure: list[float] = []
    right: list[bool] = []
    for scene in scenes:
        at_P = simulate(scene, subject, CALIBRATED).at_P
        answer = subject.ask(scene, scene, points(Given(scene, at_P, scene.truth_N[at_P])))
        sure += answer.confidence_N.tolist()
        right += (answer.states_N == scene.truth_N).tolist()
    row = {"method": f"{CALIBRATED} clicks", "ece": ece(sure, right)}
    return [row | {"confidence": float(np.mean(sure)), "accuracy": float(np.mean(right))}]


def _against(
    ours: str, ours_X: Sequence[float], theirs: str, theirs_X: Sequence[float], draws: int
) -> dict[str, Any]:
    """Both means and their paired difference over series; X runs over series, then draws."""
    a_SD = np.array(ours_X).reshape(-1, draws)
    b_SD = np.array(theirs_X).reshape(-1, draws)
    gap = paired(a_SD.T, b_SD.T)
    row = {"method": ours, "value": mean(a_SD.T).value, "against": theirs, "other": mean(b_SD.T).value}
    return row | {"over": gap.value, "over_low": gap.low, "over_high": gap.high}
