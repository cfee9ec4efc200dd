"""Records from a local file or folder, or from a data set on the Hugging Face hub, by one name.

`datasets` is imported only for the hub, and only after a brief look whether there is a network.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memtoken_cli.io.errors import DataError
from memtoken_cli.io.network import forced_offline, hub_reachable
from memtoken_cli.io.progress import silence_third_party
from memtoken_cli.io.records import decode, iter_jsonl, iter_lines, paragraphs

READERS = (".jsonl", ".ndjson", ".csv", ".txt", ".md")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def open_dataset(path: str | Path, stream: bool = False, *, split: str = "train") -> Iterable[dict[str, Any]]:
    """The records of `path`, in a fixed order, again on every iteration.

    A file: JSONL or CSV rows as they are; text as {"text": paragraph}, split on blank lines. A folder: its
    files of these kinds, sorted, deep. Anything else that looks like "owner/name" (or "owner/name:config"): a
    hub data set, downloaded once or, with `stream`, read as it comes.

    Raises DataError: nothing there, a bad line (file:line), a hub name without a network.
    """
    local = Path(path)
    if local.is_dir():
        files = sorted(p for p in local.rglob("*") if p.suffix in READERS and p.is_file())
        if not files:
            raise DataError(f"no {', '.join(READERS)} file in {local}")
        return _Files(files)
    if local.exists():
        if local.suffix not in READERS:
            raise DataError(
                f"cannot tell what {local} is", hint=f"give it one of the endings {', '.join(READERS)}"
            )
        return _Files([local])
    name = str(path)
    if local.suffix in READERS or not _HUB_ID.fullmatch(name):
        raise DataError(f"no such file: {path}")
    return _hub(name, stream, split)


class _Files:
    """Local files one after the other; a new iteration begins anew."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in self._files:
            if path.suffix == ".csv":
                yield from _csv(path)
            elif path.suffix in (".txt", ".md"):
                yield from ({"text": text} for _, text in paragraphs(iter_lines(path), str(path)))
            else:
                yield from (record.value for record in iter_jsonl(path))


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    lines = (decode(line, f"{path}:{number}") + "\n" for number, line in iter_lines(path))
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
        if not header or len(set(header)) != len(header):
            raise DataError("the first row must name every column, none twice", where=f"{path}:1")
        for row in reader:
            if row and len(row) != len(header):
                text = f"{len(row)} cells under {len(header)} columns"
                raise DataError(text, where=f"{path}:{reader.line_num}")
            if row:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"bad CSV: {error}", where=f"{path}:{reader.line_num}") from None


def _hub(name: str, stream: bool, split: str) -> Iterable[dict[str, Any]]:
    why = "HF_HUB_OFFLINE is set" if forced_offline() else "no network"
    offline = not hub_reachable()
    if offline:
        # read by huggingface_hub and datasets when they are imported: the cache alone, and no retries
        os.environ["HF_HUB_OFFLINE"] = "1"
    if offline and stream:
        raise _unreachable(name, f"{why}, and a stream needs one")
    silence_third_party()
    import datasets

    identity, _, config = name.partition(":")
    try:
        found: Iterable[dict[str, Any]] = datasets.load_dataset(
            identity, config or None, split=split, streaming=stream
        )
        return found
    except Exception as error:  # the hub's client has a dozen kinds, all meaning that the data cannot be had
        if offline:
            raise _unreachable(name, f"{why}, and it is not in the cache") from error
        first = str(error).strip().partition("\n")[0]
        raise DataError(f"cannot load data set {name}: {first}", hint="check its name and split") from error


def _unreachable(name: str, why: str) -> DataError:
    hint = "give a local file or folder, or run once with a network: it is kept in the cache"
    return DataError(f"no local file {name}, and as a hub data set it cannot be had: {why}", hint=hint)
