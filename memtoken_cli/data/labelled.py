"""Series with a true state for every row: folders that models are examined on.

Reads CSV files (a `state` column, or a last column of whole numbers), MATLAB files that hold `data` and
`labels`, and folders of one-value-a-line series whose change points stand in `desc.txt` (states in
`properties.txt`). Unlabelled series, their time columns and prompts are `series.py`'s.

Shape suffixes: T rows, C channels.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtoken_cli.io.errors import DataError

STATE = "state"
DESC, PROPERTIES = "desc.txt", "properties.txt"
KINDS = (".csv", ".mat")


@dataclass(frozen=True)
class Labelled:
    """One series. values_TC: float32, raw, gaps bridged. states_T: int64, ids as written. channels: names in
    the order of the columns. changes: the true change points (first rows of a segment, without 0)."""

    name: str
    values_TC: NDArray[np.float32]
    states_T: NDArray[np.int64]
    channels: tuple[str, ...]
    source: str = ""

    @property
    def rows(self) -> int:
        return len(self.states_T)

    @property
    def changes(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.diff(self.states_T)) + 1


def read_labelled(path: str | Path, channels: str | None = None) -> list[Labelled]:
    """Every series of a file or folder (with its subfolders), sorted by path.

    Args:
        channels: which columns to use: names, globs, positions or ranges of them (`0-22`), comma-separated.

    Raises DataError for a folder without a labelled series, for cells that are
    no numbers, and states that are no whole numbers.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"no such file or folder: {path}")
    if (root / DESC).is_file():
        found = _benchmark(root)
    else:
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in KINDS)
        found = [_mat(p, root) if p.suffix == ".mat" else _csv(p) for p in files]
    if not found:
        hint = f"a folder of CSV files with a last column `{STATE}`, of .mat files, or with a {DESC}"
        raise DataError(f"no labelled series in {path}", hint=hint)
    return [_chosen(series, channels) for series in found] if channels else found


def pick(names: Sequence[str], wanted: str) -> list[int]:
    """Positions of the columns that `wanted` names, in file order. Raises DataError for a part that names
    none."""
    chosen: set[int] = set()
    for part in (p.strip() for p in wanted.split(",")):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        hits = [i for i, name in enumerate(names) if fnmatchcase(name, part)]
        if not hits and span:
            low, high = int(span[1]), int(span[2] or span[1])
            hits = [i for i in range(low, high + 1) if i < len(names)]
        if not hits:
            raise DataError(f"no channel {part!r}", hint=f"channels: {', '.join(names)}")
        chosen.update(hits)
    return sorted(chosen)


def _chosen(series: Labelled, channels: str) -> Labelled:
    at = pick(series.channels, channels)
    return replace(series, values_TC=series.values_TC[:, at], channels=tuple(series.channels[i] for i in at))


def _csv(path: Path) -> Labelled:
    import pandas as pd

    names = _header(path)
    try:
        frame = pd.read_csv(path, header=0 if names else None, dtype=np.float64, skip_blank_lines=True)
    except (ValueError, pd.errors.ParserError) as error:
        raise _bad_cell(path, names is not None, error) from None
    if frame.shape[1] < 2 or not len(frame):
        raise DataError("a labelled series has feature columns, then a state", where=str(path))
    columns = names or [f"c{i}" for i in range(frame.shape[1])]
    at = columns.index(STATE) if STATE in columns else len(columns) - 1
    table_TC = frame.to_numpy()
    states_T = table_TC[:, at]
    bad = ~np.isfinite(states_T) | (states_T != np.round(states_T))
    if bad.any():
        line = int(np.argmax(bad)) + 1 + (names is not None)
        hint = f"states are whole numbers, in a column {STATE} or the last one"
        raise DataError(f"column {columns[at]} is no state", hint=hint, where=f"{path}:{line}")
    values_TC = bridged(np.delete(table_TC, at, 1))
    channels = tuple(name for i, name in enumerate(columns) if i != at)
    return Labelled(path.stem, values_TC, states_T.astype(np.int64), channels, str(path))


