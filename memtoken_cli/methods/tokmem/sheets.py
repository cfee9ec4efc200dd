"""Sheets of marks: one contestant's under one seed, question by question, so that rows can be paired; their
means, intervals and differences, and JSON that a bench can go on from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memtoken_cli.metrics.calibration import ece
from memtoken_cli.metrics.intervals import Interval, mean, paired

CONFUSIONS = 10
SHARES = ("top1", "top3", "set_match", "rouge_l", "em", "false_fire")


@dataclass
class Sheet:
    """One contestant's marks under one seed: a number a question and column (NaN: not asked), and costs.

    pairs: (gold, chosen) of the first step. calls: marks of tool calls, where outputs are calls.
    """

    name: str
    seed: int = 0
    marks: dict[str, list[float]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    calls: dict[str, dict[str, float]] = field(default_factory=dict)


def column(sheets: Sequence[Sheet], name: str) -> list[list[float]] | None:
    """[seeds, questions] of one mark, without the questions that have none; None where no sheet has it."""
    rows = [sheet.marks[name] for sheet in sheets if name in sheet.marks]
    if not rows:
        return None
    kept = [i for i in range(len(rows[0])) if not any(math.isnan(row[i]) for row in rows)]
    return [[row[i] for i in kept] for row in rows] if kept else None


def summary(sheets: Sequence[Sheet]) -> dict[str, Any]:
    """One row of a table: means of a contestant's marks over its seeds, with 95 % intervals of the main ones.

    Shares are from 0 to 1. calls: tool marks by the number of gold calls, nested; those of the row itself are
    the average over 2, 3 and 4, or single calls where there are no others.
    """
    row: dict[str, Any] = {"method": sheets[0].name, "seeds": len(sheets)}
    for name in SHARES:
        if (values := column(sheets, name)) is not None:
            found = mean(values)
            row[name] = found.value
            if name in ("top1", "rouge_l"):
                row |= {f"{name}_low": found.low, f"{name}_high": found.high}
    if (values := column(sheets, "nll")) is not None:
        # not by bootstrap: one gold name that a bank lacks makes it infinite
        row["nll"] = sum(map(sum, values)) / sum(map(len, values))
        row["ece"] = sum(_ece(sheet) for sheet in sheets) / len(sheets)
    for key in ("avg", "1"):
        found_calls = [sheet.calls[key] for sheet in sheets if key in sheet.calls]
        if found_calls:
            for name, value in _averaged(found_calls).items():
                row.setdefault(name, value)
    if numbers := dict.fromkeys(key for sheet in sheets for key in sheet.calls):
        row["calls"] = {key: _averaged([s.calls[key] for s in sheets if key in s.calls]) for key in numbers}
    for name in ("prompt_tokens", "memory_tokens"):
        if (values := column(sheets, name)) is not None:
            row[name] = mean(values).value
    for name in dict.fromkeys(key for sheet in sheets for key in sheet.cost):
        told = [sheet.cost[name] for sheet in sheets if name in sheet.cost]
        row[name] = sum(told) / len(told)
    row["questions"] = max((len(v) for v in sheets[0].marks.values()), default=0)
    return row


def _averaged(some: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in some) / len(some) for name in some[0]}


def _ece(sheet: Sheet) -> float:
    kept = [(p, hit) for p, hit in zip(sheet.marks["p"], sheet.marks["top1"], strict=True) if p == p]
    return ece([p for p, _ in kept], [bool(hit) for _, hit in kept])


def difference(ours: Sequence[Sheet], theirs: Sequence[Sheet], name: str) -> Interval | None:
    """The paired difference of a mark's means, or None where one of them has none."""
    a, b = column(ours, name), column(theirs, name)
    if a is None or b is None or len(a[0]) != len(b[0]):
        return None
    return paired(a, b)


def confusions(pairs: Sequence[tuple[str, str]], most: int = CONFUSIONS) -> list[dict[str, Any]]:
    """The largest (gold, chosen) pairs that differ, each with its count."""
    counted = Counter(pair for pair in pairs if pair[0] != pair[1])
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"gold": gold, "chosen": chosen, "count": count} for (gold, chosen), count in ranked]


def as_json(sheet: Sheet) -> dict[str, Any]:
    return {
        "name": sheet.name,
        "seed": sheet.seed,
        "marks": {
            name: [None if math.isnan(v) else v if math.isfinite(v) else "inf" for v in values]
            for name, values in sheet.marks.items()
        },
        "cost": sheet.cost,
        "pairs": [list(pair) for pair in sheet.pairs],
        "calls": sheet.calls,
    }


def from_json(value: Mapping[str, Any]) -> Sheet:
    """Raises KeyError or ValueError where it is no sheet."""
    marks_ = {
        name: [math.nan if v is None else float(v) for v in values] for name, values in value["marks"].items()
    }
    pairs = [(str(a), str(b)) for a, b in value["pairs"]]
    return Sheet(value["name"], value["seed"], marks_, value["cost"], pairs, value["calls"])
