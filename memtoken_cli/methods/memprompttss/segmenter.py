"""The Python front door: one series, a bank, and what follows from them. The command line goes through it
too.

    seg = Segmenter.load("tss-base", memory="walk.memory.safetensors")
    seg.fit(x_TC).prompt({"row": 40, "label": "walk"})
    found = seg.predict()          # found.states_T, found.confidence_T, found.segments, found.evidence

Nothing here is random, and nothing depends on the order in which prompts came (but for a capacity).
Shape suffixes: T rows, C channels, N tokens, K states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memtoken_cli.data.prompts import Prompt, Resolved, Said, parse_prompt, resolve
from memtoken_cli.data.series import Series, series_of
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memprompttss import bank_file, bank_update, plain, segments
from memtoken_cli.methods.memprompttss import model as models
from memtoken_cli.methods.memprompttss.bank import Bank
from memtoken_cli.methods.memprompttss.bank_update import Changes
from memtoken_cli.methods.memprompttss.cache import Cache, folder_of
from memtoken_cli.methods.memprompttss.levels import Level, Options, decode_level, derived
from memtoken_cli.methods.memprompttss.model import Encoded, Model
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys
from memtoken_cli.methods.memprompttss.segments import Segment

if TYPE_CHECKING:
    from memtoken_cli.methods.memprompttss.suggest import Suggestion

SHOWN = 3  # prompts named as a segment's evidence


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a series' rows are. The first level is the one that was prompted without a name, where there is
    one.

    states_T, confidence_T: of the file's rows at the first level: labels ("" in a gap), float32 (NaN where
    nothing tells). notes: what a user should know.
    """

    series: Series
    levels: tuple[Level, ...]
    segments: tuple[Segment, ...]
    stride: int
    notes: tuple[str, ...] = ()

    @cached_property
    def states_T(self) -> np.ndarray:
        level = self.levels[0]
        names = np.array([*level.labels, ""], object)
        return np.take(names, self.series.on_rows(level.states_T), mode="wrap")

    @cached_property
    def confidence_T(self) -> np.ndarray:
        return segments.confidence_of(self.series, self.levels[0], self.stride)

    @property
    def evidence(self) -> list[tuple[tuple[str, float], ...]]:
        """(prompt id, weight), most first, of every segment in order."""
        return [segment.evidence for segment in self.segments]


