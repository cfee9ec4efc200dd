"""`memtok segment` of a method that cuts series, in the engine's eyes. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from memtoken_cli.engine.method import Run


@dataclass(frozen=True)
class SegmentCall:
    """One `memtok segment` command line; "-" is standard input, for one of the three.

    Args:
        series: a file. prompts: a file, or None. memory: a bank to read and to grow, or None.
        plot: where a picture goes. out: the file that results go to, by whose name the method may choose
            their form. beside: whether `prompts` is the file beside the series (a bare --prompts).
    """

    series: str
    prompts: str | None = None
    memory: str | None = None
    plot: str | None = None
    out: str | None = None
    beside: bool = False


@dataclass(frozen=True)
class Segmented:
    """What segmenting gives. All that is kept (a bank, a picture) is written before this is returned.

    Args:
        parts: the result as text, or bytes of a binary format, in pieces as they come.
        document: what --json prints instead; called only then.
        skipped: prompts that were left out because the user allowed it.
    """

    parts: Iterator[str | bytes]
    document: Callable[[], Mapping[str, Any]]
    skipped: int = 0


@runtime_checkable
class Segments(Protocol):
    def segment(self, call: SegmentCall, keys: Any, run: Run) -> Segmented:
        """Cut a series into labelled segments; `keys` is the config module's SegmentKeys (or Config)."""
        ...
