"""The verbs of `memcom`. Answering queries and comparing are the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memtoken_cli.data.render import Template, render
from memtoken_cli.data.shots import Shots
from memtoken_cli.engine.answer import answer as answered
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.expect import figures, margins, unmet
from memtoken_cli.engine.memory import Memory
from memtoken_cli.engine.method import Answer, Budget, GenerateOptions, Made, Run
from memtoken_cli.io.artifact import sha256_of
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memcom import SPEC, exam
from memtoken_cli.methods.memcom.config import Config
from memtoken_cli.methods.memcom.model import Writer
from memtoken_cli.methods.memcom.run import NAME, check_reading, open_compressor, train
from memtoken_cli.recipe.schema import Recipe


class MemCom:
    spec = SPEC

    def compress(self, backbone: CausalLM, shots: Shots, budget: Budget, config: Config, seed: int) -> Made:
        """One prompt's memory, by the trained compressor that the config names.

        Raises UsageError without one or with another model's, DataError for a prompt beyond the context.
        """
        check_reading(config)
        path = str(config.compressor)
        writer, trained = open_compressor(path, backbone)
        template = Template(config.template or str(trained["template"]))
        made = written(backbone, writer, shots, template, budget, config.instruction)
        made.about["compressor"] = {"path": path, "sha256": sha256_of(path), "config": trained["config"]}
        return made

    def answer(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        queries: Sequence[str],
        options: GenerateOptions,
    ) -> Iterator[Answer]:
        """Answers in the order of the queries; see `engine.answer`."""
        return answered(backbone, memory, about, queries, options)

    def train(self, recipe: Recipe, run: Run) -> Path:
        """Train the recipe's compressor (and first its model, where that is new); returns the artifact."""
        return train(recipe, run)

    def evaluate(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        """The trained compressor on held-out tasks, beside the recipe's rivals."""
        rows = exam.exam(recipe, run, variants=())
        for line in unmet(recipe.expect, rows, NAME):
            run.note(line)
        return figures(rows) | margins(rows, NAME) | {"rows": rows}

    def bench(self, recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
        """Every compressor that the recipes name, trained where it is not yet, in one table."""
        rows = []
        for recipe in recipes:
            named = {"recipe": recipe.source} if len(recipes) > 1 else {}
            rows += [row | named for row in exam.exam(recipe, run, recipe.data.exam.variants)]
        return rows


@torch.no_grad()
def written(
    backbone: CausalLM,
    writer: Writer,
    shots: Shots,
    template: Template,
    budget: Budget,
    instruction: str = "",
) -> Made:
    """The memory of a prompt. Raises DataError where it does not fit the context or the budget."""
    ids = render(shots, template, backbone.tokenizer, instruction).ids
    if len(ids) > backbone.dims.context:
        raise DataError(
            f"the prompt's {len(ids)} tokens do not fit the {backbone.dims.context} of {backbone.name}",
            hint="fewer shots",
        )
    slots = budget.slots_for(len(ids))
    ids_1T = torch.tensor([ids], device=backbone.device)
    memory = writer.write(ids_1T, torch.tensor([len(ids)], device=backbone.device), slots).row(backbone)
    about = {
        "template": template.text,
        "instruction": instruction,
        "labels": list(shots.labels) or None,
        "calibration": None,
    }
    return Made(memory, about, {"tokens": len(ids), "slots": slots, "bytes": memory.nbytes})
