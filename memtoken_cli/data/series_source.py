"""Where bytes of a series come from: a file, or a pipe spooled to an unnamed temporary file.

Both can be opened as often as needed; nothing here knows formats beyond their first bytes.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import source_name

MAGIC = {
    b"PK\x03\x04": "npz",
    b"PAR1": "parquet",
    b"MATLAB": "mat",
    b"\x89HDF": "hdf5",
    b"\x1f\x8b": "gzip",
    b"\x93NUMPY": "npy",
}


@dataclass(frozen=True)
class Source:
    """Bytes that can be read again. `name`: as errors call it."""

    path: str
    spool: IO[bytes] | None = None

    @property
    def name(self) -> str:
        return source_name(self.path)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes from their beginning. Raises DataError where the file cannot be read."""
        if self.spool is not None:
            yield cast(BinaryIO, io.BufferedReader(_Apart(self.spool.fileno())))
            return
        try:
            stream = Path(self.path).open("rb")  # noqa: SIM115 (closed below: its errors are told apart here)
        except FileNotFoundError:
            raise DataError(f"no such file: {self.path}") from None
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise DataError(f"cannot read {self.path}: {reason}") from error
        with stream:
            yield stream

    @property
    def native(self) -> str | None:
        """A path under which code outside Python opens these bytes anew; None where the system has none."""
        if self.spool is None:
            return self.path
        path = f"/proc/self/fd/{self.spool.fileno()}"
        return path if os.path.exists(path) else None

    def head(self, size: int) -> bytes:
        """The first bytes. Raises DataError."""
        with self.open() as stream:
            try:
                return stream.read(size)
            except OSError as error:
                raise DataError(f"cannot read {self.name}: {error.strerror or error}") from error


class _Apart(io.RawIOBase):
    """A descriptor read at a position of one's own: closing this leaves it open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._fd, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def source_of(path: str | Path) -> Source:
    """A file as it is; "-" and pipes by name are read to their end into a temporary file. Raises
    DataError."""
    name = str(path)
    if name != "-" and not _is_pipe(name):
        return Source(name)
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the series does)
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as stream:
            shutil.copyfileobj(stream, spool, 1 << 20)
        spool.flush()
    except OSError as error:
        raise DataError(f"cannot spool {source_name(name)}: {error.strerror or error}") from error
    return Source(name, spool)


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False  # who opens it says what is wrong


def kind_of_bytes(source: Source) -> str | None:
    """A binary format by its first bytes; None for anything else, such as text."""
    head = source.head(8)
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
