"""What a command passes to a method that runs something: where to write, on what device, and how to speak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memtoken_cli.io.errors import UsageError

if TYPE_CHECKING:
    from memtoken_cli.commands.options import Common
    from memtoken_cli.io.sink import Sink
    from memtoken_cli.recipe.schema import Recipe

RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Request:
    """The engine's `Run` protocol, filled in from a command line."""

    sink: Sink
    out: Path
    fresh: bool = False
    device: str | None = None
    seed: int = 0

    @classmethod
    def of(cls, common: Common, sink: Sink, out: str | None = None, fresh: bool = False) -> Request:
        return cls(sink, Path(out or "."), fresh, common.device, common.seed or 0)

    def note(self, text: str) -> None:
        self.sink.note(text)


def is_recipe(path: str) -> bool:
    return path.endswith(RECIPES)


def load_recipe(path: str, overrides: Sequence[str], common: Common) -> Recipe:
    """A checked recipe; --seed is the override seed=N. Raises UsageError with all of its problems."""
    if not is_recipe(path):
        raise UsageError(
            f"{path} is not a recipe: those end in .yaml", hint="memtok train recipes/METHOD/tiny.yaml"
        )
    from memtoken_cli.recipe.schema import load

    seeded = [] if common.seed is None else [f"seed={common.seed}"]
    return load(path, [*overrides, *seeded])


def recipe_files(incomplete: str) -> list[str]:
    """Recipes and directories to complete a RECIPE with."""
    import glob

    found = sorted(glob.glob(glob.escape(incomplete) + "*"))
    return [
        f"{path}/" if Path(path).is_dir() else path
        for path in found
        if Path(path).is_dir() or is_recipe(path)
    ]
