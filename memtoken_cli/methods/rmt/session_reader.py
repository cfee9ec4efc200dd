"""How the rows of a group go through a policy: whole segments in one forward, open ones piece by piece.

What is not needed yet is not computed: the ids of an open segment wait until logits are asked for, or until
it is full.

Shape suffixes: B rows of a group, N segments, S tokens of a segment, T new tokens, U tokens fed at once, K
wanted columns, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.memory import Layers
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt.blocks import Blocks
from memtoken_cli.methods.rmt.diagonal import Diagonal
from memtoken_cli.methods.rmt.head import heard, logits_of
from memtoken_cli.methods.rmt.layered import Layerwise
from memtoken_cli.methods.rmt.network import wide
from memtoken_cli.methods.rmt.policy import Open, Policy
from memtoken_cli.methods.rmt.session_groups import Group

Closed = Callable[[Group, Tensor], None]
"""Called with the group and the ids [B,S] of a segment that has just been read into its state."""


@dataclass
class Reader:
    """What groups run through. diagonal: a faster way through whole segments, where the policy has one."""

    backbone: CausalLM
    policy: Policy
    diagonal: Diagonal | None = None

    @classmethod
    def of(cls, backbone: CausalLM, policy: Policy) -> Reader:
        return cls(backbone, policy, Diagonal.of(policy))

    def check(self, ids_BT: Tensor, rows: int) -> None:
        """Raises UsageError, DataError unless there is a line of the model's ids for each row."""
        if ids_BT.dim() != 2 or len(ids_BT) != rows:
            raise UsageError(f"ids of shape {tuple(ids_BT.shape)} are not one line for each of {rows} rows")
        last = self.backbone.dims.vocab - 1
        if ids_BT.numel() and not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) <= last:
            raise DataError(f"ids must be from 0 to {last}")

    def push(self, group: Group, ids_BT: Tensor, closed: Closed) -> None:
        """New tokens of every row: each segment that they complete is read into the state, the rest is
        pending. A segment that is open is fed and closed; those without a cache take one forward each."""
        S = self.policy.size
        if not ids_BT.shape[1]:
            return
        group.logits_BV = group.last_BE = None
        if group.at is not None:
            stop = S - group.count
            group.pending_BU = torch.cat([group.pending_BU, ids_BT[:, :stop]], 1)
            ids_BT = ids_BT[:, stop:]
            if group.count < S:
                return
            self._close(group, group.at, not ids_BT.shape[1], closed)
        ids_BT = torch.cat([group.pending_BU, ids_BT], 1)
        N = ids_BT.shape[1] // S
        # a view would keep the whole text alive
        group.pending_BU = ids_BT[:, N * S :].clone()
        if N:
            self._whole(group, ids_BT[:, : N * S].view(-1, N, S), not group.count, closed)

    def _close(self, group: Group, at: Open, wanted: bool, closed: Closed) -> None:
        """The boundary: the segment's memory becomes the state, and its cache is gone.

        wanted: nothing follows yet, so that its last logits name the next segment's first token."""
        self._compute(group, at, wanted)
        ids_BS, group.state = group.pending_BU, self.policy.close(at)
        group.at, group.pending_BU = None, ids_BS[:, :0].clone()
        closed(group, ids_BS)

    def _whole(self, group: Group, ids_BNS: Tensor, wanted: bool, closed: Closed) -> None:
        """Segments without a cache, one forward each or many at once; wanted: as above."""
        B, N, S = ids_BNS.shape
        if self.diagonal is not None and self.diagonal.arriving(B):
            if wanted < N:
                group.state = self.diagonal.read(ids_BNS[:, : N - wanted], group.state)
            if wanted:
                last_B1S = torch.zeros_like(ids_BNS[:, :1], dtype=torch.bool)
                last_B1S[..., -1] = True
                with heard(self.backbone) as found:
                    logits, group.state = self.diagonal.logits(ids_BNS[:, -1:], group.state, last_B1S)
                _note(group, logits, [x.flatten(0, 1)[:B] for x in found])
        else:
            count_B = torch.full((B,), S, device=ids_BNS.device)
            for t in range(N):
                last_1 = torch.tensor([S - 1], device=ids_BNS.device) if wanted and t == N - 1 else None
                with heard(self.backbone) as found:
                    logits, group.state = self.policy.segment(ids_BNS[:, t], count_B, group.state, last_1)
            if wanted:
                _note(group, logits, found)
        for ids_BS in ids_BNS.unbind(1):
            closed(group, ids_BS)

    def _compute(self, group: Group, at: Open, wanted: bool) -> None:
        """Feed what the cache does not hold yet; logits of the last token only."""
        rest_BU = group.pending_BU[:, at.count :]
        if wanted and rest_BU.shape[1] > 1:
            self.policy.feed(at, rest_BU[:, :-1], False)
            rest_BU = rest_BU[:, -1:]
        with heard(self.backbone) as found:
            logits = self.policy.feed(at, rest_BU, wanted)
        if wanted:
            _note(group, logits, found)

    def logits(self, group: Group) -> Tensor:
        """float32 [B,V] behind all that the rows have read. Raises UsageError where that is nothing."""
        if group.logits_BV is None and group.count:
            at = group.at or self.policy.open(group.state, len(group.rows))
            group.at = None  # should it fail, what is half done is done again
            self._compute(group, at, wanted=True)
            group.at = at
        elif group.logits_BV is None:
            if group.last_BE is None:
                text = "nothing has been read, so nothing can follow"
                raise UsageError(text, hint="give a prompt, or feed some text first")
            group.logits_BV = logits_of(self.backbone, group.last_BE)
        assert group.logits_BV is not None
        return group.logits_BV

    @torch.no_grad()
    def memory(self, group: Group) -> Layers:
        """The read block of a group's one row as keys and values. Raises UsageError for other policies."""
        if not isinstance(self.policy, Blocks | Layerwise) or not self.policy.places.before:
            raise UsageError("the memory of this policy is not keys and values in front of the text")
        places, cache = self.policy.places, self.policy.open(group.state, 1).cache
        kept = self.backbone.kept(cache, places.before)
        return Layers(kept.layers, int(places.of_text(1, 0, 1)))


def _note(group: Group, logits: Tensor | None, found: list[Tensor]) -> None:
    """Keep the last column: logits [B,K,V] or [B,V], and what the vocabulary head was given."""
    assert logits is not None
    # clones: a view would keep the columns before it alive
    group.logits_BV = (logits if logits.dim() == 2 else logits[:, -1]).clone()
    group.last_BE = wide(found[-1] if found[-1].dim() == 2 else found[-1][:, -1]).clone()
