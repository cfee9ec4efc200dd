"""Figures of evaluate and bench as pictures: quality against segments, speed and memory against length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from memtoken_cli.engine.compare_report import check_plot, save_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", "--", "-.", ":")  # legible in grey
CONTROLS = ("no_memory", "shuffled")
SPEED = (
    ("tokens_per_second", "tokens read a second"),
    ("ms_per_token", "ms a generated token"),
    ("peak_mib", "peak MiB above the model"),
    ("state_bytes", "bytes of state"),
)

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
"""A contestant's rows."""


def quality(path: str, lines: Lines) -> None:
    """Accuracy over segments, or a text's bits per byte by segment; of a single contestant its controls too.

    Raises UsageError for a kind of picture that is not written."""
    from matplotlib.figure import Figure

    check_plot(path)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    text = any("nats" in row for rows in lines.values() for row in rows)
    x, y = ("segment", "bits_per_byte") if text else ("segments", "accuracy")
    drawn = {name: [(row[x], row[y]) for row in rows] for name, rows in lines.items()}
    if len(lines) == 1:
        (rows,) = lines.values()
        for control in CONTROLS:
            drawn[control] = [(row[x], row[control]) for row in rows if control in row]
    _lines(axes, drawn)
    axes.set(xlabel=x, ylabel=y.replace("_", " "))
    if not text:
        axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
    save_plot(path, figure)


def speed(path: str, lines: Lines) -> None:
    """A panel a figure, over the tokens read; both axes logarithmic. Raises UsageError as `quality`."""
    from matplotlib.figure import Figure

    check_plot(path)
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(2, 2).flat, SPEED, strict=True):
        drawn = {
            name: [(row["length"], row[column]) for row in rows if row.get(column)]
            for name, rows in lines.items()
        }
        _lines(axes, drawn)
        axes.set(xlabel="tokens", title=title, xscale="log", yscale="log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    save_plot(path, figure)


def _lines(axes: Axes, drawn: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for (name, points), dash in zip(drawn.items(), cycle(DASHES), strict=False):
        if points:
            axes.plot(*zip(*sorted(points), strict=True), dash, marker="o", markersize=3, label=name)
    axes.grid(alpha=0.3)
