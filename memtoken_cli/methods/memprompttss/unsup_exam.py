"""The table of segmentation without prompts, beside packages that have only that, where they are installed.

claspy (BSD-3) and ruptures (BSD-2) are no dependencies: without them their rows say how to get them.

Shape suffixes: T rows, C channels.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtoken_cli.data.labelled import Labelled
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.methods.memprompttss.hand import hand_features, standardise, windows_for, zscore
from memtoken_cli.metrics.intervals import paired
from memtoken_cli.metrics.segmentation import ami, covering, cp_f1

OURS = "tss"
# claspy needs an older scikit-learn than the project: it is asked for by itself
INSTALL = {"ruptures": "pip install 'memtok[segmentation]'", "claspy": "pip install claspy"}
Ints = NDArray[np.int64]
Segmented = Callable[[NDArray[np.float32]], Ints]
COLUMNS = ("covering", "ami", "cp_f1", "seconds")


def ours(values_TC: NDArray[np.float32]) -> Ints:
    from memtoken_cli.methods.memprompttss.unsup import segment_unsupervised

    return segment_unsupervised(values_TC, None)


def whole(values_TC: NDArray[np.float32]) -> Ints:
    """One segment."""
    return np.zeros(len(values_TC), dtype=np.int64)


def claspy(values_TC: NDArray[np.float32]) -> Ints:
    """ClaSP's change points; it tells no states, so every segment is one of its own."""
    from claspy.segmentation import BinaryClaSPSegmentation

    # one job: else it asks numba for as many threads as there are cores, and fails where fewer are allowed
    found = BinaryClaSPSegmentation(n_jobs=1).fit_predict(_columns(values_TC))
    return pieces(np.asarray(found, dtype=np.int64), len(values_TC))


def clap(values_TC: NDArray[np.float32]) -> Ints:
    """CLaP's states, from ClaSP's change points."""
    from claspy.segmentation import BinaryClaSPSegmentation
    from claspy.state_detection import AgglomerativeCLaPDetection

    x = _columns(values_TC)
    found = np.asarray(BinaryClaSPSegmentation(n_jobs=1).fit_predict(x), dtype=np.int64)
    if not len(found):
        return whole(values_TC)  # it cannot tell states where nothing changes
    return np.asarray(AgglomerativeCLaPDetection(n_jobs=1).fit_predict(x, found), dtype=np.int64)


def _columns(values_TC: NDArray[np.float32]) -> NDArray[np.float64]:
    x_TC = values_TC.astype(np.float64)
    return x_TC[:, 0] if x_TC.shape[1] == 1 else x_TC


def pelt(values_TC: NDArray[np.float32]) -> Ints:
    return _ruptures("Pelt", values_TC)


def binseg(values_TC: NDArray[np.float32]) -> Ints:
    return _ruptures("Binseg", values_TC)


def window(values_TC: NDArray[np.float32]) -> Ints:
    return _ruptures("Window", values_TC)


def _ruptures(kind: str, values_TC: NDArray[np.float32]) -> Ints:
    """Change points by an L2 cost, with a penalty of 5 d log N, on the d hand features that ours begins with,
    at most about 2,000 tokens N: of the values themselves that cost sees means alone, and finds nothing."""
    import ruptures

    T = len(values_TC)
    step = -(-T // 2000)
    features_NCf = hand_features(zscore(values_TC)[0], windows_for(T), step)
    features_NF = standardise(features_NCf.reshape(len(features_NCf), -1)).astype(np.float64)
    search = getattr(ruptures, kind)(model="l2", min_size=5, jump=5).fit(features_NF)
    found = search.predict(pen=5 * np.log(len(features_NF)) * features_NF.shape[1])
    return pieces(np.array(found[:-1], dtype=np.int64) * step, T)


def pieces(changes: Ints, rows: int) -> Ints:
    """A state of its own for every segment."""
    inside = changes[(changes > 0) & (changes < rows)]
    return np.searchsorted(np.sort(inside), np.arange(rows), side="right").astype(np.int64)


ENTRANTS: Mapping[str, tuple[Segmented, str | None]] = {
    OURS: (ours, None),
    "whole": (whole, None),
    "claspy": (claspy, "claspy"),
    "clap": (clap, "claspy"),
    "pelt": (pelt, "ruptures"),
    "binseg": (binseg, "ruptures"),
    "window": (window, "ruptures"),
}


def table(
    series: Sequence[Labelled],
    wanted: Sequence[str],
    keys: EvaluateKeys,
    seed: int,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row a contestant, means over series: covering, AMI over rows, F1 of change points, CPU seconds; a
    missing package costs its row. Packages get series of at most `keys.longest` rows: `of` says how many.

    over_covering: what ours has over the row on the same series, with the 95 % interval of a bootstrap over
    series.
    """
    short = [one for one in series if one.rows <= keys.longest]
    if len(short) < len(series):
        note(f"unsup: other packages get the {len(short)} series of at most {keys.longest} rows (longest=N)")
    sat: dict[str, list[dict[str, Any]]] = {}
    skipped: list[dict[str, Any]] = []
    for name in wanted:
        segment, package = ENTRANTS[name]
        if package is not None and importlib.util.find_spec(package) is None:
            skipped.append({"method": name, "skipped": INSTALL[package]})
            continue
        note(f"unsup: {name}")
        sat[name] = [marked(segment, one) for one in (series if package is None else short)]
    rows = []
    for name, marks in sat.items():
        if not marks:
            continue
        row = {
            "method": name,
            "of": len(marks),
            **{c: float(np.mean([m[c] for m in marks])) for c in COLUMNS},
        }
        row["slowest"] = max(m["seconds"] for m in marks)
        if OURS in sat and name != OURS:
            sitting = {m["name"] for m in marks}
            own = [m for m in sat[OURS] if m["name"] in sitting]
            for column in ("covering", "ami"):
                gap = paired([m[column] for m in own], [m[column] for m in marks], seed)
                row |= {f"over_{column}": gap.value, f"over_{column}_low": gap.low}
                row[f"over_{column}_high"] = gap.high
        rows.append(row | {"series": marks})
    return [*rows, *skipped]


def marked(segment: Segmented, series: Labelled) -> dict[str, Any]:
    """Figures of one series."""
    start = time.process_time()
    found_T = segment(series.values_TC)
    seconds = time.process_time() - start
    truth_T = series.states_T
    return {
        "name": series.name,
        "covering": covering(truth_T, found_T),
        "ami": ami(truth_T, found_T),
        "cp_f1": cp_f1(truth_T, found_T),
        "seconds": seconds,
        "states": len(np.unique(found_T)),
    }
