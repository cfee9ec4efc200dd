"""memtok: memory tokens for frozen language models, and for time series. `compress`, `load` and `Segmenter`
are the Python front door.

Importing this package imports nothing heavy; torch comes with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from .api import PromptMemory
    from .engine.backbone import CausalLM

__version__ = "0.1.0"
__all__ = ["Segmenter", "compress", "load"]


def __getattr__(name: str) -> Any:
    """`Segmenter`, of the method that answers `memtok segment`, when it is asked for."""
    if name == "Segmenter":
        from . import methods

        return methods.front_door(methods.default_for("segment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def compress(
    shots: str | Path | Iterable[Mapping[str, str]],
    *,
    model: str | CausalLM = "smollm2-135m",
    ratio: float | None = None,
    slots: int | None = None,
    method: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> PromptMemory:
    """Write shots into a memory: what `memtok compress` does, without the file.

    shots: a file, or records such as {"input": ..., "output": ...}. options: the method's KEY=VALUE pairs.
    Raises UsageError or DataError as the command exits 2 or 3.
    """
    from .io.progress import silence_third_party

    silence_third_party()  # transformers reads its settings when it is imported
    from . import api

    return api.compress(shots, model, ratio, slots, method, seed, dict(options or {}))


def load(path: str | Path, *, model: str | CausalLM | None = None) -> PromptMemory:
    """Open a memory artifact. Raises DataError for a damaged file, UsageError for another model's memory."""
    from .io.progress import silence_third_party

    silence_third_party()  # transformers reads its settings when it is imported
    from . import api

    return api.load(path, model)
