"""What `engine/fit.py` trains for `bptt: window:K`: a text read in order, one segment a step.

Each row of the batch is a reader of its own share of the text. What it has read is its memory, and stays
from step to step; a step moves the weights by the loss of the newest segment and goes back through the K
before it. The curriculum has no say: there are no streams of a size.

Shape suffixes: B rows, T tokens of a segment, K wanted columns, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from memtoken_cli.data.stream_text import Ordered, Text
from memtoken_cli.data.streams import IGNORE
from memtoken_cli.data.task_config import CurriculumSection
from memtoken_cli.engine import seeds
from memtoken_cli.engine.curriculum import Curriculum
from memtoken_cli.engine.stream import Window
from memtoken_cli.engine.task import At, Loss, Phase
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import UNCHANGED
from memtoken_cli.methods.rmt.learn import Learning
from memtoken_cli.methods.rmt.policy import State


@dataclass(frozen=True)
class Windows:
    """The newest segments of some rows, oldest first; row_B: which rows of the batch they are."""

    parts: tuple[Ordered, ...]
    row_B: Tensor

    def __len__(self) -> int:
        return len(self.row_B)

    def __getitem__(self, rows: slice) -> Windows:
        parts = tuple(Ordered(part.sequences[rows], part.fresh_B[rows]) for part in self.parts)
        return Windows(parts, self.row_B[rows])


@dataclass
class Reading:
    """The `Task` of one policy on a text in order. What is trained, and how, is `base`'s.

    Where it stands in the text is the number of the step, and so is which readers restart there; the memories
    are in `state()`. Raises UsageError where the task is no text, where several processes train, and for a
    loss that is not every token's.
    """

    base: Learning
    seed: int = 0
    window: Window = field(init=False)
    _reader: Iterator[Ordered] = field(init=False)
    _read: int | None = None
    _newest: deque[Ordered] = field(init=False)

    def __post_init__(self) -> None:
        said = self.base.config
        if not isinstance(self.base.stream, Text):
            raise UsageError(
                f"bptt {said.bptt} reads a text in order",
                hint="task.name=text, or rmt.bptt=full, replay or last:K",
            )
        if td.is_initialized() and td.get_world_size() > 1:
            raise UsageError(f"bptt {said.bptt} trains in one process", hint="without torchrun")
        if said.loss.startswith("last"):
            raise UsageError(f"bptt {said.bptt} scores every token", hint="rmt.loss=all")
        self.text = self.base.stream
        self.window = Window(self.base.bptt.last)
        self._newest = deque(maxlen=self.window.back + 1)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self.base.parameters

    @property
    def curriculum(self) -> Curriculum:
        return self.base.curriculum

    def phases(self) -> Sequence[Phase]:
        return self.base.phases()

    def batch(self, at: At, generator: torch.Generator) -> Windows:
        rows = self.base.train.batch
        if self._read != at.index:
            self._read = max(0, at.index - self.window.back)
            self._reader = self.text.ordered(rows, start=self._read)
            self._newest.clear()
        while self._read <= at.index:
            self._newest.append(self._restarted(next(self._reader), self._read))
            self._read += 1
        return Windows(tuple(self._newest), torch.arange(rows))

    def _restarted(self, part: Ordered, step: int) -> Ordered:
        """Some readers begin anew with the segment of this step; the text goes on."""
        share = self.base.config.restart
        if not share:
            return part
        draw_B = torch.rand(len(part.fresh_B), generator=seeds.generator(self.seed, "restart", step))
        return Ordered(part.sequences, part.fresh_B | (draw_B < share))

    def loss(self, part: Windows) -> Loss:
        policy, device = self.base.policy, self.base.device
        anew = self.base.config.policy in UNCHANGED
        shown = part.parts[-1:] if anew else part.parts
        count, right = 0.0, 0.0

        def segment(i: int, state: State) -> tuple[State, Tensor | None]:
            nonlocal count, right
            said = shown[i].sequences
            ids_BT, length_B = said.ids_BT.to(device), said.length_B.to(device)
            if i + 1 < len(shown):
                return policy.segment(ids_BT, length_B, state, None)[1], None
            target_BK = said.target_BT.to(device)
            every_K = torch.arange(ids_BT.shape[1], device=device)
            logits_BKV, state = policy.segment(ids_BT, length_B, state, every_K)
            assert logits_BKV is not None
            scored_BK = target_BK != IGNORE
            count = float(scored_BK.sum())
            right = float((logits_BKV.argmax(-1) == target_BK).sum())
            loss = cross_entropy(
                logits_BKV.flatten(0, 1), target_BK.flatten(), ignore_index=IGNORE, reduction="sum"
            )
            return state, loss

        fresh = [torch.ones_like(x.fresh_B) if anew else x.fresh_B for x in shown]
        found = self.window.step(segment, policy.start(len(part)), fresh, part.row_B)
        return Loss(found.total, count, {"accuracy": (right, count)})

    def observe(self, at: At, means: Mapping[str, float]) -> Mapping[str, float]:
        """Keeps the new memories; raises Enough at the accuracy that was asked for."""
        self.window.advance()
        self.base.drawn = self.base.curriculum.n
        self.base.observe(at, means)
        return {}

    def state(self) -> Mapping[str, Any]:
        return {**self.base.state(), **self.window.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.base.load_state(state)
        self.window.load_state(state, self.base.device)


def in_order(base: Learning, seed: int) -> Reading:
    """What `base` trains, on the text in order; every step counts for `train.stop_at`. seed: of restarts."""
    size = base.stream.size()
    plan = CurriculumSection(start=size, check_every=base.curriculum.plan.check_every)
    return Reading(replace(base, curriculum=Curriculum(plan, size, loss=True)), seed)
