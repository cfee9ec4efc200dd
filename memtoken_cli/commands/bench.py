"""`memtok bench`: recipes to one table of comparable rows; recipes of one method run together."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.choose import method_for
from memtoken_cli.commands.options import Common, Device, Json, Quiet, Seed, Verbose
from memtoken_cli.commands.running import Request, load_recipe, recipe_files
from memtoken_cli.commands.tables import print_rows
from memtoken_cli.io.errors import PartialFailure, Problems, UsageError

if TYPE_CHECKING:
    from memtoken_cli.engine.method import Benches
    from memtoken_cli.recipe.schema import Recipe


def bench(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="RECIPE|KEY=VALUE", hidden=True, autocompletion=recipe_files)
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Where the table goes.  [default: standard output]")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Compare methods and baselines at equal budgets, as a table.

    \b
    RECIPE     YAML files
    KEY=VALUE  replaces a key in all of them: data.path=test.jsonl
               For recurrent memories: policies=[rmt,xl]  lengths=[4096,65536]  plot=FILE
               quality=true        train all policies alike, and test them

    Exits with 4 where a row is below what its recipe expects.

    Example: memtok bench recipes/compact/default.yaml data.pool=intents.csv
    """
    common = Common(json, quiet, verbose, seed, device)
    paths, overrides = split(recipes or [])
    if not paths:
        raise UsageError("no recipe to bench", hint="memtok bench recipes/METHOD/tiny.yaml")
    grouped: dict[str, list[Recipe]] = {}
    for path in paths:
        recipe = load_recipe(path, overrides, common)
        grouped.setdefault(method_for("bench", recipe.method).name, []).append(recipe)
    from memtoken_cli import methods
    from memtoken_cli.engine.expect import unmet

    problems = Problems()
    with common.sink(out) as sink:
        for name, group in grouped.items():
            method = cast("Benches", methods.load(name))
            found = method.bench(group, Request.of(common, sink))
            rows = [row if "method" in row else {"method": name, **row} for row in found]
            print_rows(rows, sink)
            for recipe in group:
                own = [row for row in rows if row.get("recipe", recipe.source) == recipe.source]
                if own and all(row.get("table") == "speed" for row in own):
                    continue  # nothing was tested that could be expected
                for line in unmet(recipe.expect, own, name):
                    problems.add(PartialFailure(line, where=recipe.source))
    problems.raise_any()
