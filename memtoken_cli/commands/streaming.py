"""`memtok generate` of methods whose Spec has the source "stream": text of any length in, session and text
out.

--out is the session's file here, written by the method; what the method is, is not known.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from memtoken_cli.commands.options import Common
from memtoken_cli.io.errors import DataError, UsageError, from_os_error

if TYPE_CHECKING:
    from memtoken_cli.engine.endless import Streams
    from memtoken_cli.io.artifact import Header

SOURCE = "stream"


class Keyed(Protocol):
    """What the command knows of the keys of a method that reads streams."""

    @property
    def max_new_tokens(self) -> int: ...


@dataclass(frozen=True)
class Head:
    """An artifact's header; `data` is all of what can be read only once (standard input, a named pipe)."""

    path: str
    header: "Header"
    data: bytes | None

    @property
    def streams(self) -> bool:
        """Whether the header's method reads streams."""
        from memtoken_cli import methods

        spec = methods.discover().get(self.header.method)
        return spec is not None and SOURCE in spec.sources


def head(path: str) -> Head:
    """What an artifact says of itself. Raises DataError where it is none."""
    from memtoken_cli import methods
    from memtoken_cli.io import artifact
    from memtoken_cli.io.records import source_name

    data = None if os.path.isfile(path) else artifact.content(path)
    source = path if data is None else data
    header = artifact.read_header(source, name=source_name(path))
    if header.method not in methods.discover():
        artifact.read_header(source, verify=True, name=source_name(path))  # damage is the likelier reason
    return Head(path, header, data)


def stream(
    memory: Sequence[Head],
    prompt: str | None,
    overrides: list[str],
    out: str | None,
    model: str | None,
    common: Common,
) -> None:
    """Answer one command line; prompt None is standard input."""
    from memtoken_cli import methods
    from memtoken_cli.commands.choose import method_for
    from memtoken_cli.commands.keys import generate_keys
    from memtoken_cli.commands.running import Request
    from memtoken_cli.engine.endless import StreamCall
    from memtoken_cli.recipe.overrides import flat

    if len(memory) > 1:
        raise UsageError("a session is read alone", hint="give --memory once")
    (source,) = memory
    spec = method_for("generate", source.header.method)
    keys = cast(Keyed, flat(overrides, generate_keys(spec.name)))
    _check_out(out, source.header.method, keys, common)
    call = StreamCall(source.path, source.data, prompt, out, model, common.trust, common.seed)
    with common.sink() as sink:
        reads = cast("Streams", methods.load(spec.name))
        streamed = reads.stream(call, keys, Request.of(common, sink))
        said = []
        with closing(streamed.parts) as parts:
            for part in parts:
                with _standard_output(out):
                    if isinstance(part, bytes):
                        sink.binary(part)
                    elif common.json:
                        said.append(part)
                    else:
                        sink.text(part, end="")
        with _standard_output(out):
            if keys.max_new_tokens:
                sink.text("")
            elif out not in (None, "-"):
                sink.path(out)
        if common.json:
            sink.document({"text": "".join(said), **streamed.document()})


@contextmanager
def _standard_output(out: str | None) -> Iterator[None]:
    """Raises Full where it takes no more: what was read and written is in `out` then, and the same command
    would read it twice."""
    try:
        yield
    except OSError as error:
        told = from_os_error(error)
        told.hint = "free some space, then run the same command again on the same input"
        if out not in (None, "-"):
            told.hint = f"free some space; all that was read and written is in {out}: --memory {out} goes on"
        raise told from error


def _check_out(out: str | None, method: str, keys: Keyed, common: Common) -> None:
    """Raise UsageError where the results have no place to go, before anything is read."""
    if out is None:
        if not keys.max_new_tokens and not common.json:
            raise UsageError("max_new_tokens=0 leaves nothing but the session", hint="--out FILE")
        return
    if out == "-":
        if keys.max_new_tokens:
            hint = "--out FILE, or max_new_tokens=0"
            raise UsageError("the text and --out - both want standard output", hint=hint)
        if common.json:
            raise UsageError("--json and --out - both want standard output", hint="--out FILE")
        if sys.stdout.isatty():
            raise UsageError(
                "--out - would write binary data to a terminal", hint="--out FILE, or pipe it on"
            )
        return
    path = Path(os.path.realpath(out))
    if path.is_file() and path.stat().st_size:
        _check_replaceable(out, method)
    elif not path.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {path.parent}", hint="check the path")
    place = path if path.exists() and not path.is_file() else path.parent  # a device is written as it is
    if not os.access(place, os.W_OK):
        raise UsageError(f"{out}: {place} is not writable", hint="--out FILE elsewhere")


def _check_replaceable(out: str, method: str) -> None:
    from memtoken_cli.io.artifact import read_header

    hint = "--out another file, or remove it"
    try:
        header = read_header(out)
    except DataError as error:
        raise UsageError(f"{out} exists and is not an artifact: it is left alone", hint=hint) from error
    if (header.kind, header.method) != ("memory", method):
        what = f"{out} holds a {header.kind} of {header.method}, not a session: it is left alone"
        raise UsageError(what, hint=hint)
