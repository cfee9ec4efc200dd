"""What can go wrong for a user: exceptions with an exit code. Anything else that escapes is a bug (1)."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import ClassVar

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRONG_PATH = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


class MemtokError(Exception):
    """A problem told in plain words: what is wrong, where, and the exact thing to type.

    Args:
        message: what is wrong, without a full stop.
        hint: what to do about it, or None.
        where: "file:line" (or the argument at fault), or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where
        self.problems: tuple[MemtokError, ...] = ()

    def lines(self) -> list[str]:
        """The lines to print on stderr: `error: ... in file:line`, then `hint: ...`; one pair a problem."""
        if self.problems:
            return [line for problem in self.problems for line in problem.lines()]
        text = f"error: {self.message}" + (f" in {self.where}" if self.where else "")
        return [text, f"hint: {self.hint}"] if self.hint else [text]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class UsageError(MemtokError):
    """A wrong command line or recipe."""

    exit_code = 2


class DataError(MemtokError):
    """Wrong input data: shots, queries, series, artifacts."""

    exit_code = 3


class PartialFailure(MemtokError):
    """Some records failed, or a bench found less than its recipe expects; the rest was written."""

    exit_code = 4


class Locked(MemtokError):
    """Another live process holds the run directory."""

    exit_code = 75


class Full(MemtokError):
    """No room is left where a file was to go. What was written before is whole; trying again may help."""

    exit_code = 75


class Problems:
    """Collects errors, so that a user sees all of them at once."""

    def __init__(self) -> None:
        self.found: list[MemtokError] = []

    def add(self, problem: MemtokError) -> None:
        self.found.append(problem)

    def raise_any(self) -> None:
        """Raise what was collected, if anything, as one error of the first one's class."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise self.found[0]
        first = self.found[0]
        joined = type(first)(first.message, hint=first.hint, where=first.where)
        joined.problems = tuple(self.found)
        raise joined


def from_os_error(error: OSError) -> MemtokError:
    """A file-system failure in the user's words: a wrong path is usage, a full disk may have room later, and
    a broken one is neither."""
    what = error.strerror or str(error)
    name = error.filename if isinstance(error.filename, str) else None
    text = f"{name}: {what}" if name else what
    wrong = FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError
    if isinstance(error, wrong) or error.errno in WRONG_PATH:
        return UsageError(text, hint="check the path and its permissions")
    if error.errno in NO_ROOM:
        return Full(text, hint="free some space, then run the same command again: it resumes")
    return MemtokError(text, hint="check the disk, then run the same command again: it resumes")


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most like `word`, or None where nothing is close."""
    found = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return found[0] if found else None
