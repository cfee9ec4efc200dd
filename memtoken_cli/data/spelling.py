"""How sentences become ids and ids text again: by a vocabulary of whole words, or by a model's own tokenizer.

The first is for new small models that are trained on made sentences alone; marks are words, and MARKER, which
stands between a question and its answer, is one of them. Otherwise that place has plain text, so that a model
can be asked the same way in a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from memtoken_cli.data.streams import HEAD, TAIL
from memtoken_cli.io.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKER, MARKER_TEXT = "<gen>", "\nAnswer:"
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


class Spelling(Protocol):
    """A way to spell.

    Attributes:
        first: the ids that every row begins with. marker: those between question and answer.
        last: the id that ends an answer.
        words: in id order; empty where a tokenizer has its own.
    """

    first: list[int]
    marker: list[int]
    last: int
    words: tuple[str, ...]

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Ids of each sentence, as it stands behind another one."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text, without special tokens."""
        ...


def split_words(text: str) -> list[str]:
    """Words, and marks one by one."""
    return _WORD.findall(text)


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text alone, nothing added to it; special tokens written out in it are plain text."""
    if not texts:
        return []
    coded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [list(ids) for ids in coded["input_ids"]]


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of a text: its begin-of-text id, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


@dataclass
class WordSpelling:
    """Whole words: HEAD[1] in front of every row, TAIL[0] behind an answer, TAIL[1] for an unknown word."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        self._id = {word: i for i, word in enumerate(self.words)}
        self._unknown = self._id[TAIL[1]]
        self.first = [self._id[HEAD[1]]]
        self.marker = [self._id[MARKER]]
        self.last = self._id[TAIL[0]]

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        return [[self._id.get(w, self._unknown) for w in split_words(text)] for text in sentences]

    def decode(self, ids: Iterable[int]) -> str:
        special = {*HEAD, TAIL[0]}
        # a model may have more rows than words
        words = (self.words[i] if i < len(self.words) else TAIL[1] for i in ids)
        return " ".join(word for word in words if word not in special)


class TokenSpelling:
    """A model's tokenizer: a space in front of every sentence and answer, MARKER_TEXT as the marker.

    A row begins as the tokenizer begins a text, if with anything. Special tokens in sentences are plain text.
    Raises UsageError where it has no end-of-text token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.words: tuple[str, ...] = ()
        if tokenizer.eos_token_id is None:
            raise UsageError(
                "this model's tokenizer has no end-of-text token", hint="task.name=text needs none"
            )
        self.first = opening(tokenizer)
        self.marker = plain_ids(tokenizer, [MARKER_TEXT])[0]
        self.last = int(tokenizer.eos_token_id)

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        return plain_ids(self._tokenizer, [" " + text for text in sentences])

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """By words where the tokenizer is one of whole words with a MARKER, else by the tokenizer itself."""
    ids = tokenizer.get_vocab()
    if {MARKER, *HEAD, *TAIL} <= ids.keys():
        return WordSpelling(tuple(sorted(ids, key=ids.__getitem__)))
    return TokenSpelling(tokenizer)
