"""One process a run directory: an advisory lock that the system drops when its holder dies."""

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
    path = folder / NAME
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        hint = "wait for it to end, or give another directory with --out"
        raise Locked(f"{folder} is in use by process {_holder(path)}", hint=hint) from None
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
