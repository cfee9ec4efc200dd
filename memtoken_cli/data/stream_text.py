"""Language modelling on one's own text: random windows, windows in order, and windows held out.

A file, or a folder of files one after the other, is one stream, or documents where a break between them is
named. The text is cut into pieces (pieces.py) and each is tokenised alone, so ids are those that `generate`
reads from the same text. The last share of the tokens is the validation part and no window of training
reaches into it.

A new model reads bytes, or whole words: what stands between white space, which is dropped.

Shape suffixes: B rows, T tokens of a row, D documents, K tokens of the text, W different words of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.data.byte_words import BYTE_WORDS, byte_ids
from memtoken_cli.data.pieces import cut
from memtoken_cli.data.spelling import plain_ids
from memtoken_cli.data.streams import HEAD, IGNORE, PAD, TAIL, Sequences, at_least_one, vocabulary
from memtoken_cli.data.task_config import TaskSection, Unit
from memtoken_cli.data.utf8 import read_text
from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOGETHER = 1024  # pieces that are tokenised in one call
# white space as tokenizers have it: Unicode's, without the four separators that Python adds
_WORD = re.compile(r"[\S\x1c-\x1f]+")

Encode = Callable[[Sequence[str]], list[NDArray[np.int32]]]


@dataclass(frozen=True)
class Part:
    """Documents of a text: document d is ids_K[start_D[d] : stop_D[d]]; none is empty."""

    ids_K: NDArray[np.int32]
    start_D: NDArray[np.int64]
    stop_D: NDArray[np.int64]

    def __len__(self) -> int:
        return int((self.stop_D - self.start_D).sum())

    def longest(self) -> int:
        return int((self.stop_D - self.start_D).max(initial=0))


@dataclass(frozen=True)
class Ordered:
    """What comes next for each of B readers. fresh_B: it starts a document, or a reader's share, so the
    memory begins anew."""

    sequences: Sequences
    fresh_B: Tensor


class Text:
    """The task. Every token of a window is scored but the first, which is only read.

    Args:
        task: its document_break, validation, segments and words.
        segment: tokens of a segment.
        seed: unused; what is random is `draw`'s.
        tokenizer: None: bytes, as BYTE_WORDS numbers them, or the task's number of words.
        path: a UTF-8 file, or a folder whose files are read in the order of their names.

    Raises DataError: no such file, not UTF-8, too short for a window of the task's segments; UsageError where
    there is no path.
    """

    unit: ClassVar[Unit] = "segments"
    final: ClassVar[int | None] = None

    def __init__(
        self,
        task: TaskSection,
        segment: int,
        seed: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        path: str | Path | None = None,
    ) -> None:
        if path is None:
            raise UsageError("the task text needs a text", hint="data.path=FILE, any UTF-8 file or a folder")
        self._segment, self._segments, self._path = segment, task.segments or 1, path
        found: dict[str, int] = {}
        encode = _encode(tokenizer, found if task.words else None)
        documents = [_ids(parts, encode) for parts in _documents(path, task.document_break)]
        self.training, self.validation = _split(documents, task.validation or 0.0)
        self._words = BYTE_WORDS if tokenizer is None else ()
        if tokenizer is None and task.words:
            self._words, place_W = _most_frequent(found, self.training, task.words)
            ids_K = place_W[self.training.ids_K]
            self.training, self.validation = (
                replace(part, ids_K=ids_K) for part in (self.training, self.validation)
            )
        self._check(self.training, self._segments, "training")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """BYTE_WORDS, or the words; empty where a tokenizer was given."""
        return self._words

    def size(self) -> int:
        return self._segments

    def tokens(self, n: int) -> int:
        return n * self._segment

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        """Windows of the training part, n segments and one token to predict: a document by how much there is
        to predict in it, a place in it evenly. A document that is shorter is a row as it is.

        Raises DataError where no document is as long.
        """
        self._check(self.training, n, "training")
        part, wanted = self.training, self.tokens(n) + 1
        length_D = part.stop_D - part.start_D
        until_D = (length_D - 1).cumsum()
        token_B = torch.randint(int(until_D[-1]), (rows,), generator=generator).numpy()
        d_B = np.searchsorted(until_D, token_B, side="right")
        free_B = np.maximum(length_D[d_B] - wanted, 0) + 1
        share_B = torch.rand(rows, generator=generator, dtype=torch.float64).numpy()
        start_B = part.start_D[d_B] + (share_B * free_B).astype(np.int64)
        return _windows(part.ids_K, start_B, np.minimum(start_B + wanted, part.stop_D[d_B]))

    def ordered(self, rows: int, n: int = 1, start: int = 0) -> Iterator[Ordered]:
        """The training part in windows of n segments, one behind the other, without end.

        `rows` readers have equal shares of the windows, and each begins its own again when it is through. The
        last window of a document may be short. start: steps to leave out, as they are done.

        Raises DataError where there are fewer windows than readers.
        """
        at_least_one(n, self.unit)
        part, width = self.training, self.tokens(n)
        # the last token of a document is only predicted
        count_D = np.maximum(part.stop_D - part.start_D - 1 + width - 1, 0) // width
        total = int(count_D.sum())
        if total < rows:
            raise DataError(
                f"{self._path}: {total} windows of {width} tokens for {rows} readers",
                hint="a longer text, or a smaller train.batch",
            )
        before_D = count_D.cumsum() - count_D
        share_B = np.arange(rows + 1) * total // rows
        size_B = np.diff(share_B)
        step = start
        while True:
            place_B = step % size_B
            window_B = share_B[:-1] + place_B
            d_B = np.searchsorted(before_D + count_D, window_B, side="right")
            nth_B = window_B - before_D[d_B]
            start_B = part.start_D[d_B] + nth_B * width
            stop_B = np.minimum(start_B + width + 1, part.stop_D[d_B])
            fresh_B = torch.from_numpy((nth_B == 0) | (place_B == 0))
            yield Ordered(_windows(part.ids_K, start_B, stop_B), fresh_B)
            step += 1

    def validation_rows(self, n: int, rows: int) -> Sequences:
        """`rows` windows of n segments, and one token to predict, evenly spread over the validation part;
        fewer where it has fewer places. They overlap only where the part is short.

        Raises DataError where no document of it is as long.
        """
        self._check(self.validation, n, "validation")
        part, wanted = self.validation, self.tokens(n) + 1
        free_D = np.maximum(part.stop_D - part.start_D - wanted + 1, 0)
        total = int(free_D.sum())
        count = min(rows, total)
        place_B = (2 * np.arange(count) + 1) * total // (2 * count)
        d_B = np.searchsorted(free_D.cumsum(), place_B, side="right")
        start_B = part.start_D[d_B] + place_B - (free_D.cumsum() - free_D)[d_B]
        return _windows(part.ids_K, start_B, start_B + wanted)

    def _check(self, part: Part, n: int, name: str) -> None:
        at_least_one(n, self.unit)
        if part.longest() < self.tokens(n) + 1:
            more = ", or a larger task.validation" if name == "validation" else ""
            raise DataError(
                f"{self._path}: the longest document of its {name} part has {part.longest()} tokens, "
                f"and {n} segments of {self._segment} take {self.tokens(n) + 1}",
                hint=f"a longer text, or fewer segments{more}",
            )


def _files(path: str | Path) -> list[Path]:
    """The file, or the files of the folder, deep, in the order of their names; those with a dot in front of a
    name are left out."""
    root = Path(path)
    if not root.is_dir():
        return [root]
    inside = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    found = sorted(p for p in inside if not any(name.startswith(".") for name in p.parts))
    if not found:
        raise DataError(f"no file in {path}", hint="data.path: a text file, or a folder of them")
    return [root / p for p in found]


def _documents(path: str | Path, mark: str | None) -> Iterator[Iterable[str]]:
    """The text of each document, in parts. A file ends one too where `mark` ends others."""
    files = _files(path)
    if mark is None:
        yield chain.from_iterable(read_text(file) for file in files)
        return
    for file in files:
        yield from ([text] for text in "".join(read_text(file)).split(mark) if text)


def _encode(tokenizer: PreTrainedTokenizerBase | None, found: dict[str, int] | None) -> Encode:
    """How pieces become ids: by the tokenizer, by `found` (words, numbered as they come first), or bytes."""
    if tokenizer is not None:
        return lambda pieces: [np.asarray(ids, np.int32) for ids in plain_ids(tokenizer, pieces)]
    if found is None:
        return lambda pieces: [byte_ids(piece) for piece in pieces]
    return lambda pieces: [
        np.array([found.setdefault(word, len(found)) for word in _WORD.findall(piece)], np.int32)
        for piece in pieces
    ]


def _ids(parts: Iterable[str], encode: Encode) -> NDArray[np.int32]:
    found = [np.zeros(0, np.int32)]
    left = cut(parts)
    while pieces := list(islice(left, TOGETHER)):
        found += encode(pieces)
    return np.concatenate(found)


def _most_frequent(
    found: dict[str, int], training: Part, words: int
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """(the vocabulary of the most frequent words, ties in alphabetical order, and the ids place_W of all that
    were found). A special word that is written out in the text is that word."""
    count_W = np.bincount(training.ids_K[: training.stop_D.max(initial=0)], minlength=len(found))
    own = [word for word, i in found.items() if count_W[i] and word not in (*HEAD, *TAIL)]
    own.sort(key=lambda word: (-count_W[found[word]], word))
    all_words = vocabulary(*own[:words])
    place = {word: i for i, word in enumerate(all_words)}
    unknown = place[TAIL[1]]
    return all_words, np.array([place.get(word, unknown) for word in found], np.int32)


def _split(documents: list[NDArray[np.int32]], validation: float) -> tuple[Part, Part]:
    """The text and its last share; a document that lies across the border is cut there in two."""
    length_D = np.array([len(ids) for ids in documents], np.int64)
    ids_K = np.concatenate(documents)
    stop_D = length_D.cumsum()
    start_D = stop_D - length_D
    border = len(ids_K) - round(validation * len(ids_K))

    def part(low: int, high: int) -> Part:
        first_D, last_D = start_D.clip(low, high), stop_D.clip(low, high)
        some = first_D < last_D
        return Part(ids_K, first_D[some], last_D[some])

    return part(0, border), part(border, len(ids_K))


def _windows(ids_K: NDArray[np.int32], start_B: NDArray[np.int64], stop_B: NDArray[np.int64]) -> Sequences:
    """Rows ids_K[start : stop - 1] with the token behind each as its target."""
    length_B = np.maximum(stop_B - start_B - 1, 0)
    ids_BT = torch.full((len(start_B), int(length_B.max(initial=0))), PAD)
    target_BT = torch.full_like(ids_BT, IGNORE)
    for b, (start, length) in enumerate(zip(start_B.tolist(), length_B.tolist(), strict=True)):
        row = torch.from_numpy(ids_K[start : start + length + 1].astype(np.int64))
        ids_BT[b, :length], target_BT[b, :length] = row[:-1], row[1:]
    return Sequences(
        ids_BT, torch.from_numpy(length_B), target_BT, torch.zeros(len(start_B), dtype=torch.int64)
    )
