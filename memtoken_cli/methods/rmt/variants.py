"""A recipe with one thing changed: another policy, another seed, no curriculum. All else stays equal."""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from memtoken_cli.data.task_config import CurriculumSection
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.recipe.schema import Recipe


def with_policy(recipe: Recipe, policy: str) -> Recipe:
    """Raises UsageError where the recipe's other keys do not go with it."""
    said = recipe.config.model_dump(exclude_unset=True) | {"policy": policy}
    try:
        config = Config.model_validate(said)
    except ValidationError as error:
        reason = "; ".join(str(item["ctx"]["error"]) for item in error.errors() if "ctx" in item)
        raise UsageError(f"policy {policy}: {reason or error}") from None
    return replace(recipe, config=config)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    return replace(recipe, seed=seed)


def flat(recipe: Recipe, size: int) -> Recipe:
    """Every batch is of the task's full size."""
    plan: CurriculumSection = recipe.own["curriculum"]
    changed = {"start": size, "step": 1, "end": None, "counts": None}
    section = CurriculumSection.model_validate(plan.model_dump() | changed)
    return replace(recipe, own={**recipe.own, "curriculum": section})
