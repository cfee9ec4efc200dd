"""`memtok train`: a recipe to a run directory. Training and resuming are the method's."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.choose import method_for
from memtoken_cli.commands.options import Common, Device, Json, Keys, Quiet, Seed, Verbose
from memtoken_cli.commands.running import Request, load_recipe, recipe_files
from memtoken_cli.io.errors import UsageError

if TYPE_CHECKING:
    from memtoken_cli.engine.method import Sketches, Spec, Trains
    from memtoken_cli.io.sink import Sink
    from memtoken_cli.recipe.schema import Recipe

RUNS = "runs"


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", hidden=True, autocompletion=recipe_files, show_default=False),
    ] = None,
    keys: Keys = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="The run directory.  [default: runs/METHOD-RECIPE]")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over where DIR holds another run.", show_default=False)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and print it whole.", show_default=False)
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Train what a recipe names, and print the artifact's path.

    \b
    RECIPE     a YAML file
    KEY=VALUE  replaces a key of the recipe: train.steps=200

    The same command again resumes an interrupted run; a finished one is a no-op.

    Example: memtok train recipes/memcom/tiny.yaml --out runs/tiny
    """
    common = Common(json, quiet, verbose, seed, device)
    positionals, overrides = split([recipe, *(keys or [])])
    if len(positionals) != 1:
        raise UsageError("train takes one recipe", hint="memtok train recipes/METHOD/tiny.yaml")
    checked = load_recipe(positionals[0], overrides, common)
    spec = method_for("train", checked.method)
    target = Path(out) if out else Path(RUNS, f"{checked.method}-{Path(positionals[0]).stem}")
    check_directory(target)
    with common.sink() as sink:
        if dry_run:
            preview(checked, target, spec, sink)
            return
        from memtoken_cli import methods

        method = cast("Trains", methods.load(spec.name))
        path = method.train(checked, Request.of(common, sink, str(target), fresh))
        if os.environ.get("RANK", "0") != "0":
            return  # under torchrun the first process alone speaks
        sink.path(path)
        sink.document({"path": str(path), "out": str(target), "method": spec.name})


def preview(checked: "Recipe", target: Path, spec: "Spec", sink: "Sink") -> None:
    """The recipe whole, as YAML; what training would take, where the method tells, as comments behind it."""
    import yaml

    from memtoken_cli import methods

    document = {"out": str(target), "recipe": checked.resolved()}
    text = yaml.safe_dump(checked.resolved(), sort_keys=False)
    if spec.sketches:  # another method is not loaded: that takes longer than all the rest
        method = cast("Sketches", methods.load(spec.name))
        document["sketch"] = method.sketch(checked)
        lines = yaml.safe_dump(document["sketch"], sort_keys=False).splitlines()
        text += "".join(f"# {line}\n" for line in lines)
    sink.document(document)
    sink.text(text, end="")


def check_directory(target: Path) -> None:
    """Raise UsageError where a run directory could not be made."""
    if target.exists() and not target.is_dir():
        raise UsageError(f"--out {target} is a file", hint="--out DIR")
    nearest = next(parent for parent in (target, *target.parents, Path(".")) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(
            f"--out {target} cannot be made: {nearest} is not writable", hint="--out DIR elsewhere"
        )
