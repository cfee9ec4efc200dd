"""TokMem: one trained row a procedure; the model picks it by its address, and its embedding steers what
follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memtoken_cli.engine.method import Spec

if TYPE_CHECKING:
    from memtoken_cli.methods.tokmem.api import TokMem
    from memtoken_cli.methods.tokmem.bank import Bank
    from memtoken_cli.methods.tokmem.method import TokMem as Verbs

__all__ = ["SPEC", "Bank", "TokMem", "load"]

SPEC = Spec(
    name="tokmem",
    paper="TokMem, ICLR 2026",
    line="one memory token a procedure, kept in a bank that grows and picked by routing",
    verbs=frozenset({"train", "generate", "evaluate", "bench", "bank"}),
    port="vocab",
    sources=frozenset({"procedures"}),
    instead={
        "compress": "memtok bank add BANK --data DIR: a bank takes procedures, not a prompt",
        "segment": "memtok generate --memory BANK: a bank answers queries",
    },
)


def load() -> Verbs:
    """The method (imports torch)."""
    from memtoken_cli.methods.tokmem.method import TokMem

    return TokMem()


def __getattr__(name: str) -> Any:
    """`Bank` and `TokMem`, the Python front door, when they are asked for: they import torch."""
    if name == "Bank":
        from memtoken_cli.methods.tokmem.bank import Bank

        return Bank
    if name == "TokMem":
        from memtoken_cli.methods.tokmem.api import TokMem

        return TokMem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
