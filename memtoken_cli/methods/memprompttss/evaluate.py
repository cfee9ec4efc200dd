"""`memtok evaluate`: a recipe's task, or an artifact on labelled series. The exams are `exams.py`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memtoken_cli.engine.method import Run
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss import exams
from memtoken_cli.methods.memprompttss.config import DataConfig, GeneratedSection
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.recipe.schema import Recipe

PAPER = "paper"


def of_recipe(recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    """The rows of the recipe's task. Raises UsageError, DataError."""
    data: DataConfig = recipe.data
    if (data.task or PAPER) == PAPER:
        from memtoken_cli.methods.memprompttss import paper_exam

        return paper_exam.exam(recipe, run)
    from memtoken_cli.methods.memprompttss.exam_data import Source

    source = Source(data, data.path, data.generated, recipe.seed)
    return exams.rows(str(data.task), source, data, recipe.seed, run)


def evaluate(recipe: Recipe, run: Run) -> dict[str, Any]:
    """`of_recipe` as one report."""
    data: DataConfig = recipe.data
    return {"task": data.task or PAPER, "data": data.path or "generated", "table": of_recipe(recipe, run)}


def examine(path: str, kind: str, data: str, keys: EvaluateKeys, seed: int, run: Run) -> list[dict[str, Any]]:
    """Rows of a model's file (kind "model") as the subject of a task, or of a bank ("memory") on every
    labelled series of `data`. Raises UsageError, DataError."""
    if kind == "memory":
        if keys.task not in (None, "transfer"):
            raise UsageError(
                f"a bank has no task={keys.task}", hint="task=transfer: it is read on every series"
            )
        from memtoken_cli.methods.memprompttss import bank_exam

        return bank_exam.table(path, data, keys)
    task = keys.task or "clicks"
    if task == PAPER:
        raise UsageError("task=paper compares trained backends", hint="memtok evaluate RECIPE task=paper")
    from memtoken_cli.methods.memprompttss.exam_data import Source

    named = keys.model_copy(update={"subject": path})
    if not Path(data).exists():
        raise UsageError(f"no such file or folder: --data {data}")
    return exams.rows(task, Source(named, data, GeneratedSection(), seed), named, seed, run)
