"""Failures on purpose, for tests: the environment variable MEMTOK_FAULT makes the K-th counted operation
fail.

`kill:K` kills the process before operation K (counting from 1), `enospc:K` makes it fail for lack of space,
and `count:FILE` writes the number of operations to FILE at exit. Operations are writes, fsyncs and renames.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal

VARIABLE = "MEMTOK_FAULT"
_done = 0


def active() -> bool:
    return VARIABLE in os.environ


def step(path: str) -> None:
    """Count one operation on `path` that is about to happen, and fail if it is the one."""
    global _done
    _done += 1
    what, _, value = os.environ.get(VARIABLE, "").partition(":")
    if what == "count":
        if _done == 1:
            atexit.register(_report, value)
    elif what == "kill" and _done == int(value):
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "enospc" and _done == int(value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _report(path: str) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(str(_done))
