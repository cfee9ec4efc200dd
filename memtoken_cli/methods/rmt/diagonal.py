"""Diagonal batching (arXiv 2506.05229): the recurrence of `prmt` and `armt` with many layers at once.

Cell (l, t), layer l of segment t, needs (l - 1, t) and (l, t - 1). Cells with equal l + t need nothing of
each other and run as one group, a contiguous slice of layers: L + N - 1 steps instead of L * N. Results and
gradients are those of `policy.segment` up to rounding. It pays where the cost of a call outweighs its
arithmetic; when it is worth while is a fixed rule and never a timing, so that a seed gives the same bytes
anywhere. How layers run as a group is in `diagonal_group.py`, what a policy does around them in
`diagonal_cells.py`.

Shape suffixes: B rows, N segments, S text tokens of a segment, F = N * B segments of all rows, T all columns
of a segment, L layers, G layers of a group, M memory slots, E model width, V vocabulary, n scored tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.associative import Associative
from memtoken_cli.methods.rmt.diagonal_cells import At, cells_of
from memtoken_cli.methods.rmt.diagonal_group import Call, Group, Unlike, instead, shared
from memtoken_cli.methods.rmt.layered import Layerwise
from memtoken_cli.methods.rmt.places import laid
from memtoken_cli.methods.rmt.policy import Policy, State

BLOCK = 8  # segments for each layer that `read` takes at once: eight ninths of its steps run full groups
FEW = 4  # segments from which on it gains at any depth
TRIED = 8  # segments that are compared with `policy.segment` before anything else


def rule(device: torch.device, rows: int, columns: int, width: int) -> bool:
    """Whether grouping pays. columns: S + 2m."""
    if device.type == "cuda":
        return rows * columns <= 4096
    return rows * columns <= 128 and width <= 128


class Diagonal:
    """A policy's whole segments, many layers at once; one alone goes through `policy.segment`.

    `reason` says why its segments have to run one after the other, None where they need not.
    """

    def __init__(self, policy: Layerwise | Associative) -> None:
        self.policy, self.network = policy, policy.network
        self._tried, self._unlike = False, ""
        self._exact: dict[int, bool] = {}  # by rows

    @classmethod
    def of(cls, policy: Policy) -> Diagonal | None:
        """None for policies that cannot run this way."""
        return cls(policy) if isinstance(policy, Layerwise | Associative) else None

    @property
    def reason(self) -> str | None:
        if self.network.model.training:
            return "dropout is drawn segment by segment"
        if self.policy.training and self.policy.config.state_noise:
            return "state_noise is drawn segment by segment"
        if not self._tried:
            self._tried = True
            try:
                self._build()
            except (Unlike, RuntimeError, TypeError, AttributeError) as error:
                self._unlike = str(error)
        return self._unlike or None

    def wanted(self, rows: int, segments: int) -> bool:
        """Whether so many full segments of so many rows are to run this way."""
        mode, dims = self.policy.config.diagonal, self.network.backbone.dims
        if mode == "off" or segments < 2 or dims.layers < 2:
            return False
        if mode == "auto":
            columns = self.policy.size + 2 * self.policy.slots
            if segments < FEW or not rule(self.network.backbone.device, rows, columns, dims.width):
                return False
        return self.reason is None

    def arriving(self, rows: int) -> bool:
        """`wanted` for a text of which nobody knows how much comes at once. `auto` asks for the bits of
        `policy.segment` then, so that they depend on the text alone."""
        return self.wanted(rows, FEW) and (self.policy.config.diagonal == "on" or self._equal(rows))

    def _equal(self, rows: int) -> bool:
        """Whether so many rows come out with those bits; tried once."""
        if rows not in self._exact:
            pairs = self._compared(rows, len(self.network.layers))
            self._exact[rows] = all(torch.equal(a, b) for a, b in pairs)
        return self._exact[rows]

    def logits(self, ids_BNS: Tensor, state: State, wanted_BNS: Tensor | None) -> tuple[Tensor | None, State]:
        """(float32 logits [n,V] of the text tokens where the bool wanted_BNS says so, in its order; the state
        after the last segment). Every segment is full. Gradients reach whatever requires them.

        Raises UsageError with the `reason` where there is one."""
        B, N, S = ids_BNS.shape
        if N == 1:
            return self._alone(ids_BNS[:, 0], state, None if wanted_BNS is None else wanted_BNS[:, 0])
        if self.reason is not None:
            raise UsageError(f"no diagonal batching: {self.reason}", hint="rmt.diagonal=off")
        places, backbone = self.policy.places, self.network.backbone
        position_1T, mask = laid(places, torch.tensor([S], device=ids_BNS.device), S, backbone.dtype)
        T = position_1T.shape[1]
        ended: list[State] = []
        count = 0

        def layers(x_FTE: Tensor, calls: list[Call]) -> Tensor:
            nonlocal count
            h_NBTE, end = self._steps(
                x_FTE.unflatten(0, (N, B)), shared(calls), state, wanted_BNS is not None
            )
            ended.append(end)
            if h_NBTE is None or wanted_BNS is None:
                return x_FTE[:1]
            # what follows the layers takes every column by itself: only the wanted ones go there, T in a row
            h_nE = h_NBTE[:, :, self.cells.text].transpose(0, 1)[wanted_BNS]
            count = len(h_nE)
            fill = h_nE.new_zeros(-count % T if count else T, h_nE.shape[1])
            return torch.cat([h_nE, fill]).view(-1, T, h_nE.shape[1])

        x_FSE = self.network.embed(ids_BNS.transpose(0, 1).flatten(0, 1))
        every = None if wanted_BNS is None else torch.arange(T, device=ids_BNS.device)
        with instead(self.network.layers, layers):
            _, logits = self.network.run(self.cells.vectors(x_FSE), position_1T, mask, every)
        return None if logits is None else logits.flatten(0, 1)[:count], ended[0]

    def _alone(self, ids_BS: Tensor, state: State, wanted_BS: Tensor | None) -> tuple[Tensor | None, State]:
        every_K = None if wanted_BS is None else wanted_BS.any(0).nonzero()[:, 0]
        full_B = torch.full((len(ids_BS),), ids_BS.shape[1], device=ids_BS.device)
        logits_BKV, state = self.policy.segment(ids_BS, full_B, state, every_K)
        if logits_BKV is None or wanted_BS is None:
            return None, state
        return logits_BKV[wanted_BS[:, every_K]], state

    @torch.no_grad()
    def read(self, ids_BNS: Tensor, state: State) -> State:
        """The state after N full segments, in constant memory; whether `wanted` or not is the caller's."""
        for ids_BnS in ids_BNS.split(BLOCK * len(self.network.layers), 1):
            alone = self._exact.get(len(state[0]), False) and ids_BnS.shape[1] < FEW
            for part in ids_BnS.split(1 if alone else ids_BnS.shape[1], 1):
                _, state = self.logits(part, state, None)
        return state

    def _steps(self, x_NBTE: Tensor, call: Call, state: State, keep: bool) -> tuple[Tensor | None, State]:
        """(the top layer's outputs [N,B,T,E] where they are kept, the state after segment N)."""
        N, L, cells = len(x_NBTE), len(self.network.layers), self.cells
        first = cells.begin(state)
        own, last, top = tuple(x[:0] for x in first), [], []
        h = x_NBTE[:0]  # what the layers below the running ones have made
        at = At(slice(0), {}, {})
        for i in range(L + N - 1):
            layers = slice(max(0, i - N + 1), min(L, i + 1))
            if layers != at.layers:
                at = self._at(layers)
            if i < N:
                h = torch.cat([x_NBTE[i : i + 1], h])
            else:
                last.append(tuple(x[:1] for x in own))
                own = tuple(x[1:] for x in own)
            if i < L:
                own = tuple(torch.cat([x, new[i : i + 1]]) for x, new in zip(own, first, strict=True))
            h = self.group.run(at.weights, layers, cells.enter(at, h, own, i < L), call)
            own = cells.leave(at, h, own, i < L)
            if layers.stop == L:
                if keep:
                    top.append(h[-1])
                h = h[:-1]
        self.group.release()
        last.append(own)
        end = cells.end(tuple(torch.cat(parts) for parts in zip(*last, strict=True)))
        return torch.stack(top) if keep else None, end

    def _at(self, layers: slice) -> At:
        own = self.cells.stacked.of(layers) if self.cells.stacked else {}
        return At(layers, self.group.stacked.of(layers), own)

    def _build(self) -> None:
        """Raises Unlike where a few segments come out otherwise than one after the other by more than
        rounding."""
        self.cells = cells_of(self.policy)
        self.group = Group(self.network.layers, self.network.model.config)
        close = torch.finfo(self.network.backbone.dtype).eps ** 0.5
        for a, b in self._compared(1, min(len(self.network.layers), TRIED)):
            if not (a.float() - b.float()).abs().max() <= close * b.float().abs().max().clamp(min=1e-6):
                raise Unlike("the layers of this model come out otherwise as a group")

    @torch.no_grad()
    def _compared(self, rows: int, segments: int) -> list[tuple[Tensor, Tensor]]:
        """Logits and the last state of so much text, many layers at once and one segment after the other; as
        many segments as layers have groups of every size."""
        policy, backbone = self.policy, self.network.backbone
        training, policy.training = policy.training, False
        try:
            B, N, S = rows, segments, policy.size
            ids_BNS = (torch.arange(B * N * S, device=backbone.device) % backbone.dims.vocab).view(B, N, S)
            every_BNS = torch.ones_like(ids_BNS, dtype=torch.bool)
            found_nV, ended = self.logits(ids_BNS, policy.start(B), every_BNS)
            state, expected = policy.start(B), []
            for t in range(N):
                logits_nV, state = self._alone(ids_BNS[:, t], state, every_BNS[:, t])
                expected.append(cast(Tensor, logits_nV).view(B, S, -1))
        finally:
            policy.training = training
        expected_nV = torch.stack(expected, 1).flatten(0, 2)
        return [(cast(Tensor, found_nV), expected_nV), *zip(ended, state, strict=True)]
