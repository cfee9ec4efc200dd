"""The verbs of `memprompttss`; each is a file of its own, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtoken_cli.engine.method import Run
from memtoken_cli.engine.segmenting import SegmentCall, Segmented
from memtoken_cli.methods.memprompttss import SPEC
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.recipe.schema import Recipe


class MemPromptTSS:
    spec = SPEC

    def segment(self, call: SegmentCall, keys: Any, run: Run) -> Segmented:
        """What `memtok segment` prints; see `product.py`."""
        from memtoken_cli.methods.memprompttss import product

        return product.segment(call, keys, run)

    def train(self, recipe: Recipe, run: Run) -> Path:
        """Train the recipe's backend on labelled series; returns the artifact. See `train.py`."""
        from memtoken_cli.methods.memprompttss import train

        return train.train(recipe, run)

    def evaluate(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        """Figures of the recipe's task; see `evaluate.py`."""
        from memtoken_cli.methods.memprompttss import evaluate

        return evaluate.evaluate(recipe, run)

    def examine(
        self, path: str, kind: str, data: str, keys: EvaluateKeys, seed: int, run: Run
    ) -> list[dict[str, Any]]:
        """Figures of a model's file or of a bank on labelled series; see `evaluate.py`."""
        from memtoken_cli.methods.memprompttss import evaluate

        return evaluate.examine(path, kind, data, keys, seed, run)

    def bench(self, recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
        """The recipes' comparison; see `bench.py`."""
        from memtoken_cli.methods.memprompttss import bench

        return bench.bench(recipes, run)
