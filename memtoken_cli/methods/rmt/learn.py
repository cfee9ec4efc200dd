"""What `engine/fit.py` trains: a policy and its backbone on streams of a task, cut into segments.

The loss is cross-entropy summed over scored tokens; a step divides by their number in the whole batch, so
that short segments do not weigh more than long ones.

Shape suffixes: B rows, T tokens, W text columns of a segment, K wanted columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from memtoken_cli.data.streams import IGNORE, PAD, Sequences, Stream
from memtoken_cli.engine import stream
from memtoken_cli.engine.curriculum import Curriculum
from memtoken_cli.engine.stream import Bptt
from memtoken_cli.engine.task import At, Enough, Loss, Phase
from memtoken_cli.methods.rmt.config import Config, TrainConfig
from memtoken_cli.methods.rmt.cut import Cut, cut
from memtoken_cli.methods.rmt.diagonal import Diagonal
from memtoken_cli.methods.rmt.policy import Policy, State


@dataclass
class Learning:
    """The `Task` of one policy. `parameters`: what is trained, by names of the artifact."""

    policy: Policy
    stream: Stream
    config: Config
    train: TrainConfig
    curriculum: Curriculum
    parameters: Mapping[str, Parameter]
    device: torch.device
    drawn: int = 0
    recent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bptt = Bptt.parse(self.config.bptt)
        self.diagonal = Diagonal.of(self.policy)

    def phases(self) -> Sequence[Phase]:
        t = self.train
        warmup = round(t.warmup * t.steps)
        return [
            Phase(
                "train", t.steps, t.lr, self.parameters, warmup, t.decay, t.weight_decay, t.clip or None,
                t.betas, t.decay_to,
            )
        ]  # fmt: skip

    def batch(self, at: At, generator: torch.Generator) -> Sequences:
        self.drawn = self.curriculum.draw(generator)
        return self.stream.draw(self.drawn, self.train.batch, generator)

    def loss(self, part: Sequences) -> Loss:
        told = scores(self.policy, part, self.config, self.bptt, self.device, self.diagonal)
        return Loss(told.total, told.count, {"accuracy": (told.right, told.count)})

    def observe(self, at: At, means: Mapping[str, float]) -> Mapping[str, float]:
        """The curriculum's step; raises Enough at the accuracy that was asked for."""
        full = self.curriculum.done and self.drawn == self.curriculum.n
        metric = means["loss"] if self.curriculum.loss else means["accuracy"]
        self.curriculum.observe(at.step, metric, self.drawn)
        if full:
            self.recent = [*self.recent, means["accuracy"]][-self.curriculum.plan.check_every :]
        enough, every = self.train.stop_at, self.curriculum.plan.check_every
        if enough is not None and len(self.recent) == every and sum(self.recent) / every >= enough:
            raise Enough
        return {"size": float(self.curriculum.n)}

    def pace(self, at: At) -> float:
        return self.curriculum.pace(at.step)

    def state(self) -> Mapping[str, Any]:
        return {"curriculum": self.curriculum.state(), "recent": self.recent}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.curriculum.load_state(state["curriculum"])
        self.recent = list(state["recent"])


@dataclass
class Scores:
    """Of a batch: the summed loss (with a graph, unless replayed), scored tokens, right ones; by segment."""

    total: Tensor
    count: float
    right: float


def scores(
    policy: Policy,
    part: Sequences,
    config: Config,
    bptt: Bptt,
    device: torch.device,
    diagonal: Diagonal | None = None,
) -> Scores:
    """Read every row segment by segment from M_1, teacher-forced. diagonal: runs the segments that are full
    in every row many layers at once, where it is wanted."""
    part = Sequences(*(x.to(device) for x in (part.ids_BT, part.length_B, part.target_BT, part.answer_B)))
    cuts = cut(part.length_B, config.segment, config.align)
    target_BT = targets(part, cuts, config.loss)
    right = [0.0] * len(cuts)

    def segment(t: int, state: State) -> tuple[State, Tensor | None]:
        target_BW = cuts.take(target_BT, t, IGNORE)
        wanted_K = (target_BW != IGNORE).any(0).nonzero()[:, 0]
        ids_BW = cuts.take(part.ids_BT, t, PAD)
        if not len(wanted_K):
            return policy.segment(ids_BW, cuts.count_NB[t], state, None)[1], None
        logits_BKV, state = policy.segment(ids_BW, cuts.count_NB[t], state, wanted_K)
        assert logits_BKV is not None
        loss, right[t] = _compared(logits_BKV.flatten(0, 1), target_BW[:, wanted_K].flatten())
        return state, loss

    state = policy.start(len(part))
    whole, begun = _full(cuts, config.segment), None
    flows = bptt.kind == "full" or not torch.is_grad_enabled()
    if diagonal is not None and flows and diagonal.wanted(len(part), whole):
        target_BNS = target_BT[:, : whole * config.segment].unflatten(1, (whole, -1))
        ids_BNS = part.ids_BT[:, : whole * config.segment].unflatten(1, (whole, -1))
        scored_BNS = target_BNS != IGNORE
        logits_nV, state = diagonal.logits(ids_BNS, state, scored_BNS if scored_BNS.any() else None)
        if logits_nV is not None:
            begun, right[0] = _compared(logits_nV, target_BNS[scored_BNS])
    else:
        whole = 0

    def onward(t: int, state: State) -> tuple[State, None]:
        ids_BW = cuts.take(part.ids_BT, whole + t, PAD)
        return policy.segment(ids_BW, cuts.count_NB[whole + t], state, None)[1], None

    found = stream.run(lambda t, state: segment(whole + t, state), state, len(cuts) - whole, bptt, onward)
    total = found.total if begun is None else begun + found.total
    return Scores(total, float((target_BT != IGNORE).sum()), sum(right))


def _compared(logits_nV: Tensor, target_n: Tensor) -> tuple[Tensor, float]:
    """(summed loss, right ones)"""
    right = float((logits_nV.argmax(-1) == target_n).sum())
    return cross_entropy(logits_nV, target_n, ignore_index=IGNORE, reduction="sum"), right


def _full(cuts: Cut, size: int) -> int:
    """Segments from the first on that are full in every row."""
    return int((cuts.count_NB == size).all(1).long().cumprod(0).sum())


def targets(part: Sequences, cuts: Cut, loss: str) -> Tensor:
    """target_BT of what the recipe scores: the task's labels, every next token, or those of the last K
    segments that a row has."""
    if loss == "labels":
        return part.target_BT
    T = part.ids_BT.shape[1]
    position_T = torch.arange(T, device=part.ids_BT.device)
    following_BT = torch.cat([part.ids_BT[:, 1:], torch.full_like(part.ids_BT[:, :1], IGNORE)], 1)
    following_BT = following_BT.masked_fill(position_T >= part.length_B[:, None] - 1, IGNORE)
    target_BT = torch.where(part.target_BT == IGNORE, following_BT, part.target_BT)
    if loss == "all":
        return target_BT
    last = int(loss.partition(":")[2])
    has_NB = cuts.count_NB > 0
    behind_NB = has_NB.flip(0).cumsum(0).flip(0)  # segments from this one to the row's last
    starts_NB = torch.where(has_NB & (behind_NB == last), cuts.start_NB, 0)
    return target_BT.masked_fill(position_T < starts_NB.amax(0)[:, None], IGNORE)
