"""What is forgotten as a bank grows: accuracy after each block, on all seen, on the first block, and of a
joint fit; as rows and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memtoken_cli.engine.compare_report import check_plot, save_plot


@dataclass(frozen=True)
class Point:
    """After block `block` (from 1): routing accuracy of one contestant, 0 to 1. joint: of one fit to the same
    procedures at once, where it was made."""

    method: str
    block: int
    procedures: int
    seen: float
    first: float
    joint: float | None = None

    def record(self) -> dict[str, Any]:
        return {"table": "forgetting", **asdict(self)}


def averaged(points: Sequence[Point]) -> list[Point]:
    """Means over seeds: points of one method and block become one, in the order of their first."""
    groups: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, point.block), []).append(point)
    return [
        Point(
            method,
            block,
            some[0].procedures,
            sum(p.seen for p in some) / len(some),
            sum(p.first for p in some) / len(some),
            _mean([p.joint for p in some if p.joint is not None]),
        )
        for (method, block), some in groups.items()
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def plot(path: str, points: Sequence[Point]) -> None:
    """Accuracy against procedures, a panel a figure, a line a contestant; joint fits are dashed.

    Raises UsageError for a kind of picture that is not written.
    """
    from matplotlib.figure import Figure

    check_plot(path)
    figure = Figure(figsize=(10, 4), layout="constrained")
    methods = list(dict.fromkeys(point.method for point in points))
    panels = (("seen", "all procedures seen"), ("first", "the first block"))
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for number, method in enumerate(methods):
            mine = sorted((p for p in points if p.method == method), key=lambda p: p.block)
            x = [p.procedures for p in mine]
            axes.plot(x, [getattr(p, key) for p in mine], color=f"C{number}", marker="o", label=method)
            joint = [(p.procedures, p.joint) for p in mine if p.joint is not None]
            if joint and key == "seen":
                axes.plot(*zip(*joint, strict=True), color=f"C{number}", linestyle="--")
        axes.set(xlabel="procedures", title=title, ylim=(0, 1.02))
    figure.axes[0].set_ylabel("routing accuracy")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    save_plot(path, figure)
