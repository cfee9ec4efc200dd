"""Where results go. The only module that touches standard output; its bytes never depend on a terminal.

Rows are JSONL, flushed as they come. Under --json everything is one document. With `out` naming a file, rows
and text go there (it appears whole, at the end) and stdout gets its path. Notes and warnings go to stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from memtoken_cli.io import atomic
from memtoken_cli.io.errors import PartialFailure, UsageError

CLOSED_PIPE = 141


def encode(value: object) -> str:
    """One line of JSON; numbers that are not finite become null, for JSON has none."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


class Sink:
    """One command's results, a context manager. `out`: None or "-" for standard output, or a file."""

    def __init__(self, *, json: bool = False, quiet: bool = False, out: str | None = None) -> None:
        self.json = json
        self.quiet = quiet
        self.out = None if out == "-" else out
        self._stack = ExitStack()
        self._pending: atomic.Pending | None = None
        self._rows: list[Mapping[str, Any]] = []
        self._document: dict[str, Any] | None = None

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = error is None or isinstance(error, PartialFailure)
        if kept and self.json and (self._document is not None or self._rows):
            rows = {"rows": self._rows} if self._rows else {}
            self._emit(encode({**(self._document or {}), **rows}) + "\n")
        written = self._pending is not None
        if kept:
            self._stack.close()
        else:
            self._stack.__exit__(kind, error, trace)
        if kept and written:
            _stdout(f"{self.out}\n".encode())

    def row(self, row: Mapping[str, Any]) -> None:
        """One result as a line of JSON (under --json: one of the document's rows)."""
        if self.json:
            self._rows.append(dict(row))
        else:
            self._emit(encode(row) + "\n")

    def path(self, path: object) -> None:
        """The path of a written artifact (under --json: left to the document)."""
        if not self.json:
            _stdout(f"{path}\n".encode())

    def document(self, document: Mapping[str, Any]) -> None:
        """The report that --json prints; otherwise nothing."""
        self._document = {**(self._document or {}), **document}

    def text(self, text: str, end: str = "\n") -> None:
        """Plain text (under --json: nothing)."""
        if not self.json:
            self._emit(text + end)

    def table(self, rows: Sequence[Sequence[object]], headers: Sequence[str]) -> None:
        """An aligned table (under --json: the document's rows, one object a row)."""
        if self.json:
            self._rows.extend(dict(zip(headers, row, strict=True)) for row in rows)
            return
        from tabulate import tabulate

        self._emit(tabulate([list(r) for r in rows], headers=list(headers), disable_numparse=True) + "\n")

    def binary(self, data: bytes) -> None:
        """What is no text: to `out`, else on standard output. Raises UsageError where that is a terminal."""
        if self.out is not None:
            self._bytes(data)
            return
        if sys.stdout.isatty():
            raise UsageError(
                "binary output on a terminal", hint="--out FILE, or pipe it: ... --out - | memtok ..."
            )
        _stdout(data)

    def note(self, text: str) -> None:
        """Something to know, on standard error; silent under -q."""
        if not self.quiet:
            _stderr(text)

    def told(self, text: str) -> None:
        """Something that was asked for beside the results, on standard error; never silent."""
        _stderr(text)

    def warn(self, text: str) -> None:
        """Something to worry about, on standard error; never silent."""
        _stderr(f"warning: {text}")

    def _emit(self, text: str) -> None:
        self._bytes(text.encode("utf-8", "backslashreplace"))

    def _bytes(self, data: bytes) -> None:
        if self.out is None:
            _stdout(data)
            return
        if self._pending is None:
            self._pending = self._stack.enter_context(atomic.writer(self.out))
        self._pending.write(data)


def _stdout(data: bytes) -> None:
    """Write and flush; a reader that went away ends the command as SIGPIPE would (exit 141). Raises
    OSError."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # point the descriptor elsewhere, or the interpreter complains again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(CLOSED_PIPE) from None
        raise OSError(error.errno, error.strerror, "standard output") from error


def _stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
