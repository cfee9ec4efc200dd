"""The memory that this process holds: how much at most, in bytes.

Linux counts it (VmHWM), and anew when asked to. ru_maxrss is no substitute there: it begins at that of the
process that started this one, and a new count does not lower it.
"""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def most() -> int:
    """Bytes that were held at most: since the start, or since a new count began."""
    found = _status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def above() -> Callable[[], int | None]:
    """Gives the most bytes held from now on above those held now.

    Where the system cannot begin anew, None unless more was held than ever before."""
    _give_back()
    anew = forget()
    before = most()
    held = _status("VmRSS") or before

    def peak() -> int | None:
        now = most()
        return max(0, now - held) if anew or now > before else None

    return peak


def forget() -> bool:
    """Let the system count the most from here; whether it can."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    try:
        text = STATUS.read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _give_back() -> None:
    """Return what malloc keeps of freed memory: used again, it would not be counted."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library
        return
