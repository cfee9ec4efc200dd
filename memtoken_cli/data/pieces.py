"""Content-defined pieces of an endless text, each to be tokenised alone.

A piece ends before the first space (U+0020) behind a character that is no white space once it has LEAST
characters, and at the latest when it has MOST. So pieces depend on the text alone, not on how it arrives, and
where byte-level tokenizers cut words is where pieces end: their ids are those of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LEAST, MOST = 512, 16_384
_CUT = re.compile(r"(?<=\S) ")


class Pieces:
    """Cuts text as it is added. What is not cut yet is `rest`, fewer than MOST characters; a new `Pieces`
    that is given it first goes on as this one would."""

    def __init__(self, rest: str = "") -> None:
        self._open = rest
        self._seen = 0  # no cut starts before this place of the open piece

    @property
    def rest(self) -> str:
        """The start of a piece whose end is not known."""
        return self._open

    def add(self, text: str) -> list[str]:
        """The pieces that `text` completes, in order."""
        whole, start, out = self._open + text, 0, []
        while True:
            cut = _CUT.search(whole, start + max(self._seen, LEAST), start + MOST)
            if cut is not None:
                end = cut.start()
            elif len(whole) - start >= MOST:
                end = start + MOST
            else:
                break
            out.append(whole[start:end])
            start, self._seen = end, 0
        self._open = whole[start:]
        self._seen = len(self._open)
        return out

    def flush(self) -> list[str]:
        """The rest as a piece of its own, if there is any; what comes next starts afresh."""
        out = [self._open] if self._open else []
        self._open, self._seen = "", 0
        return out


def cut(texts: Iterable[str]) -> Iterator[str]:
    """The pieces of a text that arrives in parts, the last one included."""
    pieces = Pieces()
    for text in texts:
        yield from pieces.add(text)
    yield from pieces.flush()
