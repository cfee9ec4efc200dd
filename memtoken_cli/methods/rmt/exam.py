"""How many answers of a task are right: of a model that makes them itself, or is told each as it goes.

A row is read up to its first scored position in whole segments; then the model writes, greedily, and what it
writes is read at the next boundary like any text. Segments are cut where training cuts them, as the length of
the whole row is known.

Shape suffixes: B rows, T tokens of a row, U columns fed at once, K wanted columns, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.data.streams import IGNORE, Sequences, Stream
from memtoken_cli.engine import seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.controls import Control, boundary
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.diagonal import Diagonal
from memtoken_cli.methods.rmt.policy import Policy, State

TEST = "test"  # the stream of the seed that test sets are drawn from


@dataclass(frozen=True)
class Marks:
    """share_B: float64, the share of a row's scored tokens that is right. whole_B: whether its answer is, all
    of it. Rows that were not asked are left out."""

    share_B: Tensor
    whole_B: Tensor


def examples(stream: Stream, n: int, rows: int, seed: int) -> Sequences:
    """The rows of size n that every model is tested on: the seed's, whatever was trained."""
    return stream.draw(n, rows, seeds.generator(seed, TEST, n))


@dataclass(frozen=True)
class Exam:
    """A model that answers. vocabulary: rows of its logits. batch: rows at once; more where one would be left
    by itself. diagonal: a faster way through whole segments, where the policy has one."""

    policy: Policy
    config: Config
    device: torch.device
    vocabulary: int
    batch: int = 128
    diagonal: Diagonal | None = None

    @classmethod
    def of(cls, backbone: CausalLM, policy: Policy, config: Config, batch: int) -> Exam:
        return cls(policy, config, backbone.device, backbone.dims.vocab, batch, Diagonal.of(policy))

    def marks(
        self, rows: Sequences, final: int | None = None, control: Control = "own", teacher: bool = False
    ) -> Marks:
        """Answer every row.

        Args:
            final: the last scored tokens that make an answer; None: all of a row's.
            teacher: each answer token is read as it should be, whatever the model said.

        With `shuffled`, rows whose shape (length and place of the answer) no other has are left out.
        """
        made_BT, asked_B = self.answers(rows, control, teacher)
        return marked(made_BT[asked_B], rows.target_BT[asked_B], final)

    @torch.no_grad()
    def answers(
        self, rows: Sequences, control: Control = "own", teacher: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(int64 [B,T]: the token that the model puts behind each position from answer_B to the last scored
        one, IGNORE elsewhere; bool [B]: whether the row was asked)."""
        made_BT = torch.full_like(rows.target_BT, IGNORE)
        asked_B = torch.ones(len(rows), dtype=torch.bool)
        for index in _alike(rows):
            if control == "shuffled" and len(index) == 1:
                asked_B[index] = False
                continue
            for some in parts(index, self.batch):
                told = self._taught if teacher else self._written
                made_BT[some] = told(rows[some], control)
        return made_BT, asked_B

    def together(self, rows: int, whole: int, control: Control) -> Diagonal | None:
        """What reads that many whole segments many layers at once, where that is wanted; None: they are read
        one after the other, as a control between them asks for too."""
        way = self.diagonal if control == "own" else None
        return way if way is not None and way.wanted(rows, whole) else None

    def _spans(self, rows: Sequences) -> list[tuple[int, int]]:
        """(start, stop) of the segments of rows of one length."""
        cuts = cut(rows.length_B[:1], self.config.segment, self.config.align)
        starts, counts = cuts.start_NB[:, 0].tolist(), cuts.count_NB[:, 0].tolist()
        return [(start, start + count) for start, count in zip(starts, counts, strict=True) if count]

    def _begun(self, rows: Sequences, control: Control) -> tuple[State, list[tuple[int, int]]]:
        """(a state, the spans that are to be read from it): M_1 and all, or what the whole segments in front
        of the answer leave."""
        spans, state, S = self._spans(rows), self.policy.start(len(rows)), self.config.segment
        until = int(rows.answer_B[0])
        whole = sum(start == t * S and stop == start + S <= until for t, (start, stop) in enumerate(spans))
        if (way := self.together(len(rows), whole, control)) is None:
            return state, spans
        ids_BT = rows.ids_BT[:, : whole * S].to(self.device)
        return way.read(ids_BT.unflatten(1, (whole, S)), state), spans[whole:]

    def _written(self, rows: Sequences, control: Control) -> Tensor:
        """`answers` of rows of one shape; they are not told."""
        policy, between, B = self.policy, boundary(control, self.policy), len(rows)
        made_BT = torch.full_like(rows.target_BT, IGNORE)
        ids_BT = rows.ids_BT.to(self.device)
        known, last = int(rows.answer_B[0]) + 1, _last(rows)

        def say(logits_BV: Tensor, position: int) -> None:
            next_B = logits_BV.argmax(-1)
            made_BT[:, position] = next_B.to(made_BT.device)
            if position + 1 < ids_BT.shape[1]:
                ids_BT[:, position + 1] = next_B

        ids_BT[:, known:] = IGNORE  # no id, so that nothing can be read before it is written
        state, spans = self._begun(rows, control)
        for start, stop in spans:
            if start:
                state = between(state, B)
            if stop <= known:
                wanted_K = torch.tensor([stop - start - 1], device=self.device) if stop == known else None
                count_B = torch.full((B,), stop - start, device=self.device)
                logits_BKV, state = policy.segment(ids_BT[:, start:stop], count_B, state, wanted_K)
                if logits_BKV is not None:
                    say(logits_BKV[:, -1], stop - 1)
                if stop > last:
                    break
                continue
            at = policy.open(state, B)
            read = start
            for position in range(max(start, known - 1), min(stop, last + 1)):
                logits_BUV = policy.feed(at, ids_BT[:, read : position + 1])
                assert logits_BUV is not None
                say(logits_BUV[:, -1], position)
                read = position + 1
            if stop > last:
                break
            state = policy.close(at)
        return made_BT

    def _taught(self, rows: Sequences, control: Control) -> Tensor:
        """`answers` of rows of one shape, where what stands before each position is the row itself."""
        between, B = boundary(control, self.policy), len(rows)
        made_BT = torch.full_like(rows.target_BT, IGNORE)
        ids_BT = rows.ids_BT.to(self.device)
        state, spans = self._begun(rows, control)
        last = _last(rows)
        scored_T = (rows.target_BT != IGNORE).any(0)
        for start, stop in spans:
            if start > last:
                break
            if start:
                state = between(state, B)
            wanted_K = scored_T[start:stop].nonzero()[:, 0]
            asked_K = wanted_K.to(self.device) if len(wanted_K) else None
            count_B = torch.full((B,), stop - start, device=self.device)
            logits_BKV, state = self.policy.segment(ids_BT[:, start:stop], count_B, state, asked_K)
            if logits_BKV is not None:
                made_BT[:, start + wanted_K] = logits_BKV.argmax(-1).to(made_BT.device)
        return made_BT


def marked(made_BT: Tensor, target_BT: Tensor, final: int | None) -> Marks:
    """What was made, held against the targets; both have IGNORE where nothing is scored."""
    scored_BT = target_BT != IGNORE
    right_BT = (made_BT == target_BT) & scored_BT
    behind_BT = scored_BT.flip(1).cumsum(1).flip(1)  # scored tokens from here on
    answer_BT = scored_BT if final is None else scored_BT & (behind_BT <= final)
    share_B = right_BT.sum(1).double() / scored_BT.sum(1).clamp(min=1)
    return Marks(share_B, (right_BT | ~answer_BT).all(1))


def _alike(rows: Sequences) -> list[Tensor]:
    """Indices of the rows that have one length and their answer at one place, by shape."""
    if not len(rows):
        return []
    _, group_B = torch.stack([rows.length_B, rows.answer_B], 1).unique(dim=0, return_inverse=True)
    return [(group_B == g).nonzero()[:, 0] for g in range(int(group_B.max()) + 1)]


def parts(index_B: Tensor, batch: int) -> tuple[Tensor, ...]:
    """`batch` at once, about; none by itself where there is another one."""
    return index_B.tensor_split(min(-(-len(index_B) // batch), max(1, len(index_B) // 2)))


def _last(rows: Sequences) -> int:
    """The last position that is scored in any row."""
    return int((rows.target_BT != IGNORE).any(0).nonzero().max())
