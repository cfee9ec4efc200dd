"""MemPromptTSS: labels for every row of a series from a few prompts, each kept as one memory token in a
bank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memtoken_cli.engine.method import Spec

if TYPE_CHECKING:
    from memtoken_cli.methods.memprompttss.method import MemPromptTSS
    from memtoken_cli.methods.memprompttss.segmenter import Segmenter

__all__ = ["SPEC", "Segmenter", "load"]

SPEC = Spec(
    name="memprompttss",
    paper="MemPromptTSS, arXiv 2510.09930",
    line="states of a time series from a few labelled rows, kept in a bank that other series read",
    verbs=frozenset({"segment", "train", "evaluate", "bench"}),
    port="cross",
    sources=frozenset({"series"}),
    default_for=frozenset({"segment"}),
    needs_model=False,
    instead={
        "compress": "memtok segment SERIES --prompts FILE --memory BANK: prompts are written into a bank",
        "generate": "memtok segment SERIES --memory BANK: a bank labels the rows of a series",
        "bank": 'memtok inspect BANK, or a line {"id": ..., "delete": true} among the prompts',
    },
)


def load() -> MemPromptTSS:
    """The method; its verbs import what they need."""
    from memtoken_cli.methods.memprompttss.method import MemPromptTSS

    return MemPromptTSS()


def __getattr__(name: str) -> Any:
    """`Segmenter`, the Python front door, when it is asked for: it imports torch."""
    if name == "Segmenter":
        from memtoken_cli.methods.memprompttss.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
