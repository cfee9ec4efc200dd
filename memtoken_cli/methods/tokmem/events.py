"""What a decode tells: routes and pieces of text as they come, and each row's whole result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memtoken_cli.methods.tokmem.grammar import Segment
from memtoken_cli.methods.tokmem.route import Route


@dataclass(frozen=True)
class Result:
    """One row's answer. text: its segments, one a line. ids: what went in or was said after the prompt,
    memory ids included, without EOS. logprobs: of every chosen vocabulary or EOC id, where asked for."""

    text: str
    segments: tuple[Segment, ...]
    routes: tuple[Route, ...]
    prompt_tokens: int
    memory_tokens: int
    seconds: float
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()

    def document(self) -> dict[str, Any]:
        """As --json tells it."""
        return {
            "routes": [route.document() for route in self.routes],
            "segments": [segment.document() for segment in self.segments],
            "prompt_tokens": self.prompt_tokens,
            "memory_tokens": self.memory_tokens,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class RouteEvent:
    """Row `row` was routed."""

    row: int
    route: Route


@dataclass(frozen=True)
class TextEvent:
    """Row `row` has said more, under `procedure` (None: plain text). All its pieces laid end to end are the
    text of its result: a segment after the first one begins with the line end before it."""

    row: int
    text: str
    procedure: str | None


@dataclass(frozen=True)
class EndEvent:
    """Row `row` is complete."""

    row: int
    result: Result


Event = RouteEvent | TextEvent | EndEvent
