"""The options that every command has, declared once, and what they turn into.

`Common.sink()` is how a command gets its outputs; nothing else here does I/O.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from memtoken_cli.io.sink import Sink

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.", show_default=False)]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, metavar="", help="More notes; -vv: tracebacks.", show_default=False
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.  [default: 0]")
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1, mps.  [default: best]")
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python files of the model.", show_default=False)
]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", hidden=True)]


@dataclass(frozen=True)
class Common:
    """The common options of one call; `seed` and `device` stay None where the user said nothing."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    seed: int | None = None
    device: str | None = None
    trust: bool = False

    def sink(self, out: str | None = None) -> "Sink":
        from memtoken_cli.io import progress
        from memtoken_cli.io.sink import Sink

        progress.set_quiet(self.quiet)
        progress.silence_third_party()
        return Sink(json=self.json, quiet=self.quiet, out=out)
