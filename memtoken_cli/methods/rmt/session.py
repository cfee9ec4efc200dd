"""A session: rows that read and write text of any length through a memory policy, at constant memory.

What a row has read is its memory, the ids of its open segment and a few counters. A segment of S tokens goes
into the memory the moment its last token arrives, so 0 <= n < S always. Rows may be at different n: those of
equal n run together, and every row comes out as it would alone.

`feed` computes at once. `absorb` computes whole segments only, each in one forward, so that its results do
not depend on how the tokens arrived, to the bit.

Shape suffixes: B rows, T tokens, K new ids, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.memory import Layers
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.generate_config import HISTORY, NEW
from memtoken_cli.methods.rmt.model_file import Model
from memtoken_cli.methods.rmt.network import wide
from memtoken_cli.methods.rmt.policy import Policy, State, select, stack
from memtoken_cli.methods.rmt.session_groups import Group, apart, beside, forgotten, merged, picked, placed
from memtoken_cli.methods.rmt.session_reader import Reader
from memtoken_cli.methods.rmt.session_state import Draws, Read, Snapshot
from memtoken_cli.methods.rmt.wording import Hearing

if TYPE_CHECKING:
    from memtoken_cli.methods.rmt.sampling import Sampling


class Session:
    """Rows of text that go through one policy. `new` and `restored` make one; `history`: ids kept of each row
    for what looks back at them (repetition penalty, n-gram bans)."""

    def __init__(
        self,
        reader: Reader,
        groups: list[Group],
        read: list[Read],
        draws: Draws,
        history: int = HISTORY,
        model: Model | None = None,
    ) -> None:
        self.reader, self.groups, self.read = reader, groups, read
        self.draws, self.history, self.model = draws, history, model

    @classmethod
    def new(cls, model: Model, batch: int = 1, seed: int = 0) -> Session:
        """Rows that have read nothing, in front of a trained model. seed: of sampling."""
        made = cls.of(model.backbone, model.policy, batch, seed)
        made.model = model
        return made

    @classmethod
    @torch.no_grad()
    def of(cls, backbone: CausalLM, policy: Policy, rows: int = 1, seed: int = 0) -> Session:
        """`new` of the parts themselves, which needs no file to have been written."""
        state = tuple(x.detach().clone() for x in policy.start(rows))
        nothing = torch.zeros(rows, 0, dtype=torch.int64, device=backbone.device)
        groups = [Group(list(range(rows)), state, nothing)]
        return cls(Reader.of(backbone, policy), groups, [Read()] * rows, Draws(backbone.device, seed))

    @classmethod
    def restored(
        cls,
        backbone: CausalLM,
        policy: Policy,
        kept: Snapshot,
        history: int = HISTORY,
        model: Model | None = None,
    ) -> Session:
        """The session that a snapshot was taken of: it goes on as that one does, to the bit."""
        draws = Draws(backbone.device)
        draws.take(kept.generator)
        reader = Reader.of(backbone, policy)
        return cls(reader, placed(kept, backbone.device), list(kept.read), draws, history, model)

    @classmethod
    def open(cls, path: str, device: str | None = None) -> Session:
        """The session of a file, or a new one in front of a trained model's; text it holds uncut is read.
        How many bytes of a stream the command line has read into it stays known. Raises DataError."""
        from memtoken_cli.methods.rmt.session_file import opened

        found = opened(path, device=device)
        if found.tail:
            found.session.absorb(found.session.ids(found.tail))
        return found.session

    def save(self, path: str) -> None:
        """Write the session to a file. It goes on as what is opened there does."""
        from memtoken_cli.methods.rmt.session_file import save

        save(self, path)

    @property
    def backbone(self) -> CausalLM:
        return self.reader.backbone

    @property
    def policy(self) -> Policy:
        return self.reader.policy

    def __len__(self) -> int:
        return len(self.read)

    @property
    def n_B(self) -> Tensor:
        """int64 [B]: tokens of each row's open segment, 0 <= n < S."""
        return torch.tensor([len(ids) for ids in self.pending])

    @property
    def pending(self) -> tuple[tuple[int, ...], ...]:
        """Each row's ids of its open segment."""
        found = {
            row: ids for g in self.groups for row, ids in zip(g.rows, g.pending_BU.tolist(), strict=True)
        }
        return tuple(tuple(found[row]) for row in range(len(self)))

    @property
    def state(self) -> State:
        """M_t of every row before its open segment, rows first."""
        order = [row for group in self.groups for row in group.rows]
        whole = stack([group.state for group in self.groups])
        return select(whole, [order.index(row) for row in range(len(self))])

    @property
    def memory(self) -> Layers:
        """One row's memory as keys and values, for the backbone's `attached`. Raises UsageError where there
        are several rows, or a policy's memory is more than that."""
        if len(self) != 1:
            raise UsageError(f"the memory of one row, not of {len(self)}", hint="select([row])")
        return self.reader.memory(self.groups[0])

    @torch.no_grad()
    def feed(self, ids_BT: Tensor) -> Tensor:
        """Read ids_BT (int64) and give float32 logits [B,V] of the token behind each row's last.

        Raises DataError for ids that are not the model's, UsageError where nothing was ever read."""
        self.push(ids_BT)
        return self.logits()

    @torch.no_grad()
    def absorb(self, ids_BT: Tensor) -> None:
        """Read ids_BT; only whole segments are computed, a tail waits as ids."""
        for group in self.groups:
            group.forget()
        self.push(ids_BT)

    @torch.no_grad()
    def push(self, ids_BT: Tensor, rows: Sequence[int] | None = None) -> None:
        """Read ids_BT, one line for each of `rows` (all); what is not needed yet is not computed.

        Raises as `feed`; the session is then as it was."""
        rows = range(len(self)) if rows is None else rows
        self.reader.check(ids_BT, len(rows))
        ids_BT, line = ids_BT.to(self.backbone.device), {row: i for i, row in enumerate(rows)}
        groups, read = [replace(group) for group in self.groups], list(self.read)
        try:
            for group in self._apart(line):
                self.reader.push(group, ids_BT[[line[row] for row in group.rows]], self._closed)
            newest_BT = ids_BT[:, -self.history :].cpu()
            for row, i in line.items():
                self.read[row] = self.read[row].more(newest_BT[i], ids_BT.shape[1], self.history)
            self.groups = merged(self.groups)
        except BaseException:  # also Ctrl-C: what was read by half is not read
            self.groups, self.read = forgotten(groups), read
            raise

    @torch.no_grad()
    def logits(self, rows: Sequence[int] | None = None) -> Tensor:
        """float32 [B,V] of the next token of `rows` (all). Raises UsageError where a row has read nothing."""
        rows = list(range(len(self)) if rows is None else rows)
        groups = self._apart(rows)
        found_BV = torch.cat([self.reader.logits(g) for g in groups])
        order = [row for group in groups for row in group.rows]
        return found_BV if order == rows else found_BV[[order.index(row) for row in rows]]

    def _apart(self, rows: Collection[int]) -> list[Group]:
        """The groups of these rows, which hold no others."""
        mine, self.groups = apart(self.groups, rows)
        return mine

    def _closed(self, group: Group, ids_BS: Tensor) -> None:
        for row, ids_S in zip(group.rows, ids_BS.cpu().numpy(), strict=True):
            self.read[row] = self.read[row].closed(ids_S)

    def canonical(self) -> None:
        """Drop every open cache: it is computed again from the pending ids, as after loading."""
        self.groups = forgotten(self.groups)

    def snapshot(self) -> Snapshot:
        """All of it. This session becomes `canonical`, so that it and what is restored go on alike."""
        self.canonical()
        last_BE = wide(torch.zeros(len(self), self.backbone.dims.width, dtype=self.backbone.dtype))
        for group in self.groups:
            if group.last_BE is not None:
                last_BE[group.rows] = group.last_BE.cpu()
        state = tuple(x.cpu() for x in self.state)
        return Snapshot(state, self.pending, last_BE, tuple(self.read), self.draws.state())

    def select(self, rows: Sequence[int]) -> Session:
        """A session of its own of some rows, in any order, also several times; it samples as this would."""
        groups, read = picked(self.groups, rows), [self.read[row] for row in rows]
        return Session(self.reader, groups, read, self.draws.copy(), self.history, self.model)

    def fork(self) -> Session:
        """A session that goes on from here by itself."""
        return self.select(range(len(self)))

    @staticmethod
    def stack(sessions: Sequence[Session]) -> Session:
        """The rows of several sessions of one policy, one behind the other; the first's sampling goes on.

        Raises UsageError where the policies differ."""
        first = sessions[0]
        if any(s.policy is not first.policy for s in sessions):
            raise UsageError("sessions of different models cannot be stacked")
        groups, read = beside([s.groups for s in sessions]), [row for s in sessions for row in s.read]
        return Session(first.reader, groups, read, first.draws.copy(), first.history, first.model)

    def write(self, how: Sampling) -> Iterator[Tensor]:
        """New ids of every row as they are made: see `writing.write`."""
        from memtoken_cli.methods.rmt.writing import write

        return write(self, how)

    def ids(self, text: str) -> Tensor:
        """int64 [B,T] of a text as it stands; in front of it what opens a text, where nothing was read."""
        ids = Hearing(self.backbone.tokenizer, self.read[0].tokens > 0).ids(text)
        return torch.tensor([ids] * len(self), dtype=torch.int64).view(len(self), -1)

    def feed_text(self, text: str) -> Tensor:
        """`feed` of a text, the same for every row."""
        return self.feed(self.ids(text))

    def generate(self, max_new_tokens: int = NEW, **generation: Any) -> Iterator[str]:
        """The continuation of one row, text as it is made, in whole characters.

        generation: fields of transformers' GenerationConfig, with `history` and `seed`; greedy unless one
        of them draws. Raises UsageError for other keys, and for more than one row (`write` gives ids)."""
        from memtoken_cli.methods.rmt.sampling import sampling
        from memtoken_cli.methods.rmt.writing import spoken

        return spoken(self, sampling({"max_new_tokens": max_new_tokens, **generation}, self.backbone))