def _header(path: Path) -> list[str] | None:
    """The column names, or None where the first line is numbers alone and names no state."""
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as stream:
        first = next(csv.reader(stream), None)
    if first is None:
        raise DataError("an empty file", where=str(path))
    cells = [cell.strip() for cell in first]
    return None if STATE not in cells and all(_is_number(cell) for cell in cells) else cells


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def _bad_cell(path: Path, header: bool, error: Exception) -> DataError:
    """The first line that is ragged or holds text, for an error that named none."""
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as stream:
        rows = csv.reader(stream)
        names = next(rows)
        width = len(names)
        for line, row in enumerate(rows, 2):
            if row and len(row) != width:
                return DataError(f"{len(row)} cells where {width} are expected", where=f"{path}:{line}")
            for column, cell in enumerate(row):
                if not _is_number(cell.strip()):
                    what = f"{cell!r} is no number in column {names[column] if header else f'c{column}'}"
                    return DataError(what, where=f"{path}:{line}")
    return DataError(f"not a table of numbers: {error}", where=str(path))


def _mat(path: Path, root: Path) -> Labelled:
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(path)
    except (ValueError, NotImplementedError, OSError) as error:
        raise DataError(f"not a MATLAB file of version 4 to 7: {error}", where=str(path)) from None
    if "data" not in found or "labels" not in found:
        raise DataError("a labelled .mat file holds `data` and `labels`", where=str(path))
    values_TC = np.asarray(found["data"], dtype=np.float64)
    states_T = np.asarray(found["labels"]).reshape(-1).astype(np.int64)
    if values_TC.ndim != 2 or len(values_TC) != len(states_T):
        shapes = f"data {values_TC.shape}, labels {states_T.shape}"
        raise DataError(f"data and labels of unequal length: {shapes}", where=str(path))
    name = path.parent.name if path.stem == "data" and path.parent != root else path.stem
    channels = tuple(f"c{i}" for i in range(values_TC.shape[1]))
    return Labelled(name, bridged(values_TC), states_T, channels, str(path))


def _benchmark(root: Path) -> list[Labelled]:
    """Series of the TSSB and UTSA kind: `NAME,window,changes...` and `NAME,[yes|no,cut,rate,]states...`."""
    states = _properties(root / PROPERTIES)
    found = []
    for number, line in enumerate((root / DESC).read_text(encoding="utf-8").splitlines(), 1):
        name, *rest = [cell.strip() for cell in line.split(",")]
        path = root / f"{name}.txt"
        if not name or not path.is_file():
            continue  # the list is of the whole benchmark, the folder may hold a part
        changes = [int(cell) for cell in rest[1:]]
        values_T = np.loadtxt(path, dtype=np.float64, ndmin=1)
        of_segment = states.get(name, list(range(len(changes) + 1)))
        if len(of_segment) != len(changes) + 1:
            what = f"{len(of_segment)} states for {len(changes) + 1} segments of {name}"
            raise DataError(what, where=f"{root / DESC}:{number}")
        lengths = np.diff([0, *changes, len(values_T)])
        if (lengths <= 0).any():
            raise DataError(f"change points of {name} do not rise within it", where=f"{root / DESC}:{number}")
        states_T = np.repeat(np.asarray(of_segment, dtype=np.int64), lengths)
        found.append(Labelled(name, bridged(values_T[:, None]), states_T, ("c0",), str(path)))
    return found


def _properties(path: Path) -> dict[str, list[int]]:
    """The state of each segment: with a label cut, neighbouring labels are one state."""
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, *rest = [cell.strip() for cell in line.split(",")]
        if rest and rest[0].lower() in ("true", "false"):
            cut = int(rest[1]) + 1
            found[name] = [int(cell) // cut for cell in rest[3:]]
        elif rest:
            found[name] = [int(cell) for cell in rest]
    return found


def bridged(values_TC: NDArray[np.float64]) -> NDArray[np.float32]:
    """Float32 with every gap (NaN, infinite) filled linearly; a channel without any number is 0."""
    values_TC = np.where(np.isfinite(values_TC), values_TC, np.nan)
    for column_T in values_TC.T:
        gap_T = np.isnan(column_T)
        if gap_T.all():
            column_T[:] = 0
        elif gap_T.any():
            column_T[gap_T] = np.interp(np.flatnonzero(gap_T), np.flatnonzero(~gap_T), column_T[~gap_T])
    return values_TC.astype(np.float32)
