"""`memtok segment`: a series to the method that cuts it; nothing about series is known here."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memtoken_cli.commands.argv import AUTO, split
from memtoken_cli.commands.choose import method_for, method_names
from memtoken_cli.commands.options import Common, Device, Json, Keys, Quiet, Seed, Verbose
from memtoken_cli.commands.running import Request
from memtoken_cli.io.errors import UsageError

if TYPE_CHECKING:
    from memtoken_cli.engine.method import Segments
    from memtoken_cli.io.sink import Sink

VERB = "segment"


def _methods(incomplete: str) -> list[str]:
    return method_names(VERB, incomplete)


def segment(
    series: Annotated[str | None, typer.Argument(metavar="SERIES|-", hidden=True)] = None,
    keys: Keys = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="[FILE|-]", help="Labelled examples; alone: series.prompts.jsonl beside series.csv."
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="BANK", help="A bank to read, and to grow.")] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the series and its segments.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Where rows go.  [default: standard output]")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How to segment.  [default: the installed default]", autocompletion=_methods
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Cut a series into labelled segments.

    \b
    SERIES     a CSV file; - is standard input
    KEY=VALUE  options of the method

    Rows are CSV where the series is, otherwise JSONL, as they come.

    Example: memtok segment series.csv --prompts
    """
    common = Common(json, quiet, verbose, seed, device)
    positionals, overrides = split([series, *(keys or [])])
    spec = method_for(VERB, method, "series")
    source = _series(positionals)
    examples = sidecar(source, prompts)
    _check_files(source, examples, memory)
    from memtoken_cli import methods
    from memtoken_cli.commands.keys import configure

    config = configure(spec.name, overrides)
    with common.sink(out) as sink:
        request = Request.of(common, sink)
        segments = cast("Segments", methods.load(spec.name))
        found = segments.segment(source, examples, memory, Path(plot) if plot else None, config, request)
        _write(found, source.endswith(".csv") and not json, sink)


def sidecar(series: str, prompts: str | None) -> str | None:
    """The file of prompts: none, the one given, or for a bare --prompts the one beside the series."""
    if prompts != AUTO:
        return prompts
    if series == "-":
        raise UsageError("a bare --prompts has no file beside standard input", hint="--prompts FILE")
    path = Path(series)
    return str(path.with_name(path.stem + ".prompts.jsonl"))


def _series(positionals: list[str]) -> str:
    if len(positionals) == 1:
        return positionals[0]
    what = "no series to segment" if not positionals else f"more than one series: {', '.join(positionals)}"
    raise UsageError(
        what, hint="memtok segment series.csv --prompts (the series comes before a bare --prompts)"
    )


def _check_files(source: str, examples: str | None, memory: str | None) -> None:
    if [source, examples, memory].count("-") > 1:
        raise UsageError("standard input can be only one of series, prompts and memory")
    for option, path in (("", source), ("--prompts ", examples), ("--memory ", memory)):
        if path not in (None, "-") and not os.path.exists(str(path)):
            raise UsageError(f"no such file: {option}{path}")


def _write(rows: Iterable[Mapping[str, Any]], as_csv: bool, sink: "Sink") -> None:
    if not as_csv:
        for row in rows:
            sink.row(row)
        return
    header: list[str] | None = None
    for row in rows:
        if header is None:
            header = list(row)
            sink.text(_csv(header), end="")
        sink.text(_csv([row.get(key, "") for key in header]), end="")


def _csv(values: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
