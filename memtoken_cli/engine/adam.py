"""AdamW on float32 masters, a learning-rate schedule and a clip: the arithmetic of one step of `fit.py`.

A bfloat16 parameter keeps a float32 master that the optimiser moves and that checkpoints hold; the parameter
is its rounding. Sharded parameters (DTensor) work alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW

from memtoken_cli.engine.dist import fill_, whole

Decay = Literal["constant", "linear", "cosine"]
WIDE = (torch.float32, torch.float64)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def rate(lr: float, index: int, steps: int, warmup: int, decay: Decay, floor: float = 0.0) -> float:
    """The learning rate of step `index` (from 0) of `steps`: a linear warm-up, then `decay` towards the
    share `floor` of it."""
    if index < warmup:
        return lr * (index + 1) / warmup
    done = (index - warmup) / max(1, steps - warmup)
    if decay == "constant":
        return lr
    left = 0.5 * (1 + math.cos(math.pi * done)) if decay == "cosine" else 1 - done
    return lr * (floor + (1 - floor) * left)


def master(parameter: Parameter) -> Tensor:
    """What the optimiser moves for a parameter: itself where it is wide enough, else a float32 copy."""
    return parameter if parameter.dtype in WIDE else parameter.detach().float()


def norm(gradients: Sequence[Tensor]) -> float:
    """The Euclidean norm of all gradients together."""
    if not gradients:
        return 0.0
    parts = [whole(torch.linalg.vector_norm(x)) for x in gradients]
    return float(torch.linalg.vector_norm(torch.stack([x.to(parts[0].device) for x in parts])))


class Adam:
    """AdamW over named masters; weight decay acts on matrices and larger, not on vectors (norms, biases)."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        masters: Mapping[str, Tensor],
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self.parameters = dict(parameters)
        self.masters = {name: masters[name] for name in parameters}
        matrices = [x for x in self.masters.values() if x.ndim >= 2]
        vectors = [x for x in self.masters.values() if x.ndim < 2]
        groups = [
            {"params": params, "weight_decay": amount}
            for params, amount in ((matrices, weight_decay), (vectors, 0.0))
            if params
        ]
        self.adam = AdamW(groups, betas=betas)

    def step(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """Move every master that has a gradient, then round the parameters."""
        for name, x in self.masters.items():
            x.grad = gradients[name].to(x.dtype) if name in gradients else None
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        with torch.no_grad():
            for name, x in self.masters.items():
                x.grad = None
                if x is not self.parameters[name]:
                    self.parameters[name].copy_(x)

    def state(self) -> dict[str, Tensor]:
        """The moments by `<moment>/<parameter>`, whole; parameters that never had a gradient have none."""
        return {
            f"{moment}/{name}": whole(self.adam.state[x][moment])
            for name, x in self.masters.items()
            if x in self.adam.state
            for moment in MOMENTS
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, x in self.masters.items():
            if f"step/{name}" in state:
                moments = {"step": state[f"step/{name}"].clone()}
                for moment in MOMENTS[1:]:
                    moments[moment] = torch.zeros_like(x, requires_grad=False)
                    fill_(moments[moment], state[f"{moment}/{name}"])
                self.adam.state[x] = moments
