"""Series in other files than CSV: .npz, .mat, .ts, .parquet. All become named columns (`series_table.py`).

Nothing is ever unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memtoken_cli.data.series import Kind, SeriesKeys
from memtoken_cli.data.series_build import Raw
from memtoken_cli.data.series_csv import read_csv
from memtoken_cli.data.series_source import Source, kind_of_bytes
from memtoken_cli.data.series_table import Column, table, text_of
from memtoken_cli.data.series_ts import read_ts
from memtoken_cli.io.errors import DataError, UsageError

_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    SyntaxError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
WIDE = 16  # a matrix this many times wider than high lies on its side
_KINDS: dict[str, Kind] = {".npz": "npz", ".mat": "mat", ".ts": "ts", ".parquet": "parquet", ".txt": "txt"}


def read_file(source: Source, keys: SeriesKeys, name: str) -> Raw:
    """Any file of a series, by its first bytes and its extension. Raises DataError, UsageError."""
    found = kind_of_bytes(source)
    if found == "gzip":
        raise DataError(
            f"{source.name} is compressed",
            hint=f"gunzip -c {source.path} | memtok segment -",
            where=source.name,
        )
    if found == "hdf5":
        hint = "in MATLAB: save(FILE, '-v7'), or export the columns as CSV"
        raise DataError("an HDF5 file (MATLAB 7.3) cannot be read", hint=hint, where=source.name)
    if found == "npy":
        hint = "numpy.savez(FILE, x=numpy.load(...)) makes an .npz of it"
        raise DataError("a single NumPy array (.npy) cannot be read", hint=hint, where=source.name)
    kind = _KINDS.get(f".{found}") or _KINDS.get(Path(source.path).suffix.lower(), "csv")
    if found is None and kind in ("npz", "parquet"):
        hint = "whole files begin with PK (.npz) or PAR1 (.parquet); a table in text is a .csv"
        raise DataError(f"not a .{kind} file, or a truncated one", hint=hint, where=source.name)
    if kind == "ts":
        names, columns, notes, where = read_ts(source)
        return table(names, columns, keys, source.name, name, kind, notes=notes, where=where)
    if kind in _READERS:
        names, columns, notes = _READERS[kind](source)
        return table(names, columns, keys, source.name, name, kind, notes=notes)
    return read_csv(source, keys, name, kind)


Table = tuple[list[str], list[Column], list[str]]  # names, columns, notices


def _npz(source: Source) -> Table:
    with source.open() as stream:
        try:
            with np.load(stream, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except _DAMAGED as error:
            reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error).splitlines()[0]
            hint = "save plain arrays: numpy.savez(FILE, x=values, time=times)"
            raise DataError(f"not a readable .npz file: {reason}", hint=hint, where=source.name) from None
    return _arranged(arrays, source)


def _mat(source: Source) -> Table:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with source.open() as stream:
        try:
            found = loadmat(stream, squeeze_me=False, struct_as_record=True)
        except NotImplementedError:
            hint = "in MATLAB: save(FILE, '-v7'), or export the columns as CSV"
            raise DataError(
                "an HDF5 file (MATLAB 7.3) cannot be read", hint=hint, where=source.name
            ) from None
        except (MatReadError, ValueError, TypeError, OSError, EOFError, KeyError, IndexError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"not a readable .mat file: {reason}", where=source.name) from None
        except Exception as error:  # a damaged file: scipy lets zlib's and struct's own errors through
            raise DataError(f"not a readable .mat file: {error}", where=source.name) from None
    return _arranged({k: v for k, v in found.items() if not k.startswith("__")}, source)


def _arranged(arrays: dict[str, np.ndarray], source: Source) -> Table:
    """The columns of several arrays: matrices [T, C] and vectors of as many rows. Raises DataError."""
    notes: list[str] = []
    tables: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        if array.dtype.kind not in "fiubMUS" or array.ndim not in (1, 2) or not array.size:
            if key != "channels" and array.size:
                notes.append(f"array {key!r} ({array.dtype}, {array.shape}) is no column and is left out")
            continue
        table = array[:, None] if array.ndim == 1 else array
        if table.shape[1] > WIDE * table.shape[0] or (table.shape[0] == 1 and table.shape[1] > 1):
            table = table.T
            if table.shape[1] > 1:
                notes.append(f"array {key!r} is {array.shape[0]} x {array.shape[1]} and is read on its side")
        tables[key] = table
    named = tables.pop("channels", None)
    numeric = [t for t in tables.values() if t.dtype.kind in "fiub"]
    if not numeric:
        hint = "an array of shape [rows, channels], and vectors of times or labels beside it"
        raise DataError("no numeric array", hint=hint, where=source.name)
    rows = max(numeric, key=lambda t: t.size).shape[0]
    names: list[str] = []
    columns: list[Column] = []
    matrices = [key for key, t in tables.items() if t.shape[1] > 1 and len(t) == rows]
    titles = [] if named is None else [text_of(v).strip() for v in named.ravel()]
    for key, table in tables.items():
        if len(table) != rows:
            notes.append(f"array {key!r} has {len(table)} rows instead of {rows} and is left out")
            continue
        prefix = "c" if len(matrices) == 1 else f"{key}."
        given = titles if len(titles) == table.shape[1] and (table.shape[1] > 1 or not matrices) else None
        single = table.shape[1] == 1
        for c in range(table.shape[1]):
            names.append(given[c] if given else key if single else f"{prefix}{c}")
            columns.append(table[:, c])
    return names, columns, notes


def _parquet(source: Source) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError("reading .parquet needs pyarrow", hint="pip install pyarrow") from None
    with source.open() as stream:
        try:
            table = pq.read_table(stream)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"not a readable .parquet file: {reason}", where=source.name) from None
    names: list[str] = []
    columns: list[Column] = []
    notes: list[str] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name.startswith("__index_level_"):
            continue
        kind = column.type
        plain = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            values = column.cast(pa.timestamp("ns", getattr(kind, "tz", None)))
            columns.append(np.asarray(values.to_numpy(), dtype="datetime64[ns]"))
        elif plain:
            number = pa.types.is_floating(kind) or column.null_count
            columns.append(column.cast(pa.float64()).to_numpy() if number else column.to_numpy())
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            columns.append(np.array([v if v is not None else "" for v in column.to_pylist()], dtype=object))
        else:
            notes.append(f"column {name!r} ({kind}) is no number and is left out")
            continue
        names.append(name)
    if not names:
        raise DataError("no column that can be read", where=source.name)
    return names, columns, notes


_READERS: dict[Kind, Callable[[Source], Table]] = {"npz": _npz, "mat": _mat, "parquet": _parquet}
