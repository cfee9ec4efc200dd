"""`memtok bank`: artifacts that grow, handed to the method that made them."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.choose import method_for
from memtoken_cli.commands.options import Common, Device, Json, Quiet, Seed, Verbose
from memtoken_cli.commands.running import Request
from memtoken_cli.io.errors import UsageError

if TYPE_CHECKING:
    from memtoken_cli.engine.method import Banks

ACTIONS = ("list", "show", "add", "remove", "rename", "merge")


def _actions(incomplete: str) -> list[str]:
    return [action for action in ACTIONS if action.startswith(incomplete)]


def bank(
    action: Annotated[
        str | None, typer.Argument(metavar="ACTION", hidden=True, autocompletion=_actions)
    ] = None,
    file: Annotated[str | None, typer.Argument(metavar="FILE", hidden=True)] = None,
    keys: Annotated[list[str] | None, typer.Argument(metavar="ARG|KEY=VALUE", hidden=True)] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """List, show, add, remove, rename or merge what an artifact that grows holds.

    \b
    ACTION     list, show, add, remove, rename, merge
    FILE       the bank
    ARG        names or files that the action takes
    KEY=VALUE  options of the method

    Example: memtok bank list skills.memory.safetensors
    """
    common = Common(json, quiet, verbose, seed, device)
    if action is None or action not in ACTIONS:
        known = ", ".join(ACTIONS)
        raise UsageError(
            "no action" if action is None else f"no such action: {action}",
            hint=f"memtok bank ACTION FILE: {known}",
        )
    if file is None:
        raise UsageError("no bank", hint=f"memtok bank {action} skills.memory.safetensors")
    arguments, overrides = split(keys or [])
    method_for("bank")
    from memtoken_cli import methods
    from memtoken_cli.commands.keys import configure
    from memtoken_cli.io.artifact import read_header

    spec = method_for("bank", read_header(file).method)
    config = configure(spec.name, overrides)
    with common.sink() as sink:
        banks = cast("Banks", methods.load(spec.name))
        for row in banks.bank(action, file, arguments, config, Request.of(common, sink)):
            sink.row(row)
