"""The table of transfer: a bank read on the next series, beside classical rows; and whether it is the memory
that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.methods.memprompttss.scene import Floats, Ints, Scene
from memtoken_cli.methods.memprompttss.subject import Subject, points
from memtoken_cli.methods.memprompttss.transfer import Table, compare, drawn
from memtoken_cli.metrics.intervals import paired
from memtoken_cli.metrics.segmentation import accuracy

OURS = "tss-off"
AT_HOME = "tss-home-shuffled"
BESIDE = {"tss-off": "tss-off-reordered", "tss-auto": "tss-auto-reordered"}


def table(
    pairs: Sequence[tuple[Scene, Scene]],
    subjects: Mapping[str, Subject],
    wanted: Sequence[str],
    keys: EvaluateKeys,
    seed: int,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row a contestant and k, means over pairs and draws of prompts.

    over_acc: what the model without order memory has over the row, with the 95 % interval of a bootstrap over
    pairs. Rows `*-reordered`: B with its segments in another order. `tss-home-shuffled`: on A itself, the
    bank's labels shuffled (accuracy), beside no prompts at all (unsupervised; states named after the fact).
    """
    draws = range(seed, seed + (1 if keys.smoke else keys.seeds))
    ks = keys.k[:1] if keys.smoke else keys.k
    found = compare(pairs, subjects, wanted, ks, draws, keys.shuffle, note)
    named = dict.fromkeys(name for name, _ in found.scores)
    rows = [
        _row(found, name, k, seed)
        for name in named
        for k in sorted(k for other, k in found.scores if other == name)
    ]
    if AT_HOME in wanted:
        rows += [at_home([a for a, _ in pairs], subjects["off"], k, draws) for k in ks]
    return rows


def _row(found: Table, name: str, k: int, seed: int) -> dict[str, Any]:
    row = {"method": name, "k": k or "all", **found.row(name, k)}
    ours = (OURS, k)
    if ours in found.scores and name != OURS and not name.endswith("-reordered"):
        for column, short in (("accuracy", "acc"), ("macro_f1", "f1")):
            gap = paired(found.by_pair(*ours, column), found.by_pair(name, k, column), seed)
            row |= {f"over_{short}": gap.value, f"over_{short}_low": gap.low, f"over_{short}_high": gap.high}
    if name == BESIDE["tss-auto"] and (BESIDE["tss-off"], k) in found.scores:
        row["gain"] = row["accuracy"] - found.row(BESIDE["tss-off"], k)["accuracy"]
    row["pairs"] = found.by_pair(name, k)
    return row


def at_home(scenes: Sequence[Scene], subject: Subject, k: int, draws: Sequence[int]) -> dict[str, Any]:
    """On the prompted series itself: labels shuffled among the bank's rows, and no bank."""
    shuffled, plain = [], []
    for scene in scenes:
        without = unsupervised(scene)
        plain.append(matched(scene.truth_N, without))
        for seed in draws:
            given = drawn(scene, k, seed)
            answer = subject.ask(scene, scene, points(given), deranged=seed)
            shuffled.append(accuracy(scene.truth_N, answer.states_N))
    return {
        "method": AT_HOME,
        "k": k,
        "accuracy": float(np.mean(shuffled)),
        "unsupervised": float(np.mean(plain)),
    }


def unsupervised(scene: Scene) -> Ints:
    """The states without a prompt of the exam's tokens."""
    from memtoken_cli.methods.memprompttss.unsup import segment_unsupervised

    return segment_unsupervised(scene.series.values_TC, None)[scene.at_N]


def matched(truth_N: Ints, found_N: Ints) -> float:
    """Accuracy of states that have no names, each named after at most one true state, as well as can be."""
    from scipy.optimize import linear_sum_assignment

    true, t_N = np.unique(truth_N, return_inverse=True)
    said, s_N = np.unique(found_N, return_inverse=True)
    both: Floats = np.zeros((len(true), len(said)))
    np.add.at(both, (t_N, s_N), 1)
    return float(both[linear_sum_assignment(-both)].sum() / len(truth_N))
