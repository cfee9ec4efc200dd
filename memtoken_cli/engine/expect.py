"""What a recipe expects of its bench, held against the rows. A row has a method, a ratio or None, and an
accuracy.

`over_NAME` is the accuracy over the contestant NAME at the ratio where it is least; a contestant's own
accuracy is `NAME_RATIO`, or `NAME` where it has no ratio. `NAME.COLUMN` is any number of a contestant's row
that no ratio divides. A row's `figures`, a mapping, are further numbers by names of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def figures(rows: Rows) -> dict[str, float]:
    """Accuracy by contestant and ratio: `memcom_4`, `full`, ..."""
    return {
        row["method"] if row["ratio"] is None else f"{row['method']}_{row['ratio']:g}": row["accuracy"]
        for row in rows
    }


def margins(rows: Rows, name: str) -> dict[str, float]:
    """`over_fewer`, ...: what the method `name` has over each other; its variants by short names."""
    ours = {row["ratio"]: row["accuracy"] for row in rows if row["method"] == name}
    found: dict[str, float] = {}
    for row in rows:
        if row["method"] == name:
            continue
        for ratio in ours if row["ratio"] is None else [row["ratio"]]:
            key = f"over_{row['method'].removeprefix(f'{name}-')}"
            found[key] = min(found.get(key, 1.0), ours[ratio] - row["accuracy"])
    return found


def columns(rows: Rows) -> dict[str, float]:
    """`base.over_em`, ...: the numbers of rows without a ratio."""
    return {
        f"{row['method']}.{key}": float(value)
        for row in rows
        if "method" in row and row.get("ratio") is None and "table" not in row
        for key, value in row.items()
        if isinstance(value, int | float)
    }


def named(rows: Rows) -> dict[str, float]:
    """The `figures` of all rows."""
    return {key: float(value) for row in rows for key, value in row.get("figures", {}).items()}


def unmet(expected: Mapping[str, float], rows: Rows, name: str) -> list[str]:
    """One line for each figure that is below what was expected, or not there; a NaN is below everything."""
    told = [row for row in rows if "accuracy" in row and "ratio" in row]
    found = figures(told) | margins(told, name) | columns(rows) | named(rows)
    lines = []
    for key, wanted in expected.items():
        value = found.get(key)
        if value is None or not value >= wanted:
            lines.append(f"expect.{key}: {wanted:g}, found {'nothing' if value is None else f'{value:.3f}'}")
    return lines
