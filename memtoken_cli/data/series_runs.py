"""Runs of equal labels in a column, gathered as its blocks come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from memtoken_cli.data.series import Run

if TYPE_CHECKING:
    import numpy as np

NO_LABEL = ("", "nan", "NaN")  # what an unlabelled cell holds: nothing, or what tables make of nothing


class Runs:
    """`runs` so far. `line`: of row 0, where rows are lines (exact unless cells hold line breaks)."""

    def __init__(self, line: int | None = None) -> None:
        self.runs: list[Run] = []
        self._line = line
        self._rows = 0

    def add(self, labels: Iterable[str]) -> Runs:
        """The next rows' labels."""
        for label in labels:
            self._extend(label.strip(), 1)
        return self

    def add_coded(self, code_T: np.ndarray, words: list[str]) -> None:
        """The same as codes into words: a block of any length in the time that its runs take."""
        import numpy as np

        if not len(code_T):
            return
        starts = np.flatnonzero(np.diff(code_T, prepend=code_T[0] - 1))
        for start, end in zip(starts, [*starts[1:], len(code_T)], strict=True):
            self._extend(words[code_T[start]].strip(), int(end - start))

    def _extend(self, label: str, count: int) -> None:
        row, self._rows = self._rows, self._rows + count
        if label in NO_LABEL:
            return
        last = self.runs[-1] if self.runs else None
        if last is not None and last.end == row and last.label == label:
            self.runs[-1] = Run(last.start, row + count, label, last.line)
        else:
            self.runs.append(Run(row, row + count, label, 0 if self._line is None else self._line + row))
