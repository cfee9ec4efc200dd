"""Standard input as it arrives, and a signal that ends the wait for more of it."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from memtoken_cli.io.errors import DataError


def arriving(asked: Callable[[], int], size: int) -> Iterator[bytes]:
    """Blocks of standard input, at most `size` bytes each, to its end or until `asked()` is not 0.

    `asked` tells of signals that have handlers (`engine.stopping.signals`); one that comes while nothing
    arrives is obeyed at once. Nothing may have read from `sys.stdin` before. Raises DataError where it cannot
    be read.
    """
    try:
        descriptor = sys.stdin.fileno()
    except (io.UnsupportedOperation, ValueError):
        source = cast(io.BufferedReader, sys.stdin.buffer)
        while not asked() and (block := source.read1(size)):
            yield block
        return
    with _bell() as bell:
        while not asked():
            try:
                if bell is not None and not _ready(descriptor, bell):
                    continue
                block = os.read(descriptor, size)
            except OSError as error:
                raise DataError(f"cannot read standard input: {error.strerror}") from error
            if not block:
                return
            yield block


def _ready(descriptor: int, bell: int) -> bool:
    """Waits; whether there is something to read, the bell having rung or not."""
    ready, _, _ = select.select([descriptor, bell], [], [])
    if bell in ready:
        os.read(bell, 4096)
    return descriptor in ready


@contextmanager
def _bell() -> Iterator[int | None]:
    """A descriptor that is ready to read when a signal came; None outside the main thread, which has none."""
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    heard, rung = os.pipe()
    os.set_blocking(rung, False)
    before = signal.set_wakeup_fd(rung, warn_on_full_buffer=False)
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(before)
        os.close(heard)
        os.close(rung)
