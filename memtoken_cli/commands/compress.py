"""`memtok compress`: shots to one artifact. Everything checkable is checked before a model is loaded."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.choose import method_names
from memtoken_cli.commands.options import Common, Device, Json, Keys, Quiet, Seed, Trust, Verbose
from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from memtoken_cli.commands.plan import Plan
    from memtoken_cli.engine.method import Compresses
    from memtoken_cli.io.artifact import Header
    from memtoken_cli.io.sink import Sink


VERB = "compress"


def _methods(incomplete: str) -> list[str]:
    return method_names(VERB, incomplete)


def compress(
    source: Annotated[str | None, typer.Argument(metavar="SOURCE", hidden=True)] = None,
    keys: Keys = None,
    shots: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="The shots; - is standard input.")
    ] = None,
    ratio: Annotated[float | None, typer.Option(metavar="R", help="Keep one token in R.")] = None,
    slots: Annotated[int | None, typer.Option(metavar="M", help="Keep M tokens per layer and head.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How to compress.  [default: the installed default]", autocompletion=_methods
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="Language model.  [default: smollm2-135m]")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="The artifact.  [default: prompts.memory.safetensors beside prompts.jsonl]"
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, load no model, write nothing.", show_default=False),
    ] = False,
    trust_remote_code: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Write a prompt of many shots into memory tokens, once.

    \b
    SOURCE     the shots, the same as --shots: JSONL {"input", "output"}, {"text"}
               or {"messages"}, or plain text split on blank lines
    KEY=VALUE  options of the method

    Prints the artifact's path; with --json the report. Running it again is a no-op.

    Example: memtok compress --shots prompts.jsonl --ratio 4
    """
    common = Common(json, quiet, verbose, seed, device, trust_remote_code)
    positionals, overrides = split([source, *(keys or [])])
    _check_stdout(out, common)
    from memtoken_cli.commands.plan import resolve

    plan = resolve(_source(positionals, shots), overrides, ratio, slots, method, model, out, seed or 0)
    with common.sink() as sink:
        if dry_run:
            _tell(plan, sink, common)
        elif not _done(plan, sink):
            _make(plan, sink, common)


def _source(positionals: list[str], shots: str | None) -> str:
    given = positionals + ([shots] if shots is not None else [])
    if len(given) > 1:
        raise UsageError(
            f"shots given twice: {', '.join(given)}", hint="memtok compress --shots FILE --ratio 4"
        )
    if not given:
        raise UsageError("no shots to compress", hint="memtok compress --shots prompts.jsonl --ratio 4")
    return given[0]


def _check_stdout(out: str | None, common: Common) -> None:
    if out != "-":
        return
    if sys.stdout.isatty():
        raise UsageError("--out - would write binary data to a terminal", hint="--out FILE, or pipe it on")
    if common.json:
        raise UsageError("--json and --out - both want standard output", hint="--out FILE")


def _existing(plan: "Plan") -> "Header | None":
    """The header of what --out names already. Raises UsageError where that is not an artifact."""
    from memtoken_cli.io.artifact import read_header

    if plan.out == "-" or not Path(plan.out).exists():
        return None
    if Path(plan.out).is_file() and not Path(plan.out).stat().st_size:
        return None  # what mktemp leaves: nothing to lose
    try:
        return read_header(plan.out)
    except DataError as error:
        raise UsageError(
            f"{plan.out} exists and is not an artifact: it is left alone",
            hint="--out another file, or remove it",
        ) from error


def _done(plan: "Plan", sink: "Sink") -> bool:
    from memtoken_cli.commands.artifacts import REQUEST
    from memtoken_cli.io.artifact import read_header

    header = _existing(plan)
    if header is None:
        return False
    before = header.about.get(REQUEST)
    if before != plan.request:
        sink.note(
            f"{plan.out}: replaced, it was made by another request ({_difference(before, plan.request)})"
        )
        return False
    try:
        read_header(plan.out, verify=True)
    except DataError:
        sink.warn(f"{plan.out} is damaged: written again")
        return False
    sink.note(f"{plan.out}: already done")
    _report(plan, header, sink)
    return True


def _difference(before: Any, now: dict[str, Any]) -> str:
    if not isinstance(before, dict):
        return "unknown"
    return ", ".join(key for key in now if before.get(key) != now[key]) or "more keys"


def _make(plan: "Plan", sink: "Sink", common: Common) -> None:
    from memtoken_cli import methods
    from memtoken_cli.commands.artifacts import SECONDS, backbone_for, header_for
    from memtoken_cli.io import artifact

    if common.verbose:
        sink.note(
            f"{plan.spec.name}: {len(plan.shots.items)} shots of {plan.shots.source}, model {plan.model}"
        )
    backbone = backbone_for(plan.spec, plan.model or "", common)
    method = cast("Compresses", methods.load(plan.spec.name))
    made = method.compress(cast(Any, backbone), plan.shots, plan.budget, plan.config, plan.seed)
    header = header_for(plan.spec, made, backbone, plan.shots, plan.budget, plan.request)
    tensors = made.memory.tensors()
    if plan.out == "-":
        sink.binary(artifact.to_bytes(tensors, header)[0])
        return
    header = artifact.write(plan.out, tensors, header)
    if common.verbose:
        sink.note(", ".join(f"{k} {v}" for k, v in made.report.items() if isinstance(v, int | float | str)))
    _report(plan, header, sink, made.report.get(SECONDS))


def _report(plan: "Plan", header: "Header", sink: "Sink", seconds: Any = None) -> None:
    from memtoken_cli.commands.artifacts import REPORT, SECONDS

    sink.path(plan.out)
    size = Path(plan.out).stat().st_size
    known = {
        "path": plan.out,
        "method": header.method,
        "ratio": header.ratio,
        "slots": header.slots,
        "bytes": size,
    }
    timed = {SECONDS: seconds} if seconds is not None else {}
    sink.document({**known, "source": header.source, **header.about.get(REPORT, {}), **timed})


def _tell(plan: "Plan", sink: "Sink", common: Common) -> None:
    _existing(plan)
    labels = plan.shots.labels
    told = {
        "method": plan.spec.name,
        "model": plan.model,
        "shots": len(plan.shots.items),
        "kind": plan.shots.kind,
        "labels": len(labels),
        "ratio": plan.budget.ratio,
        "slots": plan.budget.slots,
        "seed": plan.seed,
        "out": plan.out,
    }
    if common.json:
        sink.document({**told, "labels": list(labels), "config": plan.config.model_dump(mode="json")})
    else:
        sink.table([[key, value] for key, value in told.items() if value is not None], ["", "would do"])
