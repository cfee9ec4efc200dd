"""How much each expert is believed, given what is known about a bank, because no constants win on every
series.

Shape suffixes: Q inputs, W weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memtoken_cli.methods.memprompttss.experts import Said

EXPERTS = ("near", "read", "head", "time")
# log of P, K, C, prompts per state; then each of near, read, head, time: accuracy with the prompt left out
INPUTS = 4 + len(EXPERTS)
START = (0.05, 1.0, 0.25, 0.25)  # of the experts' costs, before anything is learnt
SWITCH = 8.0


@dataclass(frozen=True)
class Weights:
    """near, read, head, time: of the experts' costs. lam: of a switch. temperature: of the marginals."""

    near: Tensor
    read: Tensor
    head: Tensor
    time: Tensor
    lam: Tensor
    temperature: Tensor

    def cost(self, said: Sequence[Said]) -> Tensor:
        """[N,K] the experts' costs added up."""
        parts = zip((self.near, self.read, self.head, self.time), said, strict=True)
        return torch.stack([weight * one.cost_NK for weight, one in parts]).sum(0)


class Mix(nn.Module):
    """Logs of the weights, linear in what is known."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor([*START, SWITCH, 1.0]).log())
        self.slope = nn.Parameter(torch.zeros(len(self.constant), INPUTS))

    def forward(self, known_Q: Tensor) -> Weights:
        return Weights(*(self.constant + self.slope @ known_Q).exp().unbind())


def inputs(prompts: int, states: int, channels: int, right: tuple[float, ...]) -> Tensor:
    """[Q]; `right`: share of prompts that each expert names without them (its leave-one-out accuracy)."""
    counts = torch.tensor([prompts, states, channels, prompts / states], dtype=torch.float32).log()
    return torch.cat([counts / 2.0, torch.tensor(right) - 0.5])
