"""`memtok inspect`: what an artifact holds, from its header alone. No torch."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memtoken_cli.commands.options import Common, Device, Json, Quiet, Seed, Verbose

if TYPE_CHECKING:
    from memtoken_cli.io.artifact import Header


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", hidden=True)],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Show what an artifact holds, from its header.

    \b
    FILE  an artifact; - is standard input

    Example: memtok inspect prompts.memory.safetensors
    """
    from memtoken_cli.io.artifact import read_header

    common = Common(json, quiet, verbose, seed, device)
    with common.sink() as sink:
        if file == "-":
            content = sys.stdin.buffer.read()
            header, size = read_header(content, name="<stdin>"), len(content)
        else:
            header = read_header(file)
            size = Path(file).stat().st_size
        if json:
            sink.document({"path": file, "bytes": size, **header.model_dump(mode="json")})
        else:
            sink.table(rows(file, size, header), ["", "artifact"])
            if isinstance(header.about.get("rows"), list) and header.kind == "memory":
                from memtoken_cli.commands import bank

                sink.text("")
                bank.show(header, bank.rows(header, file), file, sink)


def rows(path: str, size: int, header: "Header") -> list[list[str]]:
    """One [name, value] a line of the table; what the header does not state is left out."""
    model = header.model
    source = ", ".join(f"{value} {key}" for key, value in header.source.items() if isinstance(value, int))
    about = {key: value for key, value in header.about.items() if isinstance(value, str | int | float | bool)}
    labels = header.about.get("labels")
    table: list[tuple[str, object]] = [
        ("path", path),
        ("bytes", size),
        ("kind", f"{header.kind} of {header.method}"),
        ("port", header.port),
        ("model", model and model.name),
        ("weights", model and model.fingerprint[:16]),
        ("source", source or None),
        ("ratio", None if header.ratio is None else f"{header.ratio:g}"),
        ("slots", header.slots),
        ("tensors", len(header.shapes)),
        ("labels", len(labels) if isinstance(labels, list) else None),
        *sorted(about.items()),
        *_counted(header.about),
        ("parent", header.parent and header.parent.path),
        ("digest", header.digest[:16]),
        ("made by", header.made_by),
    ]
    return [
        [name, repr(value)[1:-1] if isinstance(value, str) else str(value)]
        for name, value in table
        if value is not None and value != ""
    ]


def _counted(about: Mapping[str, object]) -> list[tuple[str, object]]:
    """What a header counts by name, a line a group: `levels: {"default": {"walk": 2}}` is `default | walk
    2`; how far a session has read; and the names of the series that its rows are of."""
    found: list[tuple[str, object]] = []
    read = [f"{count} {name}" for name, count in _groups(about.get("counts")).items()]
    found.append(("read", ", ".join(read)))
    for name, counts in _groups(about.get("levels")).items():
        if isinstance(counts, dict):
            found.append((f"level {name}", ", ".join(f"{key} {count}" for key, count in counts.items())))
    series = about.get("series")
    for one in series if isinstance(series, list) else ():
        told = _groups(one)
        found.append(
            (f"series {told.get('name')}", f"{told.get('rows')} rows, {told.get('prompts')} prompts")
        )
    return found


def _groups(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
