"""Sentences that say nothing: out of any text file, or made from a seed. Facts are hidden among them.

The made ones name no person, place or thing that `babi.py`'s facts can be about.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from memtoken_cli.data.utf8 import read_text
from memtoken_cli.io.errors import DataError

# an end mark, closing quotes or brackets, then white space and what can begin a sentence; or a blank line
_END = re.compile(r"(?<=[.!?])([\"'”’)\]]*)\s+(?=[\"'“‘(\[]?[A-Z0-9])|\n\s*\n")
_SHORT = re.compile(r"(?:^|[\s(\"'“‘])(?:Mr|Mrs|Ms|Dr|St|Prof|Capt|Col|Gen|No|vs|etc|e\.g|i\.e|[A-Z])\.$")

_TIMES = ("In spring", "At dawn", "Every year", "Long ago", "After the storm", "Before noon", "On Sundays")
_WHO = (
    "the miller", "an old sailor", "the baker", "a quiet clerk", "the captain", "a young painter",
    "the tailor", "a tired doctor", "the fisherman", "a patient teacher",
)  # fmt: skip
_DID = (
    "looked at", "spoke about", "wrote down", "remembered", "sold", "measured", "mended", "counted",
    "described", "compared",
)  # fmt: skip
_WHAT = (
    "the broken clock", "a long letter", "some green bottles", "the narrow bridge", "seven wooden boats",
    "the price of bread", "a map of the river", "the colour of the sea", "an empty barrel",
    "two silver coins",
)  # fmt: skip
_HOW = (
    "with great care", "without a word", "as well as anyone could", "for nearly an hour",
    "because nobody else would", "as if it were new", "while the wind rose", "until the light was gone",
    "and then began to sing", "though it made little sense",
)  # fmt: skip
LEAST = 10  # words and marks of a made sentence


def made_sentences(seed: int, count: int) -> list[str]:
    """`count` sentences of LEAST words and marks or more, the same for the same seed."""
    rng = random.Random(seed)
    return [_sentence(rng) for _ in range(count)]


def _sentence(rng: random.Random) -> str:
    time, who, did, what, how = (
        words[rng.randrange(len(words))] for words in (_TIMES, _WHO, _DID, _WHAT, _HOW)
    )
    orders = (
        f"{time} {who} {did} {what} {how}.",
        f"{time} {who} {did} {what}, {how}.",
        f"{time}, {how}, {who} {did} {what}.",
    )
    return orders[rng.randrange(len(orders))]


def made_words() -> set[str]:
    """Every word that a made sentence can have, without marks."""
    return {
        word for group in (_TIMES, _WHO, _DID, _WHAT, _HOW) for phrase in group for word in phrase.split()
    }


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, white space inside them made one space each.

    They end at an end mark before white space and a capital, a digit or a quote, not behind a title or an
    initial; and at blank lines.
    """
    out: list[str] = []
    start = 0
    for end in _END.finditer(text):
        stop = end.end(1) if end.group(1) is not None else end.start()
        if end.group(1) is not None and _SHORT.search(text, max(start, stop - 8), stop):
            continue
        out.append(text[start:stop])
        start = end.end()
    out.append(text[start:])
    return [short for sentence in out if (short := " ".join(sentence.split()))]


def read_sentences(path: str | Path) -> list[str]:
    """The sentences of a text file. Raises DataError: no such file, not UTF-8, no sentence in it."""
    found = split_sentences("".join(read_text(path)))
    if not found:
        raise DataError(f"no text in {path}", hint="task.background: any text file, such as a book")
    return found
