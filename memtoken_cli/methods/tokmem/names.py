"""Names of the procedures of one bank: none twice, which are not there, and what is free."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from memtoken_cli.data.procedures import NAME_CHARACTERS, name_fault
from memtoken_cli.io.errors import DataError, UsageError, nearest


def check_names(names: Sequence[str]) -> None:
    """Raises DataError for a bad name, or one that stands twice."""
    seen: set[str] = set()
    for name in names:
        if (fault := name_fault(name)) is not None:
            raise DataError(f"the name {name!r} {fault}", hint="choose another name")
        if name in seen:
            raise DataError(f"{name!r} names two procedures", hint="rename one of them")
        seen.add(name)


def unknown(name: str, names: Sequence[str], key: str | None = None) -> UsageError:
    """The error for a name that no procedure has; `key` is where it was asked for."""
    close = nearest(name, names)
    known = ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")
    hint = f"did you mean {close}?" if close else f"procedures: {known or 'the bank is empty'}"
    where = "" if key is None else f" ({key}=)"
    return UsageError(f"no procedure named {name!r} in the bank{where}", hint=hint)


def unclashed(name: str, taken: Collection[str]) -> str:
    """NAME-2, or the first of NAME-3, ... that is free."""
    number = 2
    while (free := f"{name[: NAME_CHARACTERS - len(str(number)) - 1]}-{number}") in taken:
        number += 1
    return free
