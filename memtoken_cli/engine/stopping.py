"""Signals that ask a run to stop: they are noted, and the loop ends at its next safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from memtoken_cli.io.errors import MemtokError


class Interrupted(MemtokError):
    """SIGINT arrived; the state is saved."""

    exit_code = 130


class Terminated(Interrupted):
    """SIGTERM arrived; the state is saved."""

    exit_code = 143


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Inside the block SIGTERM and SIGINT only ask for a stop: the call returns the signal's number, or 0.

    A second SIGINT is not waited for. Outside the main thread signals stay as they are.
    """
    asked = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
