"""`memtok segment` behind the command: what is read, what is kept, what comes out. The work is
`segmenter.py`'s.

All that is checkable is checked before the series is read; the bank and the picture are written before a row
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memtoken_cli.data.prompts import Resolved, Said, from_runs, parse_prompts, resolve
from memtoken_cli.data.series import Series, read_series
from memtoken_cli.engine.method import Run
from memtoken_cli.engine.segmenting import SegmentCall, Segmented
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.lock import file_lock
from memtoken_cli.io.sink import encode
from memtoken_cli.methods.memprompttss import bank_file, bank_update, rebuild, session, tables
from memtoken_cli.methods.memprompttss import model as models
from memtoken_cli.methods.memprompttss.bank import Bank
from memtoken_cli.methods.memprompttss.bank_update import Changes
from memtoken_cli.methods.memprompttss.cache import Cache, folder_of
from memtoken_cli.methods.memprompttss.model import Encoded, Model
from memtoken_cli.methods.memprompttss.plot import check_plot, draw
from memtoken_cli.methods.memprompttss.segment_config import FORMATS, SegmentKeys
from memtoken_cli.methods.memprompttss.segmenter import Prediction, Segmenter

WAIT = 10.0  # seconds for another process to be done with the bank
OURS = ("csv", "jsonl", "parquet")


@dataclass(frozen=True)
class Read:
    """What the command line named. said: what the prompts say, or None where there are none. sync: they are
    the complete list for this series."""

    series: Series
    encoded: Encoded
    model: Model
    said: Resolved | None
    sync: bool
    skipped: int


def segment(call: SegmentCall, keys: SegmentKeys, run: Run) -> Segmented:
    """The whole command. Raises UsageError, DataError, Locked."""
    _check(call, keys)
    device = models.device_of(run.device)
    if call.memory not in (None, "-") and Path(str(call.memory)).exists():
        bank_file.load(str(call.memory))  # a damaged one is told before anything long begins
    series = read_series(call.series, keys)
    for note in series.notes:
        run.note(note)
    said, skipped = _prompts(call, keys, series, run)
    model = models.load_model(keys.model).on(device)
    cache = Cache(folder_of(keys.cache))
    encoded = cache.get(model, series, keys.per_token)
    read = Read(series, encoded, model, said, keys.prompts_mode == "sync", skipped)
    seg = _kept(call, keys, read, cache, run)
    if keys.session:
        serve = session.serve(seg, call.memory if call.memory != "-" else None)
        return Segmented(serve, lambda: _no_document(), skipped)
    found = seg.predict()
    for note in found.notes:
        run.note(note)
    if not seg.bank.rows:
        run.note(f"no prompts: states of {series.name} found without them")
    if call.plot is not None:
        draw(Path(call.plot), found)
        run.note(f"plot: {call.plot}")
    return Segmented(_parts(call, keys, seg, found), lambda: _document(call, keys, seg, found, read), skipped)


def _check(call: SegmentCall, keys: SegmentKeys) -> None:
    if call.plot is not None:
        check_plot(call.plot)
    form = _format(call, keys, None)
    if form not in (*OURS, None) and keys.rows != "segments":
        raise UsageError(
            f"format={form} holds segments, not {keys.rows}", hint=f"rows={keys.rows} format=csv"
        )
    if keys.session and "-" in (call.series, call.prompts, call.memory):
        raise UsageError("a session reads its requests from standard input", hint="give files")
    if keys.session and call.plot is not None:
        raise UsageError("a session draws no plot", hint="leave --plot or session=true out")
    folder_of(keys.cache)


def _format(call: SegmentCall, keys: SegmentKeys, series: Series | None) -> str | None:
    """The key, else what the output's name says, else what the series is."""
    if keys.format is not None:
        return keys.format
    named = Path(call.out).suffix.lower()[1:] if call.out is not None else ""
    if named in FORMATS:
        return named
    if series is None:
        return None
    return "csv" if series.kind == "csv" else "jsonl"


def _prompts(call: SegmentCall, keys: SegmentKeys, series: Series, run: Run) -> tuple[Resolved | None, int]:
    """(what is said of the series, how many records were left out)."""
    runs = from_runs(series)
    if call.prompts is None:
        return (Resolved(runs, (), (), ()) if runs else None), 0
    said: Said = parse_prompts(call.prompts, keys.bad_prompts)
    found = resolve(said, series, keys.tree, keys.bad_prompts)
    for problem in (*said.skipped, *found.skipped):
        run.note(f"warning: skipped: {problem.lines()[0].removeprefix('error: ')}")
    for warning in found.warnings:
        run.note(f"warning: {warning}")
    skipped = len(said.skipped) + len(found.skipped)
    if not said.records and not runs:
        if not skipped:
            run.note(f"{said.source} holds no prompts")
        return None, skipped
    every = Resolved((*found.prompts, *runs), found.delete_ids, found.delete_labels, ())
    return every, skipped


