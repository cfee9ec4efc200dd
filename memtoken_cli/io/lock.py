"""One process a run directory or a file that is changed in place: an advisory lock that the system drops when
its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from memtoken_cli.io.errors import Locked

NAME = ".lock"


@contextmanager
def run_lock(directory: str | Path) -> Iterator[None]:
    """Hold `directory` (made if absent) for the block. Raises Locked naming the holder's process id."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    hint = "wait for it to end, or give another directory with --out"
    with _held(folder / NAME, folder, hint):
        yield


@contextmanager
def file_lock(path: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Hold a file that is about to be replaced by a new version of itself; `wait`: seconds for another's end.
    Raises Locked; a file beside it, whose name begins with a dot, stays."""
    final = Path(os.path.realpath(path))
    hint = "wait for it to end, or write to --out FILE"
    with _held(final.with_name(f".{final.name}{NAME}"), path, hint, wait):
        yield


@contextmanager
def _held(path: Path, what: str | Path, hint: str, wait: float = 0.0) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise Locked(f"{what} is in use by process {_holder(path)}", hint=hint) from None
    try:
        path.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        with suppress(OSError):
            path.write_text("", encoding="ascii")
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip() or "unknown"
    except (OSError, UnicodeDecodeError):
        return "unknown"
