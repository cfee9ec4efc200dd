"""What is forgotten as a bank grows: accuracy after each block, on all seen, on the first block, and of a
joint fit; as rows and as a picture.

Shape suffixes: B questions, P procedures (and, last, no procedure at all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from memtoken_cli.engine.compare_report import check_plot, save_plot
from memtoken_cli.methods.tokmem.exam import Question
from memtoken_cli.methods.tokmem.meta import Row


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


def of_blocks(method: str, rows: Sequence[Row], log_p_BP: Tensor, asked: Sequence[Question]) -> list[Point]:
    """A finished bank's: after each of its blocks, how often the best of the procedures until then was right.

    What the procedures of later blocks left in a shared covariance is in it. Nothing for a bank of one block,
    or where the first block is not asked for.
    """
    order = list(dict.fromkeys(row.block for row in rows))
    at = {row.name: i for i, row in enumerate(rows)}
    gold_B = torch.tensor([at.get(q.gold[0], -1) if len(q.gold) == 1 else -1 for q in asked])
    block_P = torch.tensor([order.index(row.block) for row in rows])
    block_B = torch.where(gold_B >= 0, block_P[gold_B], len(order))
    first_B = block_B == 0
    if len(order) < 2 or not bool(first_B.any()):
        return []
    points = []
    for b in range(len(order)):
        later_P = torch.zeros(log_p_BP.shape[1], dtype=torch.bool)
        later_P[: len(rows)] = block_P > b
        hit_B = log_p_BP.masked_fill(later_P, -torch.inf).argmax(1) == gold_B
        seen, first = (float(hit_B[some_B].double().mean()) for some_B in (block_B <= b, first_B))
        points.append(Point(method, b + 1, int((block_P <= b).sum()), seen, first))
    return points


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
