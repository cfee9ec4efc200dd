"""`memtok generate` of a method that reads text without end, in the engine's eyes. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from memtoken_cli.engine.method import Run


@dataclass(frozen=True)
class StreamCall:
    """One `memtok generate` command line of a method that reads streams.

    Args:
        memory: a trained model, or a session to go on with; "-" is standard input, whose bytes are `data`.
        prompt: the text to read, or None: what standard input holds, to its end.
        out: where the session goes; "-" has its bytes among the parts. None: nowhere.
        model: the language model, where it is not the header's. trust_remote_code: run its Python files.
        seed: of sampling; None: a session's own generator goes on.
    """

    memory: str
    data: bytes | None = None
    prompt: str | None = None
    out: str | None = None
    model: str | None = None
    trust_remote_code: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Streamed:
    """What reading and writing a stream gives.

    Args:
        parts: text in whole characters as it comes, or a session's bytes. `out` is written when they end, and
            also where they are closed before.
        document: what --json prints beside the text; called after the last part.
    """

    parts: Generator[str | bytes, None, None]
    document: Callable[[], Mapping[str, Any]]


@runtime_checkable
class Streams(Protocol):
    def stream(self, call: StreamCall, keys: Any, run: Run) -> Streamed:
        """Read text of any length into a session, then write what follows; `keys` is the config module's
        GenerateKeys. A method whose Spec has the source "stream" answers `memtok generate` by this.

        Raises Interrupted at SIGINT and Terminated at SIGTERM, `out` written.
        """
        ...
