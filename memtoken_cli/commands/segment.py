"""`memtok segment`: a series to the method that cuts it; nothing about series is known here."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memtoken_cli.commands.argv import AUTO, split
from memtoken_cli.commands.choose import method_for, method_names
from memtoken_cli.commands.options import Common, Json, Keys, Quiet, Seed, Verbose
from memtoken_cli.io.errors import DataError, PartialFailure, UsageError

if TYPE_CHECKING:
    from memtoken_cli.engine.method import Spec
    from memtoken_cli.engine.segmenting import Segments

VERB = "segment"
MODEL = "model="


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
    device: Annotated[
        str | None, typer.Option("--device", metavar="D", help="cuda encodes on a GPU.  [default: cpu]")
    ] = None,
) -> None:
    """Cut a series into labelled segments: by a few prompts, a bank, or by itself.

    \b
    SERIES     a CSV file; - is standard input
    KEY=VALUE  options of the method: rows=states, format=..., unknown=auto, ...

    Prints one row a segment: CSV where the series is, otherwise JSONL. The bank
    keeps what the prompts showed; another series reads it without a prompt.

    Example: memtok segment series.csv --prompts
    """
    common = Common(json, quiet, verbose, seed, device)
    positionals, overrides = _words([series, *(keys or [])])
    source = _series(positionals)
    examples = sidecar(source, prompts)
    _check_files(source, examples, memory)
    from memtoken_cli import methods
    from memtoken_cli.commands.running import Request
    from memtoken_cli.engine.segmenting import SegmentCall
    from memtoken_cli.recipe.overrides import flat

    spec = _spec(method, memory, overrides)
    module = vars(methods.config_module(spec.name))
    chosen = flat(overrides, module.get("SegmentKeys", module["Config"]))
    call = SegmentCall(source, examples, memory, plot, None if out == "-" else out, prompts == AUTO)
    with common.sink(out) as sink:
        segments = cast("Segments", methods.load(spec.name))
        found = segments.segment(call, chosen, Request.of(common, sink))
        if json:
            sink.document(found.document())
        else:
            for part in found.parts:
                if isinstance(part, bytes):
                    sink.binary(part)
                else:
                    sink.text(part, end="")
        if found.skipped:
            raise PartialFailure(
                f"{found.skipped} prompts were skipped", hint="correct the lines named above"
            )


def sidecar(series: str, prompts: str | None) -> str | None:
    """The file of prompts: none, the one given, or for a bare --prompts the one beside the series."""
    if prompts != AUTO:
        return prompts
    if series == "-":
        raise UsageError("a bare --prompts has no file beside standard input", hint="--prompts FILE")
    path = Path(series)
    return str(path.with_name(path.stem + ".prompts.jsonl"))


def _words(words: list[str | None]) -> tuple[list[str], list[str]]:
    """(positionals, KEY=VALUE): a word that names a file is a positional, whatever it looks like."""
    positionals, overrides = split(words)
    files = [] if positionals else [word for word in overrides if os.path.isfile(word)][:1]
    return [*positionals, *files], [word for word in overrides if word not in files]


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
    if source != "-" and not os.path.exists(source):
        raise DataError(f"no such file: {source}")
    if examples not in (None, "-") and not os.path.exists(str(examples)):
        line = """echo '{"t": 12.4, "label": "walk"}' > """
        raise DataError(f"no such file: {examples}", hint=f"label a row first: {line}{examples}")


def _spec(method: str | None, memory: str | None, overrides: list[str]) -> "Spec":
    """The method: the one named, or else that of the bank or of the weights file given, or the default."""
    named = [word.removeprefix(MODEL) for word in overrides if word.startswith(MODEL)]
    for path in (memory, *named):
        if method is None and path not in (None, "-") and os.path.isfile(str(path)):
            from memtoken_cli.io.artifact import read_header

            header: Any = read_header(str(path))
            return method_for(VERB, header.method, "series")
    return method_for(VERB, method, "series")
