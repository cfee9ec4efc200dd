"""`memtok bank`: artifacts that grow. Lists and rows are read from headers here, without torch; the rest goes
to the method that made the artifact.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.choose import method_for
from memtoken_cli.commands.options import Common, Device, Json, Quiet, Seed, Trust, Verbose
from memtoken_cli.io.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from memtoken_cli.engine.method import BankCall, Banks
    from memtoken_cli.io.artifact import Header
    from memtoken_cli.io.brief import Brief
    from memtoken_cli.io.sink import Sink

READS = ("list", "show", "diff", "verify")
WRITES = ("add", "remove", "rename", "merge", "select", "export")
ACTIONS = (*READS, *WRITES)
HEADER_ONLY = ("list", "show")
# how many arguments follow FILE: at least, at most (None: any number)
TAKES: Mapping[str, tuple[int, int | None]] = {
    "list": (0, 0),
    "show": (1, 1),
    "add": (0, 0),
    "remove": (1, None),
    "rename": (2, 2),
    "merge": (1, None),
    "select": (1, None),
    "diff": (1, 1),
    "verify": (0, 0),
    "export": (0, 0),
}
USES = {
    "list": "memtok bank list FILE",
    "show": "memtok bank show FILE NAME",
    "add": "memtok bank add FILE --data DIR --in-place",
    "remove": "memtok bank remove FILE NAME... --in-place",
    "rename": "memtok bank rename FILE OLD NEW --in-place",
    "merge": "memtok bank merge FILE FILE... --out NEW",
    "select": "memtok bank select FILE NAME... --out NEW",
    "diff": "memtok bank diff FILE FILE",
    "verify": "memtok bank verify FILE [--model M]",
    "export": "memtok bank export FILE --to hf --out DIR",
}
# options and the actions that they belong to
OWN = {
    "--out": WRITES,
    "--in-place": tuple(a for a in WRITES if a != "export"),
    "--data": ("add",),
    "--model": ("add", "verify", "export"),
    "--to": ("export",),
    "--recouple": ("export",),
    "--on-clash": ("merge",),
    "--shared-blocks": ("merge",),
}


def _actions(incomplete: str) -> list[str]:
    return [action for action in ACTIONS if action.startswith(incomplete)]


def bank(
    action: Annotated[
        str | None, typer.Argument(metavar="ACTION", hidden=True, autocompletion=_actions)
    ] = None,
    file: Annotated[str | None, typer.Argument(metavar="FILE", hidden=True)] = None,
    keys: Annotated[list[str] | None, typer.Argument(metavar="ARG|KEY=VALUE", hidden=True)] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Where the result goes.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace FILE by the result.", show_default=False)
    ] = False,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="What to add.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="Language model.  [default: the bank's]")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Of an export: hf, peft; official.")
    ] = None,
    on_clash: Annotated[
        str | None, typer.Option(metavar="HOW", help="Names in both banks: error, keep, rename.")
    ] = None,
    shared_blocks: Annotated[
        str | None, typer.Option(metavar="HOW", help="What both banks hold: refuse, first.")
    ] = None,
    recouple: Annotated[
        bool, typer.Option("--recouple", help="Fit addresses to the format.", show_default=False)
    ] = False,
    trust_remote_code: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """List and change what an artifact that grows holds.

    \b
    list FILE              what it holds; show FILE NAME: one row
    add FILE --data DIR    more procedures; steps=N trains their rows as well,
                           chains=FILE: queries that ask for several
    remove FILE NAME...    without these; select FILE NAME...: these alone
    rename FILE OLD NEW
    merge FILE FILE...     several into one
    diff FILE FILE         what differs
    verify FILE            shapes, numbers, digests, and with --model the weights
    export FILE --to hf    for other software, into --out DIR; of a trained recurrent
                           memory --to official, for its authors' code, a file

    What writes needs --out or --in-place, and prints the path.

    Removing takes a procedure's row and statistics, but not its share in the
    covariance that all have in common: the others route as before. It is no
    privacy deletion. With lda.keep_features=true in training it is exact.

    Example: memtok bank list skills.memory.safetensors
    """
    common = Common(json, quiet, verbose, seed, device, trust_remote_code)
    given = {
        "--out": out,
        "--in-place": in_place,
        "--data": data,
        "--model": model,
        "--to": to,
        "--recouple": recouple,
        "--on-clash": on_clash,
        "--shared-blocks": shared_blocks,
    }
    arguments, overrides = split(keys or [])
    action, file = _checked(action, file, arguments, {key for key, value in given.items() if value})
    from memtoken_cli.engine.method import BankCall

    call = BankCall(
        action,
        file,
        tuple(arguments),
        out,
        in_place,
        model,
        data,
        to,
        on_clash or "error",
        shared_blocks or "refuse",
        recouple,
        trust_remote_code,
    )
    with common.sink() as sink:
        _run(call, overrides, sink, common)


def _checked(action: str | None, file: str | None, arguments: list[str], given: set[str]) -> tuple[str, str]:
    """The action and the file. Raises UsageError for what does not belong to the action, or lacks."""
    if action is None or action not in ACTIONS:
        close = nearest(action or "", ACTIONS)
        raise UsageError(
            "no action" if action is None else f"no such action: {action}",
            hint=f"did you mean {close}?" if close else f"memtok bank ACTION FILE: {', '.join(ACTIONS)}",
        )
    use = USES[action]
    if file is None:
        raise UsageError("no bank", hint=use)
    least, most = TAKES[action]
    if len(arguments) < least or (most is not None and len(arguments) > most):
        wanted = f"{least}" if most == least else f"{least} or more"
        what = f"{action} takes {wanted} arguments after FILE, found {len(arguments)}"
        raise UsageError(what, hint=use)
    for option in sorted(given):
        if action not in OWN[option]:
            raise UsageError(f"{option} does not belong to {action}", hint=use)
    if action in WRITES and len(given & {"--out", "--in-place"}) != 1:
        where = "--out DIR" if action == "export" else "--out FILE or --in-place, one of the two"
        raise UsageError(f"{action} needs {where}", hint=use)
    for option in ("--data", "--to"):
        if action in OWN[option] and option not in given:
            raise UsageError(f"{action} needs {option}", hint=use)
    return action, file


def _run(call: "BankCall", overrides: list[str], sink: "Sink", common: Common) -> None:
    from memtoken_cli import methods
    from memtoken_cli.commands.running import Request

    header = _head(call)
    spec = method_for("bank", header.method)
    if call.action in HEADER_ONLY:
        if overrides:
            raise UsageError(f"{call.action} takes no keys: {overrides[0]}", hint=USES[call.action])
        told = rows(header, call.file)
        if call.action == "list":
            show(header, told, call.file, sink)
        else:
            sink.row(_named(told, call.arguments[0]))
        return
    from memtoken_cli.recipe.overrides import flat

    module = vars(methods.config_module(spec.name))
    keys = flat(overrides, module.get("BankKeys", module["Config"]))
    banks = cast("Banks", methods.load(spec.name))
    for row in banks.bank(call, keys, Request.of(common, sink)):
        if "path" in row:
            sink.path(row["path"])
            sink.document(row)
        else:
            sink.row(row)


def _head(call: "BankCall") -> "Header | Brief":
    if call.action in HEADER_ONLY:
        from memtoken_cli.io.brief import brief

        if (found := brief(call.file)) is not None:
            return found
    from memtoken_cli.io.artifact import read_header

    return read_header(call.file)


def rows(header: "Header | Brief", path: str) -> list[dict[str, Any]]:
    """The rows that a header lists. Raises DataError where the artifact is no bank."""
    told = header.about.get("rows")
    if header.kind != "memory" or not isinstance(told, list) or not all(isinstance(r, dict) for r in told):
        raise DataError(
            f"{path} holds a {header.kind} of {header.method} that lists no rows",
            hint=f"memtok inspect {path}",
        )
    return told


def show(header: "Header | Brief", told: list[dict[str, Any]], path: str, sink: "Sink") -> None:
    """The rows as a table, a line of the whole on standard error; under --json the document."""
    from memtoken_cli.commands.tables import print_rows

    model = f", made for {header.model.name}" if header.model else ""
    blocks = header.about.get("blocks")
    added = f" in {len(blocks)} blocks" if isinstance(blocks, list) else ""
    sink.note(f"{path}: {len(told)} rows{added}{model}")
    sink.document({"path": path, "model": header.model and header.model.name, "blocks": blocks})
    print_rows(told if sink.json else [_brief(row) for row in told], sink)


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    """What fits a line: the name, then numbers, then texts; `show` and --json tell those in full."""
    width = {"name": None, "block": 12, "instruction": 12}
    ordered = sorted(row, key=lambda key: (key != "name", isinstance(row[key], str), key))
    return {key: _cut(row[key], width.get(key, 40)) for key in ordered}


def _cut(value: Any, width: int | None) -> Any:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "/".join(value)
    return value[:width] if isinstance(value, str) else value


def _named(told: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for row in told:
        if row.get("name") == name:
            return row
    names = [str(row.get("name")) for row in told]
    close = nearest(name, names)
    raise UsageError(
        f"no row named {name!r}", hint=f"did you mean {close}?" if close else f"rows: {', '.join(names[:8])}"
    )
