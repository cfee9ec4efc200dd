"""`memtok bench`: memory policies of a recipe beside each other, in speed and memory, and in quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memtoken_cli.engine.compare_report import check_plot
from memtoken_cli.engine.method import Run
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt import quality, speed
from memtoken_cli.methods.rmt.exam_config import BenchSection
from memtoken_cli.recipe.schema import Recipe


def bench(recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
    """Rows of all recipes. Raises UsageError, DataError."""
    if recipes[0].data.plot is not None:
        check_plot(recipes[0].data.plot)
    rows: list[dict[str, Any]] = []
    for recipe in recipes:
        named = {"recipe": recipe.source} if len(recipes) > 1 else {}
        rows += [named | row for row in _rows(recipe, run)]
    return rows


def _rows(recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    section: BenchSection = recipe.own["bench"]
    policies = section.policies or tuple(dict.fromkeys((recipe.config.policy, "none")))
    rows: list[dict[str, Any]] = []
    tested = section.quality
    if tested is None:
        tested = bool(recipe.expect) and not section.lengths
    if tested:
        entrants = quality.contest(recipe, policies, run)
        rows += quality.rows(recipe, entrants)
        if recipe.data.plot is not None:
            from memtoken_cli.methods.rmt import plots

            lines = {e.name: e.results[0].rows for e in entrants if e.results}
            plots.quality(recipe.data.plot, lines)
    if section.lengths or not rows:
        found = speed.table(recipe, policies, run.device, run.note)
        if all("why" in row for row in found):
            raise UsageError(f"nothing could be measured: {found[0]['why']}")
        rows += found
        if recipe.data.plot is not None and len(rows) == len(found):
            from memtoken_cli.methods.rmt import plots

            plots.speed(recipe.data.plot, _by_method(found))
    return rows


def _by_method(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows that have a length."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "length" in row:
            found.setdefault(row["method"], []).append(row)
    return found
