"""RMT: a language model reads and writes text of any length, segment by segment, at constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memtoken_cli.engine.method import Spec

if TYPE_CHECKING:
    from memtoken_cli.methods.rmt.method import RMT
    from memtoken_cli.methods.rmt.session import Session

__all__ = ["SPEC", "Session", "load"]

SPEC = Spec(
    name="rmt",
    paper="arXiv 2207.06881 (RMT), 2407.04841 (ARMT), 2506.05229 (diagonal batching)",
    line="recurrent memory: text of any length through a model of fixed context",
    verbs=frozenset({"train", "generate", "evaluate", "bench", "bank"}),
    port="prefix",
    sources=frozenset({"stream"}),
    sketches=True,
    instead={
        "compress": "slots are fixed by training: "
        "memtok generate - --memory MODEL --out FILE max_new_tokens=0"
    },
)


def load() -> RMT:
    """The method (imports torch)."""
    from memtoken_cli.methods.rmt.method import RMT

    return RMT()


def __getattr__(name: str) -> Any:
    """`Session`, the Python front door, when it is asked for: it imports torch."""
    if name == "Session":
        from memtoken_cli.methods.rmt.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
