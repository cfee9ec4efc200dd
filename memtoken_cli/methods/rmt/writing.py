"""A session writes: new ids one after the other, each read into the session before it is given out.

Processors and criteria are those that stock `generate` prepares; beams are stock's search. The text is
written in blocks of at most `history` ids, so that nothing grows with its length.

Shape suffixes: B rows, T ids that processors see, K new ids, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
)

from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.hf import SessionCache, SessionModel
from memtoken_cli.methods.rmt.sampling import Sampling
from memtoken_cli.methods.rmt.session import Session
from memtoken_cli.methods.rmt.wording import Speaking

ENDED = -1  # stands where a row has ended before the others


def write(session: Session, how: Sampling) -> Iterator[Tensor]:
    """int64 [B,K] new ids of every row as they are made (K = 1; beams: a block), ENDED behind a row's end.

    Whenever something is given out the session has read it, and can be saved. Stopping early is safe.
    Raises UsageError where a row has read nothing or a value is none of its key's."""
    if how.seed is not None:
        session.draws.seed(how.seed)
    if how.max_new_tokens == 0:
        return iter(())
    session.history = max(session.history, how.history)
    return _Writer(session, how).run()


def spoken(session: Session, how: Sampling) -> Iterator[str]:
    """`write` of one row as text, in whole characters. Raises UsageError where there are more."""
    if len(session) != 1:
        raise UsageError(f"text of one row, not of {len(session)}", hint="select([row]), or write for ids")
    return _text(write(session, how), Speaking(session.backbone.tokenizer))


def _text(made: Iterator[Tensor], speaking: Speaking) -> Iterator[str]:
    for ids_1K in made:
        if text := speaking.add(ids_1K[0].tolist()):
            yield text
    if text := speaking.end():
        yield text


@dataclass
class _Strand:
    """Rows whose seen histories are equally long, in one block."""

    rows: list[int]
    ids_BT: Tensor
    processors: LogitsProcessorList

    def keep(self, ended_B: Tensor) -> None:
        left = (~ended_B).nonzero()[:, 0]
        self.rows, self.ids_BT = [self.rows[i] for i in left.tolist()], self.ids_BT[left]


