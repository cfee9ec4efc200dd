"""A bank's file on labelled series: what it says of each without a further prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

from memtoken_cli.data.labelled import read_labelled
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.methods.memprompttss.segmenter import Segmenter
from memtoken_cli.metrics.segmentation import accuracy, macro_f1


def table(path: str, data: str, keys: EvaluateKeys) -> list[dict[str, Any]]:
    """One row a series and order, then their means: accuracy and macro-F1 over rows, where a state's label is
    its id as written. Raises DataError."""
    rows: list[dict[str, Any]] = []
    for series in read_labelled(data, keys.channels)[: keys.limit]:
        truth_T = series.states_T.astype(str)
        for order in ("off", "auto"):
            segmenter = Segmenter.load(keys.subject, memory=path, options={"order": order})
            segmenter.fit(series.values_TC, channels=series.channels)
            found_T = segmenter.predict().states_T.astype(str)
            figures = {"accuracy": accuracy(truth_T, found_T), "macro_f1": macro_f1(truth_T, found_T)}
            rows.append({"method": f"bank-{order}", "series": series.name, **figures})
    means = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        figures = {c: float(np.mean([row[c] for row in own])) for c in ("accuracy", "macro_f1")}
        means.append({"method": method, "series": "mean", **figures})
    return [*rows, *means]
