"""RMT: a language model reads and writes text of any length, segment by segment, at constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memtoken_cli.engine.method import Spec

if TYPE_CHECKING:
    from memtoken_cli.methods.rmt.method import RMT

SPEC = Spec(
    name="rmt",
    paper="arXiv 2207.06881 (RMT), 2407.04841 (ARMT), 2506.05229 (diagonal batching)",
    line="recurrent memory: text of any length through a model of fixed context",
    verbs=frozenset({"train", "generate", "evaluate", "bench"}),
    port="prefix",
    sources=frozenset({"stream"}),
    instead={
        "compress": "slots are fixed by training: "
        "memtok generate - --memory MODEL --out FILE max_new_tokens=0"
    },
)


def load() -> RMT:
    """The method (imports torch)."""
    from memtoken_cli.methods.rmt.method import RMT

    return RMT()
