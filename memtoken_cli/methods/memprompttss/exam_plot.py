"""Curves of an exam as a picture: accuracy over clicks, a line a contestant."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from numpy.typing import ArrayLike

from memtoken_cli.engine.compare_report import check_plot, save_plot

DASHES = ("-", "--", "-.", ":")  # legible in grey


def curves(lines: Mapping[str, ArrayLike], path: str) -> None:
    """Accuracy after click 1, 2, ... by contestant. Raises UsageError for a kind of picture not written."""
    from matplotlib.figure import Figure

    check_plot(path)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (name, values), dash in zip(lines.items(), cycle(DASHES), strict=False):
        y = np.asarray(values)
        axes.plot(np.arange(1, len(y) + 1), y, dash, label=name, linewidth=2.5 if name == "tss" else 1.2)
    axes.set(xlabel="clicks", ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_plot(path, figure)
