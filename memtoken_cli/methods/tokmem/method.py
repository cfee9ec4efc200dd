"""The verbs of `tokmem`; each is a file of its own, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.memory import Memory
from memtoken_cli.engine.method import Answer, BankCall, GenerateOptions, Run
from memtoken_cli.methods.tokmem import SPEC
from memtoken_cli.methods.tokmem.config import BankKeys, EvaluateKeys
from memtoken_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from memtoken_cli.methods.tokmem.generate import Answering


class TokMem:
    spec = SPEC

    @cached_property
    def _answering(self) -> Answering:
        from memtoken_cli.methods.tokmem.generate import Answering

        return Answering()

    def train(self, recipe: Recipe, run: Run) -> Path:
        """Train the recipe's bank, or add to one; returns the artifact. See `train.py`."""
        from memtoken_cli.methods.tokmem import train

        return train.train(recipe, run)

    def answer(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        queries: Sequence[str],
        options: GenerateOptions,
    ) -> Iterator[Answer]:
        """Answers in the order of the queries; see `generate.py`."""
        return self._answering.answer(backbone, memory, about, queries, options)

    def speak(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        query: str,
        options: GenerateOptions,
    ) -> Iterator[str]:
        """One answer piece by piece, as it is decoded; see `generate.py`."""
        return self._answering.speak(backbone, memory, about, query, options)

    def bank(self, call: BankCall, keys: BankKeys, run: Run) -> Iterator[Mapping[str, Any]]:
        """What `memtok bank` does with files; see `operations.py`."""
        from memtoken_cli.methods.tokmem import operations

        return operations.run(call, keys, run)

    def measure(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        data: str,
        keys: EvaluateKeys,
        run: Run,
    ) -> list[dict[str, Any]]:
        """Figures of a bank on a folder of procedures; see `evaluate.py`."""
        from memtoken_cli.methods.tokmem import evaluate

        return evaluate.measure(backbone, memory, about, data, keys, run)

    def evaluate(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        """Figures of the recipe's bank on the test part of its data; see `evaluate.py`."""
        from memtoken_cli.methods.tokmem import evaluate

        return evaluate.of_recipe(recipe, run)

    def bench(self, recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
        """The recipes' comparison; see `bench.py`."""
        from memtoken_cli.methods.tokmem import bench

        return bench.bench(recipes, run)
