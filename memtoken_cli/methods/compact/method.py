"""The verbs of `compact`: compress here; answering, measuring and comparing are the engine's."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...data.render import Template, default_template
from ...data.shots import Shots
from ...engine.answer import answer as answered
from ...engine.backbone import CausalLM
from ...engine.contest import subset
from ...engine.memory import Layers, Memory
from ...engine.method import Answer, Budget, GenerateOptions, Made, Run
from ...engine.turn import in_a_row
from ...recipe.schema import Recipe
from . import SPEC
from .bench import bench
from .config import Config
from .piece import cut, shares, total, written


class Compact:
    spec = SPEC

    def compress(self, backbone: CausalLM, shots: Shots, budget: Budget, config: Config, seed: int) -> Made:
        """One artifact's memory. Raises DataError where the prompt does not fit the model's context."""
        template = Template(config.template) if config.template else default_template(shots)
        if config.order == "shuffled":
            shots = subset(shots, random.Random(seed).sample(range(len(shots.items)), len(shots.items)))
        pieces, dropped = cut(backbone, shots, template, config)
        budgets = shares(backbone, pieces, template, budget, config)
        made = [
            written(backbone, piece, template, part, config, seed)
            for piece, part in zip(pieces, budgets, strict=True)
        ]
        alone = [m.memory for m in made if isinstance(m.memory, Layers)]
        memory = in_a_row(backbone, alone) if len(alone) > 1 else alone[0]
        about = {
            "template": template.text,
            "instruction": config.instruction,
            "labels": list(shots.labels) or None,
            # a bias fitted to one piece does not speak for the others
            "calibration": made[0].about.get("calibration") if len(made) == 1 else None,
        }
        return Made(memory, about, total([m.report for m in made], memory, dropped))

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

    def evaluate(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        """The recipe's comparison without rivals: this memory beside the whole prompt."""
        alone = recipe.data.model_copy(update={"rivals": ("none", "fewer")})
        return {"rows": bench(self, recipe, alone, run)}

    def bench(self, recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
        """One row a contestant and ratio; a recipe's rows carry its file's name where there are several."""
        rows = []
        for recipe in recipes:
            named = {"recipe": recipe.source} if len(recipes) > 1 else {}
            rows += [row | named for row in bench(self, recipe, recipe.data, run)]
        return rows
