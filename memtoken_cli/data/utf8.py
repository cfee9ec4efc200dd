"""UTF-8 text out of bytes as they arrive: a character may be cut anywhere, a bad byte is named by its place.

Every byte that is UTF-8 is text: NUL, control characters, a byte order mark, line ends of any kind. Cutting
the text into pieces is pieces.py's.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Literal, Protocol

from memtoken_cli.io.errors import DataError

BLOCK = 64 * 2**10
_MARK = "\N{REPLACEMENT CHARACTER}"
Errors = Literal["strict", "replace"]


class Bytes(Protocol):
    """What can be read as it comes: `sys.stdin.buffer`, an open binary file, `io.BytesIO`."""

    def read1(self, size: int = ..., /) -> bytes: ...


class Utf8:
    """An incremental decoder; the text it gives in all depends only on the bytes it was given in all.

    Args:
        errors: strict, or replace: U+FFFD for every bad part (the longest start of a character, or a byte).
        name: how errors call the source.

    Attributes:
        taken: bytes whose text was given out; at most three more are held back.
        replaced: bad parts so far.
    """

    def __init__(self, errors: Errors = "strict", name: str = "standard input") -> None:
        self.errors = errors
        self.name = name
        self.taken = 0
        self.replaced = 0
        self._held = b""

    def add(self, block: bytes) -> Iterator[str]:
        """The text that these bytes complete, if any; to be read before more is added.

        Raises DataError at a bad byte, after the good text before it: offsets count from 0.
        """
        return self._decode(self._held + block, False)

    def end(self) -> Iterator[str]:
        """What is held back, which is a bad part: the source ends inside a character. Raises DataError."""
        return self._decode(self._held, True)

    def _decode(self, data: bytes, final: bool) -> Iterator[str]:
        bad = None
        try:
            text, used = codecs.utf_8_decode(data, self.errors, final)
        except UnicodeDecodeError as error:
            bad, used = self.taken + error.start, error.start
            text = data[:used].decode("utf-8")
        if self.errors == "replace":
            # the mark itself may stand in the source; its bytes are read as it wherever they stand
            self.replaced += text.count(_MARK) - data[:used].count(_MARK.encode())
        self._held = data[used:]
        self.taken += used
        if text:
            yield text
        if bad is not None:
            hint = "convert it first: iconv -f latin1 -t utf-8, or read on with errors=replace"
            raise DataError(f"not UTF-8 at byte {bad} of {self.name}", hint=hint)


def blocks(stream: Bytes, size: int = BLOCK) -> Iterator[bytes]:
    """What `stream` holds, at most `size` bytes at a time and without waiting for a block to fill."""
    while block := stream.read1(size):
        yield block


def decoded(stream: Bytes, decoder: Utf8) -> Iterator[str]:
    """The text of `stream` as it comes, to its end. Raises DataError at a bad byte."""
    for block in blocks(stream):
        yield from decoder.add(block)
    yield from decoder.end()


def read_text(path: str | Path, errors: Errors = "strict") -> Iterator[str]:
    """The text of a file, some of it at a time.

    Raises DataError: no such file, not readable, not UTF-8.
    """
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 (closed below: its errors are told apart here)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}", hint="check the path") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    assert isinstance(stream, BufferedReader)
    with stream:
        try:
            yield from decoded(stream, Utf8(errors, str(path)))
        except OSError as error:
            raise DataError(f"cannot read {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
