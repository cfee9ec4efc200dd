"""What a row says, piece by piece while it is decoded: pieces laid end to end are the text of its result."""

from __future__ import annotations

from collections.abc import Iterator

from memtoken_cli.methods.tokmem.events import TextEvent
from memtoken_cli.methods.tokmem.grammar import Row

BROKEN = "\ufffd"  # how the decoder shows the first bytes of a character


class Telling:
    """One row's. number: of the segment that is being told; told: what was given out of it, with the line end
    that parts it from the one before."""

    def __init__(self, number: int, row: Row) -> None:
        self.at, self.row = number, row
        self.number, self.told = 0, ""

    def more(self) -> Iterator[TextEvent]:
        """What has been said since the last call. A character that is not whole yet waits for the rest of
        its bytes."""
        while self.number < len(self.row.segments):
            segment = self.row.segments[self.number]
            yield from self._rest(segment.text, segment.procedure)
            self.number, self.told = self.number + 1, ""
        if self.row.talks and (text := self.row.text_of(self.row.said).rstrip(BROKEN)):
            yield from self._rest(text, self.row.procedure)

    def _rest(self, text: str, procedure: str | None) -> Iterator[TextEvent]:
        whole = ("\n" if self.number else "") + text
        # a tokenizer that takes back what it said is waited for
        if whole != self.told and whole.startswith(self.told):
            yield TextEvent(self.at, whole[len(self.told) :], procedure)
            self.told = whole
