"""Compressors of one recipe beside the full prompt, fewer shots and none, on tasks that none was trained on.

Runs lie in runs/memcom-NAME for recipes/memcom/NAME.yaml, where `memtok train` puts them too; a finished one
is used as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.compare import average, compare
from memtoken_cli.engine.contest import Contestant, Context
from memtoken_cli.engine.dist import World, join
from memtoken_cli.engine.method import Budget, Made, Run
from memtoken_cli.engine.rivals import rivals
from memtoken_cli.methods.memcom import method
from memtoken_cli.methods.memcom.config import DataConfig
from memtoken_cli.methods.memcom.model import Writer
from memtoken_cli.methods.memcom.run import NAME, open_compressor, train_on, variant
from memtoken_cli.methods.memcom.source import target, tasks, template_of
from memtoken_cli.recipe.schema import Recipe

RUNS = "runs"


def exam(recipe: Recipe, run: Run, variants: Sequence[str]) -> list[dict[str, Any]]:
    """One row a contestant and ratio: means over the recipe's tasks. Trains what is not trained yet."""
    data: DataConfig = recipe.data
    folder = run.out / RUNS / f"{NAME}-{Path(recipe.source).stem}"
    with join(run.device) as world:
        backbone = target(recipe, folder, run, world)
        entrants = [_entrant(NAME, backbone, recipe, folder, run, world)]
        for name in variants:
            other = variant(recipe, name)
            entrants.append(_entrant(f"{NAME}-{name}", backbone, other, folder / name, run, world))
    done = compare(
        backbone,
        tasks(recipe),
        template_of(recipe),
        [*rivals(data.exam.rivals), *entrants],
        data.exam.ratios,
        calibrated=False,
    )
    return [row.record() for row in average(list(done))]


def _entrant(
    name: str, backbone: CausalLM, recipe: Recipe, folder: Path, run: Run, world: World
) -> Contestant:
    path = train_on(backbone, recipe, folder, run, world)
    writer, _ = open_compressor(path, backbone)
    return Contestant(name, _Make(writer))


class _Make:
    """A compressor as a contestant; opened once for all tasks."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def __call__(self, ctx: Context, slots: int) -> Made:
        budget = Budget(slots=slots)
        return method.written(ctx.backbone, self.writer, ctx.shots, ctx.template, budget, ctx.instruction)