class Segmenter:
    """model: what encodes and reads. bank: what it starts with. keys: as on the command line.

    Methods raise DataError and UsageError as the command exits 3 and 2.
    """

    def __init__(
        self,
        model: Model,
        bank: Bank | None = None,
        keys: SegmentKeys | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.model = model
        self.keys = keys or SegmentKeys()
        self.bank = (bank if bank is not None and bank.rows else Bank.empty(model)).limited(self.keys.limit)
        bank_file.check_model(self.bank, model, "the bank")
        self.cache = cache or Cache(folder_of(self.keys.cache))
        self.changes = Changes()
        self._series: Series | None = None
        self._encoded: Encoded | None = None
        self._before: list[Bank] = []
        self._plain: Level | None = None

    @classmethod
    def load(
        cls,
        model: str = "tss-base",
        memory: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> Segmenter:
        """A model by name or weights file, with a bank's file (absent: an empty bank). options: the command's
        keys; embeddings are cached only where they say so. device: where series are encoded, cpu or cuda."""
        keys = SegmentKeys(**{"cache": "off", "model": model, **(options or {})})
        bank = bank_file.load(memory) if memory is not None and Path(memory).exists() else None
        return cls(models.load_model(model).on(models.device_of(device)), bank, keys)

    @property
    def series(self) -> Series:
        """The series in hand. Raises UsageError before `fit`."""
        if self._series is None:
            raise UsageError("no series yet", hint="fit(x_TC) comes first")
        return self._series

    @property
    def encoded(self) -> Encoded:
        self.series  # noqa: B018 - raises where there is none
        assert self._encoded is not None
        return self._encoded

    @property
    def memory(self) -> Bank:
        """The bank as it is; `memory.save(path)` keeps it."""
        return self.bank

    def fit(
        self,
        x_TC: np.ndarray,
        time: Sequence[Any] | np.ndarray | None = None,
        channels: Sequence[str] | None = None,
        y: None = None,
    ) -> Segmenter:
        """Take a series in hand: [T] or [T, C] numbers. Nothing is trained."""
        values_TC = np.asarray(x_TC)
        return self.fit_series(
            series_of(values_TC[:, None] if values_TC.ndim == 1 else values_TC, time, channels, self.keys)
        )

    def fit_series(self, series: Series, encoded: Encoded | None = None) -> Segmenter:
        """Take a series that was read in hand, `encoded` already or not; where the bank knows it and it has
        changed, its prompts are encoded again."""
        self._series = series
        self._encoded = (
            self.cache.get(self.model, series, self.keys.per_token) if encoded is None else encoded
        )
        self._plain, self._before = None, []
        self.bank = bank_update.refreshed(self.bank, self.model, self.encoded, series, self.changes)
        return self

    def prompt(self, *records: Mapping[str, Any]) -> Segmenter:
        """Say something about the series, in the form of a line of a prompts file."""
        said = tuple(parse_prompt(record, f"prompt {n}", n) for n, record in enumerate(records, 1))
        self.tell(resolve(Said(said, "jsonl", "the prompts"), self.series, self.keys.tree))
        return self

    def tell(self, resolved: Resolved) -> None:
        """What a prompts file says, added to what the bank holds."""
        before, changes = self.bank, self.changes
        ids, labels = resolved.delete_ids, resolved.delete_labels
        bank = bank_update.deleted(self.bank, self.series.name, ids, labels, changes)
        self.bank = bank_update.told(bank, self.model, self.encoded, self.series, resolved.prompts, changes)
        changes.warnings += resolved.warnings
        self._before.append(before)

    def retract(self, id: str) -> Segmenter:
        """Take a prompt back: the bank is then what it would be had it never been given. Raises DataError."""
        if not any(row.written.prompt.id == id for row in self.bank.rows):
            raise DataError(f"no prompt {id} in the bank")
        self._before.append(self.bank)
        self.bank = bank_update.deleted(self.bank, self.series.name, [id], [], self.changes)
        return self

    def undo(self) -> Segmenter:
        """Take the last `prompt` or `retract` back. Raises UsageError where there is none."""
        if not self._before:
            raise UsageError("nothing to undo")
        self.bank = self._before.pop()
        return self

    def predict(self) -> Prediction:
        """The states of the series in hand, from all that the bank holds; without a label, unsupervised."""
        series, encoded = self.series, self.encoded
        levels, notes = self.levels()
        found: list[Segment] = []
        for level in levels:
            why = None if level.silent or not self.bank.rows else self._why
            found += segments.segments_of(level, series, encoded.stride, why)
        return Prediction(series, levels, segments.dated(found, series), encoded.stride, notes)

    def fit_predict(self, x_TC: np.ndarray, y: None = None) -> np.ndarray:
        """[T] int64 states of a series, numbered by first appearance; -1 in a gap."""
        found = self.fit(x_TC).predict()
        states_T = found.series.on_rows(found.levels[0].states_T).astype(np.int64)
        order = {k: number for number, k in enumerate(k for k in dict.fromkeys(states_T.tolist()) if k >= 0)}
        return np.array([order.get(k, -1) for k in range(-1, len(found.levels[0].labels))])[states_T + 1]

    def suggest(self, n: int | None = None) -> list[Suggestion]:
        """Rows to label next, the most useful first."""
        from memtoken_cli.methods.memprompttss import suggest

        levels, _ = self.levels()
        return suggest.suggestions(
            self.model, self.encoded, self.series, self.bank, levels[0], self.plain, n or self.keys.suggest
        )

    @property
    def plain(self) -> Level:
        """The series without a prompt, found once."""
        if self._plain is None:
            wanted = None if self.keys.states == "auto" else int(self.keys.states)
            self._plain = plain.level_of(self.series, self.encoded, wanted)
        return self._plain

    def levels(self) -> tuple[tuple[Level, ...], tuple[str, ...]]:
        """Every level decoded, and notes; levels that the hierarchy derives come after the one they are
        from."""
        keys, tree = self.keys, self.keys.tree or {}
        options = Options(
            keys.order,
            keys.smooth,
            keys.unknown == "auto",
            None if keys.states == "auto" else int(keys.states),
            keys.shortest(self.series.step * self.series.unit),
        )
        asked = [name for name in self.bank.levels if self.bank.labels(name)]
        notes: list[str] = []
        if not asked:
            own = tuple(row.written.prompt for row in self.bank.of(self.series.name))
            return (plain.constrained(self.plain, self.series, self.encoded, own, options),), tuple(notes)
        found: dict[str, Level] = {}
        for name in sorted(asked, key=lambda level: (level != "default", level)):
            labels = self.bank.labels(name)
            if len(labels) == 1 and not options.unknown:
                notes.append(f"warning: one label only at level {name}: every row gets {labels[0]!r}")
            found[name] = self._level(name, options)
        for name, parents in tree.items():
            if name not in found:
                upward = {fine: coarse for coarse, all_fine in parents.items() for fine in all_fine}
                source = max(found.values(), key=lambda level: len(set(level.labels) & set(upward)))
                found[name] = derived(source, name, upward)
        return tuple(found.values()), tuple(notes)

    def _level(self, name: str, options: Options) -> Level:
        if len(self.series) < plain.FEWEST and self.bank.of(self.series.name):
            return plain.nearest(self.series, self.encoded, self._own(name), self.bank.labels(name), name)
        series = self.series
        return decode_level(self.model, self.encoded, series.name, self.bank, name, options, series.gap_T)

    def _own(self, level: str) -> tuple[Prompt, ...]:
        told = (row.written.prompt for row in self.bank.of(self.series.name))
        return tuple(prompt for prompt in told if prompt.level == level)

    def _why(self, level: str, start: int, end: int) -> list[tuple[str, float]]:
        """The prompts with most weight on tokens [start, end)."""
        written = self.bank.written
        weight_P = self.model.evidence(self.encoded, self.series.name, written, level, start, end).tolist()
        order = sorted(range(len(written)), key=lambda at: (-weight_P[at], at))[:SHOWN]
        return [(written[at].prompt.id, weight_P[at]) for at in order if weight_P[at] > 0]
