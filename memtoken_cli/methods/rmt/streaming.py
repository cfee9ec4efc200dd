"""`memtok generate` of a session: text of any length is read as it comes, then what follows is written.

Only whole segments and, once, the tail are computed, so that no result depends on how the bytes arrive.
Between two pieces of text everything that was read is in the session, in the text that is not cut yet, or in
the pieces that wait: that is what a file holds, whenever it is written.
"""

from __future__ import annotations

import io
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from memtoken_cli.data.pieces import Pieces
from memtoken_cli.data.utf8 import BLOCK, Utf8
from memtoken_cli.engine import resident
from memtoken_cli.engine.endless import StreamCall, Streamed
from memtoken_cli.engine.method import Run
from memtoken_cli.engine.stopping import Interrupted, Terminated, signals
from memtoken_cli.io.arriving import arriving
from memtoken_cli.io.errors import DataError, MemtokError, UsageError, from_os_error
from memtoken_cli.methods.rmt import session_file
from memtoken_cli.methods.rmt.generate_config import GenerateKeys
from memtoken_cli.methods.rmt.sampling import Sampling, sampling
from memtoken_cli.methods.rmt.session import Session
from memtoken_cli.methods.rmt.wording import Hearing, around
from memtoken_cli.methods.rmt.writing import spoken

LONG = 1024  # ids of a piece that are read without a way back: it is not left in its middle


def stream(call: StreamCall, keys: GenerateKeys, run: Run) -> Streamed:
    """`engine.endless.Streams` for recurrent memory."""
    if keys.save_every and call.out in (None, "-"):
        raise UsageError("save_every needs a file to write again", hint="--out FILE")
    streaming = Streaming(call, keys, run)
    return Streamed(streaming.parts(), streaming.document)


