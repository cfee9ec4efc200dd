"""`memtok evaluate`: a trained model on a task, beside itself without memory and with another row's.

Runs of recipes lie in runs/rmt-NAME for recipes/rmt/NAME.yaml, where `memtok train` puts them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memtoken_cli.engine.compare_report import check_plot
from memtoken_cli.engine.elsewhere import Elsewhere
from memtoken_cli.engine.expect import unmet
from memtoken_cli.engine.method import Run
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt import sheet
from memtoken_cli.methods.rmt.config import DataConfig
from memtoken_cli.methods.rmt.exam_config import EvaluateKeys, ExamKeys
from memtoken_cli.methods.rmt.model_file import open_model
from memtoken_cli.methods.rmt.run import NAME, train
from memtoken_cli.methods.rmt.subject import subject, task_of
from memtoken_cli.recipe.schema import Recipe

RUNS = "runs"


def folder_of(recipe: Recipe, run: Run) -> Path:
    return run.out / RUNS / f"{NAME}-{Path(recipe.source).stem}"


def of_recipe(recipe: Recipe, run: Run) -> dict[str, Any]:
    """The figures of the recipe's run, trained where it is not yet. Raises UsageError, DataError."""
    _check(recipe.data)
    path = train(recipe, Elsewhere(run, folder_of(recipe, run)))
    keys: DataConfig = recipe.data
    found = subject(open_model(path, run.device), recipe.own["task"], keys.path, recipe.seed, keys.batch)
    result = sheet.measured(found, keys, run.note)
    figures = result.figures | over_none(result.figures)
    for line in unmet(recipe.expect, [{"figures": figures}], NAME):
        run.note(line)
    _draw(keys.plot, found.policy, result.rows)
    return {"path": str(path), "policy": found.policy, **figures, "table": result.rows}


def over_none(figures: Mapping[str, float]) -> dict[str, float]:
    """What the model has over itself without memory; a bench has it over one trained without."""
    if "no_memory" in figures:
        return {"accuracy_over_none": figures["accuracy"] - figures["no_memory"]}
    lost = figures.get("no_memory_loses")
    return {} if lost is None else {"bits_per_byte_under_none": lost}


def examine(path: str, keys: EvaluateKeys, run: Run) -> list[dict[str, Any]]:
    """Rows of figures of one artifact. Raises UsageError, DataError."""
    _check(keys)
    model = open_model(path, run.device, keys.model)
    task = task_of(model.about["task"], keys.task)
    if keys.path is not None and task.name != "text":
        hint = f"memtok evaluate {path} task.KEY=VALUE"
        raise UsageError(f"the task {task.name} reads no --data", hint=hint)
    text = keys.path or model.about["data"]["path"]
    seed = model.about["seed"] if keys.seed is None else keys.seed
    found = subject(model, task, text, seed, keys.batch)
    result = sheet.measured(found, keys, run.note)
    _draw(keys.plot, found.policy, result.rows)
    return result.rows


def _check(keys: ExamKeys) -> None:
    """Raises UsageError for a picture that could not be drawn, before anything is measured."""
    if keys.plot is not None:
        check_plot(keys.plot)


def _draw(path: str | None, policy: str, rows: Sequence[dict[str, Any]]) -> None:
    if path is not None:
        from memtoken_cli.methods.rmt import plots

        plots.quality(path, {policy: rows})
