"""A recipe of `memprompttss` that trains in a second, and where its run writes."""

from dataclasses import dataclass, field
from pathlib import Path

from memtoken_cli.recipe.schema import Recipe, load

RECIPES = Path(__file__).parents[1] / "recipes" / "memprompttss"
BACKENDS = ("memprompt", "prompttss")
TINY = [
    "data.generated.series=6",
    "data.generated.rows=192",
    "data.generated.channels=2",
    "data.generated.states=3",
    "data.seeds=1",
    "data.paper.iterations=2",
    "memprompttss.width=16",
    "memprompttss.blocks=2",
    "memprompttss.encoder_layers=1",
    "memprompttss.rows=32",
    "memprompttss.windows=3",
    "train.epochs=1",
    "train.batch=2",
    "train.iterations=2",
    "train.save_every=3",
    "train.log_every=1",
]


def recipe(*more: str) -> Recipe:
    return load(RECIPES / "tiny.yaml", [*TINY, *more])


@dataclass
class Here:
    out: Path
    fresh: bool = False
    device: str | None = "cpu"
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)
