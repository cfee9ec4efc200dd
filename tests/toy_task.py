"""A small task for tests of the training loop: two phases, dropout, a curriculum, ragged samples.

It reaches every corner of `Task`: metrics, state with tensors, observations, pace, validation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memtoken_cli.engine.task import At, Loss, Phase


class ToyTask:
    """Fit a small network to sums: `batch_size` samples of 1 to stage + 1 items; stages grow with steps."""

    def __init__(
        self,
        steps: Sequence[int] = (4, 2),
        batch_size: int = 5,
        dtype: torch.dtype = torch.float32,
        drop: float = 0.25,
    ) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(drop), nn.Tanh(), nn.Linear(6, 1)).to(dtype)
        self.steps, self.batch_size, self.dtype = steps, batch_size, dtype
        self.stage, self.average = 1, torch.zeros(4)
        self.seen: list[tuple[int, str]] = []
        self.phase, self.free = "", set[tuple[str, ...]]()

    def phases(self) -> list[Phase]:
        named = dict(self.net.named_parameters())
        head = {name: p for name, p in named.items() if name.startswith("3")}
        return [
            Phase("head", self.steps[0], 0.05, head, warmup=2, decay="constant", clip=0.5),
            Phase("all", self.steps[1], 0.01, named, decay="cosine", clip=None),
        ]

    def batch(self, at: At, generator: torch.Generator) -> list[Tensor]:
        self.phase = at.phase
        lengths = torch.randint(1, self.stage + 2, (self.batch_size,), generator=generator).tolist()
        return [torch.randn(n, 4, generator=generator) for n in lengths]

    def loss(self, part: Sequence[Tensor]) -> Loss:
        self.free.add((self.phase, *sorted(n for n, p in self.net.named_parameters() if p.requires_grad)))
        x_T4 = torch.cat(list(part)).to(self.dtype)
        error = (self.net(x_T4)[:, 0] - x_T4.sum(-1)).float() ** 2
        close = float((error.detach() < 1).sum())
        return Loss(error.sum(), len(x_T4), {"close": (close, len(x_T4))})

    def observe(self, at: At, means: Mapping[str, float]) -> Mapping[str, float]:
        self.seen.append((at.step, at.phase))
        self.average = 0.9 * self.average + 0.1 * means["loss"]
        if at.step % 2 == 0:
            self.stage += 1
        return {"stage": self.stage}

    def pace(self, at: At) -> float:
        return 0.5 if at.step == 4 else 1.0

    def validate(self, at: At) -> Mapping[str, float]:
        return {"norm": float(sum(p.detach().float().norm() for p in self.net.parameters()))}

    def state(self) -> dict[str, Any]:
        return {"stage": self.stage, "average": self.average}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.stage, self.average = state["stage"], state["average"].clone()

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}
