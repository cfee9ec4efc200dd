"""Policies trained alike, from one recipe, and tested on the same rows.

The recipe's own policy lies in runs/rmt-NAME, where `memtok train` puts it too; rivals lie in folders beside
its files: POLICY, POLICY-flat (without a curriculum), seed-N/... A finished one is used as it is.

Shape suffixes: S seeds, N test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memtoken_cli.engine.elsewhere import Elsewhere
from memtoken_cli.engine.method import Run
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt.config import CACHES, Config, DataConfig
from memtoken_cli.methods.rmt.evaluate import folder_of
from memtoken_cli.methods.rmt.exam import Exam
from memtoken_cli.methods.rmt.exam_config import BenchSection
from memtoken_cli.methods.rmt.model_file import open_model
from memtoken_cli.methods.rmt.run import built, train
from memtoken_cli.methods.rmt.sheet import Result, measured
from memtoken_cli.methods.rmt.subject import Subject, subject
from memtoken_cli.methods.rmt.variants import flat, with_policy, with_seed
from memtoken_cli.metrics import intervals
from memtoken_cli.recipe.schema import Recipe

FLAT = "-flat"
STATELESS = ("none", "xl", *CACHES)  # they have nothing of their own to train


@dataclass(frozen=True)
class Entrant:
    """One policy's results, a seed each. why: it could not be trained, instead of results."""

    name: str
    results: tuple[Result, ...] = ()
    why: str | None = None


def contest(recipe: Recipe, policies: Sequence[str], run: Run) -> list[Entrant]:
    """Train what is not trained yet, and test all of it. Raises UsageError, DataError where the recipe's own
    policy cannot be trained; of rivals a row says so."""
    section: BenchSection = recipe.own["bench"]
    own = recipe.config.policy
    entrants = []
    for policy in policies:
        entrants.append(_entrant(recipe, policy, policy, run))
        if section.flat and policy != own and entrants[-1].why is None:
            entrants.append(_entrant(recipe, policy, policy + FLAT, run))
    return entrants


def _entrant(recipe: Recipe, policy: str, name: str, run: Run) -> Entrant:
    section: BenchSection = recipe.own["bench"]
    results = []
    try:
        for seed in section.seeds or (recipe.seed,):
            entrant = with_seed(with_policy(recipe, policy), seed)
            results.append(_trained(entrant, name, recipe, run))
    except (UsageError, DataError) as error:
        if policy == recipe.config.policy:
            raise
        return Entrant(name, why=error.message)
    return Entrant(name, tuple(results))


def _trained(recipe: Recipe, name: str, base: Recipe, run: Run) -> Result:
    """base: the recipe whose seed the test rows come from."""
    run.note(f"{name}, seed {recipe.seed}")
    keys: DataConfig = base.data
    if recipe.config.trained == "memory" and recipe.config.policy in STATELESS:
        return measured(_untrained(recipe, base, run), keys, run.note)
    if name.endswith(FLAT):
        recipe = flat(recipe, built(recipe, "cpu").stream.size())
    path = train(recipe, Elsewhere(run, _folder(recipe, name, base, run)))
    model = open_model(path, run.device)
    return measured(subject(model, base.own["task"], keys.path, base.seed, keys.batch), keys, run.note)


def _folder(recipe: Recipe, name: str, base: Recipe, run: Run) -> Path:
    folder = folder_of(base, run)
    if recipe.seed != base.seed:
        folder /= f"seed-{recipe.seed}"
    return folder if name == base.config.policy else folder / name


def _untrained(recipe: Recipe, base: Recipe, run: Run) -> Subject:
    bench = built(recipe, run.device)
    exam = Exam.of(bench.backbone, bench.policy, bench.config, base.data.batch)
    return Subject(exam, bench.backbone, bench.stream, base.seed)


def rows(recipe: Recipe, entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """A row an entrant: means over seeds, and of the accuracy a 95 % interval over test rows and seeds. The
    recipe's own has the `figures` that it can expect."""
    config: Config = recipe.config
    found = [_row(entrant) for entrant in entrants]
    for row in found:
        if row["method"] == config.policy and "why" not in row:
            row["figures"] = _figures(row, found)
    return found


def _row(entrant: Entrant) -> dict[str, Any]:
    if entrant.why is not None:
        return {"method": entrant.name, "why": entrant.why}
    results = entrant.results
    names = results[0].figures
    row: dict[str, Any] = {"method": entrant.name, "ratio": None}
    row |= {name: float(np.mean([r.figures[name] for r in results])) for name in names}
    if results[0].main is not None:
        interval = intervals.mean(np.stack([r.shares[r.main] for r in results]))
        row |= {"low": interval.low, "high": interval.high}
    if len(results) > 1:
        score = "accuracy" if "accuracy" in names else "bits_per_byte"
        row |= {"seeds": len(results), "each": [r.figures[score] for r in results]}
    return row


def _figures(own: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`accuracy_over_NAME`: over the better of NAME and NAME-flat; of a text `bits_per_byte_under_NAME`."""
    figures = {name: value for name, value in own.items() if isinstance(value, float)}
    for row in others:
        name = row["method"].removesuffix(FLAT)
        if row is own or "why" in row:
            continue
        if "accuracy" in own:
            key, margin = f"accuracy_over_{name}", own["accuracy"] - row["accuracy"]
        else:
            key, margin = f"bits_per_byte_under_{name}", row["bits_per_byte"] - own["bits_per_byte"]
        figures[key] = min(figures[key], margin) if row["method"].endswith(FLAT) else margin
    return figures
