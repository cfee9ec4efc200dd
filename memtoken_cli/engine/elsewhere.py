"""A run in a folder of its own: what evaluate and bench hand on where something must be trained first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memtoken_cli.engine.method import Run


@dataclass(frozen=True)
class Elsewhere:
    """`run`, but in the folder `out`."""

    run: Run
    out: Path

    @property
    def fresh(self) -> bool:
        return self.run.fresh

    @property
    def device(self) -> str | None:
        return self.run.device

    def note(self, text: str) -> None:
        self.run.note(text)