def _kept(call: SegmentCall, keys: SegmentKeys, read: Read, cache: Cache, run: Run) -> Segmenter:
    """The segmenter with what was said in its bank, and the bank's file as it is to be."""
    path = None if call.memory in (None, "-") else Path(str(call.memory))
    # only what may change the file needs it for itself
    writes = path is not None and (read.said is not None or not path.exists() or _known(path, read.series))
    with file_lock(path, WAIT) if path is not None and (writes or keys.rebuild) else nullcontext():
        bank = None
        if call.memory == "-" or (path is not None and path.exists()):
            bank = bank_file.load(str(call.memory))
        seg = _segmenter(bank, keys, read, cache, call, run)
        _tell(seg, run)
        if path is not None and (
            bank is None or (seg.bank is not bank and bank_file.to_bytes(seg.bank) != path.read_bytes())
        ):
            bank_file.save(seg.bank, path)
            run.note(f"{path}: {len(seg.bank.rows)} prompts of {len(seg.bank.series)} series")
    return seg


def _known(path: Path, series: Series) -> bool:
    return series.name in bank_file.load(path).series


def _segmenter(
    bank: Bank | None, keys: SegmentKeys, read: Read, cache: Cache, call: SegmentCall, run: Run
) -> Segmenter:
    """What is taken back goes first: its rows need not be there any more."""
    changes, said = Changes(), read.said
    if bank is not None and said is not None:
        name = read.series.name
        bank = bank_update.deleted(bank, name, said.delete_ids, said.delete_labels, changes)
        if read.sync and call.prompts != "-":
            bank = bank_update.kept_only(bank, name, {prompt.id for prompt in said.prompts}, changes)
    if bank is not None and keys.rebuild:
        bank = rebuild.rebuilt(bank, read.model, read.series, read.encoded, call.series, cache, run)
    elif bank is not None:
        bank_file.check_model(bank, read.model, str(call.memory))
    seg = Segmenter(read.model, bank, keys, cache)
    seg.changes = changes
    seg.fit_series(read.series, read.encoded)
    if said is not None:
        seg.tell(replace(said, delete_ids=(), delete_labels=(), warnings=()))
    return seg


def _tell(seg: Segmenter, run: Run) -> None:
    """What changed in the bank, on standard error."""
    changes = seg.changes
    for warning in changes.warnings:
        run.note(f"warning: {warning}")
    if changes.encoded_again:
        run.note(f"{seg.series.name} has changed: {changes.encoded_again} prompts encoded again")
    if changes.dropped:
        run.note(f"capacity: {changes.dropped} oldest prompts dropped")


def _parts(call: SegmentCall, keys: SegmentKeys, seg: Segmenter, found: Prediction) -> Iterator[str | bytes]:
    form = _format(call, keys, found.series)
    if keys.rows == "suggest":
        timed = found.series.time_name is not None
        return (encode(suggestion.record(timed)) + "\n" for suggestion in seg.suggest())
    return tables.parts(found, keys.rows, str(form))


def _document(
    call: SegmentCall, keys: SegmentKeys, seg: Segmenter, found: Prediction, read: Read
) -> Mapping[str, Any]:
    series = found.series
    levels: dict[str, dict[str, Any]] = {
        level.name: {"segments": [s.row() for s in found.segments if s.level == level.name]}
        for level in found.levels
    }
    report = {
        "rows": series.rows,
        "rows_in_hand": len(series),
        "channels": list(series.channels),
        "stride": found.stride,
        "model": seg.model.name,
        "prompts": len(seg.bank.rows),
        "added": seg.changes.added,
        "removed": seg.changes.removed,
        "encoded_again": seg.changes.encoded_again,
        "dropped": seg.changes.dropped,
        "skipped": read.skipped,
        "encoded": seg.cache.encoded,
        **series.counts,
        "notes": [*series.notes, *seg.changes.warnings, *found.notes],
    }
    timed = series.time_name is not None
    return {
        "series": series.name,
        "memory": call.memory,
        "levels": levels,
        "suggest": [suggestion.record(timed) for suggestion in seg.suggest()] if len(series) else [],
        "report": report,
    }


def _no_document() -> Mapping[str, Any]:
    raise UsageError("a session answers line by line", hint="leave --json out")
