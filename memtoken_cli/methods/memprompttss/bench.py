"""`memtok bench`: the tasks of several recipes in one table of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memtoken_cli.engine.method import Run
from memtoken_cli.methods.memprompttss.config import DataConfig
from memtoken_cli.methods.memprompttss.evaluate import PAPER, of_recipe
from memtoken_cli.recipe.schema import Recipe


def bench(recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
    """One row a contestant and setting; with several recipes each row names its own. Raises UsageError,
    DataError."""
    rows = []
    for recipe in recipes:
        data: DataConfig = recipe.data
        named = {"recipe": recipe.source, "task": data.task or PAPER} if len(recipes) > 1 else {}
        rows += [row | named for row in of_recipe(recipe, run)]
    return rows
