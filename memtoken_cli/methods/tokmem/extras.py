"""What is installed only on request."""

from __future__ import annotations

from importlib.util import find_spec

from memtoken_cli.io.errors import UsageError


def need_peft(what: str) -> None:
    """Raises UsageError where `peft` is not installed, naming `what` needs it."""
    if find_spec("peft") is None:
        raise UsageError(f"{what} needs the extra peft", hint="pip install 'memtok[peft]'")