class _Writer:
    def __init__(self, session: Session, how: Sampling) -> None:
        self.session, self.how = session, how
        self.model = SessionModel(session.backbone, how.history)
        self.ends = _ends(session, how)
        self.start = time.monotonic()
        self.living = list(range(len(session)))  # rows that have not ended

    def run(self) -> Iterator[Tensor]:
        done = 0
        while self.living and done < self.how.max_new_tokens and not self._late():
            size = min(self.how.history, self.how.max_new_tokens - done)
            strands = [self._strand(rows, done, size) for rows in self._alike(self.living)]
            made = self._searched if self.how.beams > 1 else self._drawn
            for new_BK in made(strands, done, size):
                done += new_BK.shape[1]
                yield new_BK

    def _late(self) -> bool:
        limit = self.how.said.get("max_time")
        return limit is not None and time.monotonic() - self.start > limit

    def _alike(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows by how many tokens are seen of them."""
        found: dict[int, list[int]] = {}
        for row in rows:
            found.setdefault(len(self._seen(row)), []).append(row)
        return list(found.values())

    def _seen(self, row: int) -> Tensor:
        """The newest ids of a row, as many as anything looks back at."""
        return self.session.read[row].newest_T[-(self.how.history if self.how.looks_back else 1) :]

    def _strand(self, rows: list[int], done: int, size: int) -> _Strand:
        ids_BT = torch.stack([self._seen(row) for row in rows]).to(self.session.backbone.device)
        if not ids_BT.shape[1]:
            self.session.logits(rows)  # raises: nothing was read
        return _Strand(rows, ids_BT, self._prepared(ids_BT, self.how.block(done, size)))

    def _prepared(self, ids_BT: Tensor, config: GenerationConfig) -> LogitsProcessorList:
        """What stock `generate` would put on the logits."""
        try:
            found: LogitsProcessorList = self.model.generate(
                ids_BT,
                generation_config=config,
                cache=SessionCache(self.session, ids_BT.shape[1]),
                custom_generate=_processors,
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"generation: {str(error).splitlines()[0]}") from None
        return found

    @torch.no_grad()
    def _drawn(self, strands: list[_Strand], done: int, size: int) -> Iterator[Tensor]:
        """Greedily or by drawing: ids [B,1], at most `size` times."""
        for _ in range(size):
            new_B1 = torch.full((len(self.session), 1), ENDED)
            for strand in strands:
                scores_BV = strand.processors(strand.ids_BT, self.session.logits(strand.rows))
                next_B1 = self._pick(scores_BV)
                self.session.push(next_B1, strand.rows)
                new_B1[strand.rows] = next_B1.cpu()
                strand.ids_BT = torch.cat([strand.ids_BT, next_B1], 1)
                strand.keep(self.ends(strand.ids_BT, None))
            strands = [strand for strand in strands if strand.rows]
            self.living = sorted(row for strand in strands for row in strand.rows)
            yield new_B1
            if not strands or self._late():
                return

    def _pick(self, scores_BV: Tensor) -> Tensor:
        if not self.how.draws:
            return scores_BV.argmax(-1, keepdim=True)
        return torch.multinomial(scores_BV.softmax(-1), 1, generator=self.session.draws.generator)

    @torch.no_grad()
    def _searched(self, strands: list[_Strand], done: int, size: int) -> Iterator[Tensor]:
        """One block of stock's beam search: the best ids [B,K], K at most `size`."""
        new_BK = torch.full((len(self.session), size), ENDED)
        living, longest = [], 0
        for strand in strands:
            for row, ids_K, ended in self._best(strand, done, size):
                self.session.push(ids_K[None], [row])
                new_BK[row, : len(ids_K)] = ids_K.cpu()
                longest = max(longest, len(ids_K))
                living += [] if ended else [row]
        self.living = sorted(living)
        yield new_BK[:, :longest]

    def _best(self, strand: _Strand, done: int, size: int) -> Iterator[tuple[int, Tensor, bool]]:
        """(row, its new ids, whether it ended). A session of one row a beam goes along and is dropped."""
        limit = self.how.said.get("max_time")
        left = None if limit is None else max(0.001, limit - (time.monotonic() - self.start))
        beams = self.session.select([row for row in strand.rows for _ in range(self.how.beams)])
        with self.session.draws.lent():
            out_BT = self.model.generate(
                strand.ids_BT,
                generation_config=self.how.block(done, size, left),
                cache=SessionCache(beams, strand.ids_BT.shape[1]),
                stopping_criteria=StoppingCriteriaList(
                    c for c in self.ends if isinstance(c, StopStringCriteria)
                ),
            )
        old = strand.ids_BT.shape[1]
        for row, ids_T in zip(strand.rows, out_BT, strict=True):
            stop = next(
                (t for t in range(old + 1, len(ids_T) + 1) if self.ends(ids_T[None, :t], None).item()), None
            )
            yield row, ids_T[old:stop], stop is not None


def _processors(
    model: SessionModel, input_ids: Tensor, logits_processor: LogitsProcessorList, **_: object
) -> LogitsProcessorList:
    """As `generate` calls a way of decoding; this one decodes nothing."""
    return logits_processor


def _ends(session: Session, how: Sampling) -> StoppingCriteriaList:
    """Called with ids [B,T]: bool [B], whether a row ends with its last id."""
    found: list[Any] = []
    if (ends := how.said.get("eos_token_id")) is not None:
        found.append(EosTokenCriteria(eos_token_id=ends))
    if (stops := how.said.get("stop_strings")) is not None:
        try:
            found.append(StopStringCriteria(session.backbone.tokenizer, stops))
        except ValueError as error:
            raise UsageError(f"stop_strings: {str(error).splitlines()[0]}") from None
    return StoppingCriteriaList(found)
