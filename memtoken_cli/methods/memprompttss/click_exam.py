"""The table of click simulation: a model beside the classical rows, on the same series, with the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memtoken_cli.methods.memprompttss.clicks import Courses, ceiling, over
from memtoken_cli.methods.memprompttss.contestants import ROWS, forest_row
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.methods.memprompttss.scene import Contestant, Scene
from memtoken_cli.metrics.intervals import paired

OURS, CEILING, FOREST = "tss", "ceiling", "forest-smooth"
SMOKE_CLICKS = 10


def table(
    scenes: Sequence[Scene],
    subject: Callable[[], Contestant],
    wanted: Sequence[str],
    keys: EvaluateKeys,
    seed: int,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row a contestant, means over series (and over seeds, for a forest).

    below: the ceiling's AUC less the row's. over_auc: what the model has over the row, with the 95 % interval
    of a bootstrap over series. `series`: each one's figures and its curve.
    """
    clicks = min(keys.clicks, SMOKE_CLICKS) if keys.smoke else keys.clicks
    best = over(scenes, ceiling, clicks)
    sat: dict[str, list[Courses]] = {}
    for name in wanted:
        note(f"clicks: {name}")
        if name == CEILING:
            sat[name] = [best]
        elif name == FOREST:
            seeds = range(seed, seed + (1 if keys.smoke else keys.seeds))
            sat[name] = [over(scenes, forest_row(s), clicks) for s in seeds]
        else:
            sat[name] = [over(scenes, subject() if name == OURS else ROWS[name], clicks)]
    rows = [row(name, found, best) for name, found in sat.items()]
    if OURS in sat:
        for one in rows:
            if one["method"] != OURS:
                gap = paired(aucs(sat[OURS]), aucs(sat[one["method"]]), seed)
                one |= {"over_auc": gap.value, "over_low": gap.low, "over_high": gap.high}
                one["over_noc90"] = one["noc90"] - rows[list(sat).index(OURS)]["noc90"]
    return rows


def aucs(found: Sequence[Courses]) -> np.ndarray:
    """[seeds, series]."""
    return np.array([[course.auc for course in courses.items] for courses in found])


def row(name: str, found: Sequence[Courses], best: Courses) -> dict[str, Any]:
    """Means over seeds and series."""
    figures = [courses.row() for courses in found]
    mean = {key: float(np.mean([one[key] for one in figures])) for key in figures[0]}
    mean = {"auc": mean.pop("auc"), "below": best.auc - float(aucs(found).mean()), **mean}
    series = [
        {
            "name": course.name,
            "auc": course.auc,
            "ceiling": limit.auc,
            "noc90": course.noc,
            "accuracy": course.accuracy_R.tolist(),
            "clicked": course.at_P.tolist(),
        }
        for course, limit in zip(found[0].items, best.items, strict=True)
    ]
    return {"method": name, **mean, "series": series}


def drawn(rows: Sequence[dict[str, Any]], path: str) -> None:
    """The curves of accuracy over clicks, mean over series, as a picture."""
    from memtoken_cli.methods.memprompttss.exam_plot import curves

    lines = {r["method"]: np.mean([s["accuracy"] for s in r["series"]], axis=0) for r in rows}
    curves(lines, path)
