"""MemCom: a trained compressor that writes a many-shot prompt into memory of its own for every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memtoken_cli.engine.method import Spec

if TYPE_CHECKING:
    from memtoken_cli.methods.memcom.method import MemCom

SPEC = Spec(
    name="memcom",
    paper="arXiv 2510.16092 (reconstructed from the abstract)",
    line="a trained compressor, memory of its own for every layer of a frozen model",
    verbs=frozenset({"compress", "generate", "evaluate", "train", "bench"}),
    port="layers",
    sources=frozenset({"shots"}),
)


def load() -> MemCom:
    """The method (imports torch)."""
    from memtoken_cli.methods.memcom.method import MemCom

    return MemCom()
