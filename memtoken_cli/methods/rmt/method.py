"""The verbs of `rmt`; each is a file of its own, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memtoken_cli.engine.endless import StreamCall, Streamed
from memtoken_cli.engine.method import BankCall, Run
from memtoken_cli.methods.rmt import SPEC
from memtoken_cli.methods.rmt.config import BankKeys
from memtoken_cli.methods.rmt.exam_config import EvaluateKeys
from memtoken_cli.methods.rmt.generate_config import GenerateKeys
from memtoken_cli.methods.rmt.run import train
from memtoken_cli.recipe.schema import Recipe


class RMT:
    spec = SPEC

    def train(self, recipe: Recipe, run: Run) -> Path:
        """Train the recipe's policy and its backbone; returns the artifact's path."""
        return train(recipe, run)

    def sketch(self, recipe: Recipe) -> dict[str, Any]:
        """What training would take; see `sketch.py`."""
        from memtoken_cli.methods.rmt import sketch

        return sketch.sketch(recipe)

    def evaluate(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        """The recipe's trained model on its task, beside its controls; see `evaluate.py`."""
        from memtoken_cli.methods.rmt import evaluate

        return evaluate.of_recipe(recipe, run)

    def examine(
        self, path: str, kind: str, data: str | None, keys: EvaluateKeys, seed: int, run: Run
    ) -> list[dict[str, Any]]:
        """The same of an artifact; what `data` and `seed` are stands in the keys."""
        from memtoken_cli.methods.rmt import evaluate

        return evaluate.examine(path, keys, run)

    def bench(self, recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
        """Policies beside each other, in speed and in quality; see `bench.py`."""
        from memtoken_cli.methods.rmt import bench

        return bench.bench(recipes, run)

    def stream(self, call: StreamCall, keys: GenerateKeys, run: Run) -> Streamed:
        """Text of any length into a session, and what follows out of it; see `streaming.py`."""
        from memtoken_cli.methods.rmt import streaming

        return streaming.stream(call, keys, run)

    def bank(self, call: BankCall, keys: BankKeys, run: Run) -> Iterator[Mapping[str, Any]]:
        """`memtok bank export` under the names of the papers' own code; see `export.py`."""
        from memtoken_cli.methods.rmt import export

        yield export.export(call, run)