class Streaming:
    """One call: its session, the text that is on its way there, and what is counted."""

    session: Session
    how: Sampling
    hearing: Hearing
    pieces: Pieces

    def __init__(self, call: StreamCall, keys: GenerateKeys, run: Run) -> None:
        self.call, self.keys, self.run = call, keys, run
        self.waiting: deque[str] = deque()
        self.decoder = Utf8(keys.errors)
        self.before = self.saved = self.began = 0  # bytes and segments of earlier calls, segments on disk
        self.written: int | None = None  # bytes of this call's input in the file that it wrote, if it did
        self.tokens_in = self.tokens_out = 0
        self.busy = 0.0

    def parts(self) -> Generator[str | bytes, None, None]:
        with signals() as asked:
            self._open()
            try:
                self._read(asked)
                yield from self._write(asked)
            except GeneratorExit:
                self._save()
                raise
            except Interrupted as stop:
                self._save()
                self._explain(stop)
                raise
            self._save()
        if self.call.out == "-":
            target = io.BytesIO()
            self._save_to(target)
            yield target.getvalue()

    def document(self) -> dict[str, Any]:
        """What --json tells beside the text."""
        memory = sum(x.numel() * x.element_size() for x in self.session.state)
        (read,) = self.session.read
        counts = {"tokens": read.tokens, "segments": read.segments, "bytes": self.before + self.decoder.taken}
        prompt = self.call.prompt
        return {
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "segments": read.segments - self.began,
            "bytes_in": self.decoder.taken if prompt is None else len(prompt.encode()),
            "state": {"path": self.call.out, "memory_bytes": memory, **counts},
            "tokens_per_second": (self.tokens_in + self.tokens_out) / max(self.busy, 1e-9),
            "peak_mib": _peak(self.session.backbone.device),
        } | ({"replaced": self.decoder.replaced} if self.keys.errors == "replace" else {})

    def _open(self) -> None:
        call = self.call
        found = session_file.opened(
            call.memory,
            call.data,
            self.run.device,
            call.model,
            call.trust_remote_code,
            self.keys.history,
        )
        self.session, tail, self.before = found.session, found.tail, found.read
        if len(self.session) != 1:
            raise DataError(f"{call.memory} holds {len(self.session)} rows, not one stream of text")
        if self.keys.reset:
            assert found.session.model is not None
            self.session, tail, self.before = Session.new(found.session.model), "", 0
            self.session.history = self.keys.history
        if call.seed is not None:
            self.session.draws.seed(call.seed)
        self.how = sampling(self.keys.generation(), self.session.backbone)
        (read,) = self.session.read
        self.saved = self.began = read.segments
        self.hearing = Hearing(self.session.backbone.tokenizer, started=read.tokens > 0)
        self.pieces = Pieces(tail)

    def _read(self, asked: Callable[[], int]) -> None:
        keys, answered = self.keys, self.keys.max_new_tokens > 0
        chat = keys.template == "chat"
        before, behind = around(self.hearing.tokenizer, answered) if chat else ("", "")
        if chat:
            self._cut(self.pieces.add("") + self.pieces.flush(), asked)
            self._absorb(self.hearing.marked(before))
        for text in self._texts(asked):
            self._cut(self.pieces.add(text), asked)
        self._cut(self.pieces.add(keys.suffix), asked)
        if chat or answered:
            self._cut(self.pieces.flush(), asked)
        if chat:
            self._absorb(self.hearing.marked(behind))

    def _texts(self, asked: Callable[[], int]) -> Iterator[str]:
        """The input as it comes. Raises DataError where it is not UTF-8, UsageError where there is none."""
        if self.call.prompt is not None:
            yield self.call.prompt
            return
        for block in arriving(asked, BLOCK):
            yield from self.decoder.add(block)
        _check(asked)
        yield from self.decoder.end()
        if not self.decoder.taken:
            raise UsageError(
                "nothing to read: standard input is empty, and there is no prompt",
                hint='memtok generate "a question" --memory FILE, or pipe a text in',
            )

    def _cut(self, pieces: list[str], asked: Callable[[], int]) -> None:
        """Read pieces one by one; at a signal the rest of them waits."""
        self.waiting += pieces
        while self.waiting:
            _check(asked)
            self._piece(self.waiting[0], asked)
            self.waiting.popleft()
            every = self.keys.save_every
            if every and self.session.read[0].segments - self.saved >= every:
                self._save()

    def _piece(self, piece: str, asked: Callable[[], int]) -> None:
        """Read a piece, or at a signal nothing of it."""
        started = self.hearing.started
        ids = self.hearing.ids(piece)
        if len(ids) <= LONG:
            self._absorb(ids)
            return
        before, counted = self.session.fork(), self.tokens_in
        step = self.session.policy.size
        for start in range(0, len(ids), step):
            try:
                _check(asked)
            except Interrupted:
                self.session, self.tokens_in, self.hearing.started = before, counted, started
                raise
            self._absorb(ids[start : start + step])

    def _absorb(self, ids: list[int]) -> None:
        if not ids:
            return
        began = time.perf_counter()
        self.session.absorb(torch.tensor([ids]))
        self.tokens_in += len(ids)
        self.busy += time.perf_counter() - began

    def _write(self, asked: Callable[[], int]) -> Iterator[str]:
        if not self.keys.max_new_tokens:
            return
        tokens, began = self.session.read[0].tokens, time.perf_counter()
        for text in spoken(self.session, self.how):
            self.tokens_out = self.session.read[0].tokens - tokens
            self.busy += time.perf_counter() - began
            yield text
            _check(asked)
            began = time.perf_counter()
        self.tokens_out = self.session.read[0].tokens - tokens
        self.busy += time.perf_counter() - began

    def _save(self) -> None:
        """Raises MemtokError where the file cannot be written: it is the one of before then."""
        if self.call.out in (None, "-"):
            return
        try:
            self._save_to(str(self.call.out))
        except OSError as error:
            raise self._unsaved(error) from error
        self.saved, self.written = self.session.read[0].segments, self.decoder.taken

    def _save_to(self, target: str | io.BytesIO) -> None:
        tail = "".join(self.waiting) + self.pieces.rest
        session_file.save(self.session, target, tail, self.before + self.decoder.taken)

    def _unsaved(self, error: OSError) -> MemtokError:
        """Why the session is not in its file, and how to go on with what is there."""
        told, out = from_os_error(error), self.call.out
        told.message = f"{out} is not written: {error.strerror or error}"
        if isinstance(told, UsageError):
            return told
        if self.written is None:
            same = " on the same input" if self.call.prompt is None else ""
            told.hint = f"free some space, then run the same command again{same}: no file was changed"
        elif self.call.prompt is None:
            told.hint = f"free some space; {out} is the one written last: {self._rest(self.written)}"
        else:
            told.hint = f"free some space; the prompt is in {out} already: --memory {out} goes on"
        return told

    def _explain(self, stop: Interrupted) -> None:
        """What was saved, and how to go on."""
        if self.call.out in (None, "-"):
            return
        stop.message += f", {self.call.out} is written"
        if self.call.prompt is None:
            stop.hint = self._rest(self.decoder.taken)

    def _rest(self, taken: int) -> str:
        """How to read what is behind `taken` bytes of the input."""
        return (
            f"{taken} bytes of the input are in it: tail -c +{taken + 1} INPUT "
            f"| memtok generate - --memory {self.call.out} goes on"
        )


def _check(asked: Callable[[], int]) -> None:
    """Raises Interrupted, Terminated where a signal asks for a stop."""
    if number := asked():
        raise Terminated("terminated") if number == signal.SIGTERM else Interrupted("interrupted")


def _peak(device: torch.device) -> float:
    """MiB that this process had at most; on a GPU, of its memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resident.most() / 2**20
