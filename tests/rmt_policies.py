"""Tiny models under a memory policy, and the policy run over rows of tokens, for tests.

`from rmt_policies import made, run` works in any test. Models are made anew every time.
"""

from dataclasses import dataclass

import torch
from naive_rmt import read
from tiny import _sizes, _wrap, tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2
from torch import nn
from torch.nn import Parameter
from transformers import GemmaConfig, GemmaForCausalLM

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.policy import Policy

LENGTHS = (11, 4, 7, 1)  # rows of a batch: with 4 tokens a segment full ones, short tails, missing ones


def tiny_gemma() -> CausalLM:
    """Scaled embeddings."""
    return _wrap(GemmaForCausalLM, GemmaConfig(**_sizes(2, 4, 2, 4096)), "tiny-gemma", 0, True)


FAMILIES = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "qwen2": tiny_qwen2,
    "gemma": tiny_gemma,
    "gemma3": tiny_gemma3,  # S + 2m are exactly its window
}


def gentle(backbone: CausalLM) -> CausalLM:
    """Half of every weight: a steep model amplifies rounding."""
    for weight in backbone.model.parameters():
        weight.data *= 0.5
    return backbone


class Norm(nn.Module):
    """A family's RMS norm in float64, which its own rounds to float32."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.weight, self.one = of.weight, float("Gemma" in type(of).__name__)
        self.eps = of.eps if self.one else of.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.weight + self.one)


def exact(model: nn.Module) -> None:
    """Norms that keep float64."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, Norm(child))


@dataclass
class Made:
    """A policy and what its results depend on; every parameter has a gradient and none a special value."""

    backbone: CausalLM
    policy: Policy
    config: Config
    parameters: dict[str, Parameter]

    @property
    def leaves(self) -> dict[str, Parameter]:
        return self.parameters | dict(self.backbone.model.named_parameters())


def made(backbone: str | CausalLM = "llama", dtype: torch.dtype = torch.float32, **config: object) -> Made:
    """Segments of 4 tokens and 2 memory tokens unless told otherwise; dtype: the backbone's."""
    found = gentle(FAMILIES[backbone]()) if isinstance(backbone, str) else backbone
    if dtype == torch.float64:
        exact(found.model)
    found.model.to(dtype)
    said = Config.model_validate({"segment": 4, "slots": 2, "d_mem": 12} | config)
    policy = policy_for(found, said, seed=5)
    noise = torch.Generator().manual_seed(11)
    parameters = dict(policy.parameters())
    for parameter in parameters.values():
        drawn = torch.randn(parameter.shape, generator=noise) * 0.1
        parameter.data = (parameter.data + drawn).to(torch.promote_types(dtype, torch.float32))
    found.model.requires_grad_(True)
    return Made(found, policy, said, parameters)


def rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    noise = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 64, (n,), generator=noise).tolist() for n in lengths]


def pieces(ids: list[int], S: int, align: str) -> list[list[int]]:
    """A row's tokens by segment."""
    N = max(1, -(-len(ids) // S))
    size = -(-len(ids) // N) if align == "center" else S
    head = len(ids) % S if align == "right" else 0
    starts = range(head, len(ids), size)
    return [x for x in (ids[:head], *(ids[i : i + size] for i in starts)) if x]


def run(of: Made, ids: list[list[int]], width: int = 0, fill: int = 0) -> tuple[list[torch.Tensor], tuple]:
    """The policy over a batch padded to `width` or more: (logits [T,V] of each row, the last state)."""
    T = max(width, *map(len, ids))
    ids_BT = torch.tensor([row + [fill] * (T - len(row)) for row in ids])
    cuts = cut(torch.tensor([len(row) for row in ids]), of.config.segment, of.config.align)
    state, found = of.policy.start(len(ids)), [[] for _ in ids]
    for t in range(len(cuts)):
        ids_BW = cuts.take(ids_BT, t, fill)
        logits, state = of.policy.segment(ids_BW, cuts.count_NB[t], state, torch.arange(ids_BW.shape[1]))
        for row, n in enumerate(cuts.count_NB[t].tolist()):
            found[row].append(logits[row, :n])
    return [torch.cat(parts) for parts in found], state


def naive(of: Made, ids: list[list[int]]) -> tuple[list[torch.Tensor], tuple]:
    """The same from the equations, row by row; states stacked as the policy has them."""
    c, p = of.config, of.parameters
    E, L = of.backbone.dims.width, of.backbone.dims.layers
    if c.policy == "armt":
        init = p["memory.init_MD"]
        first = [(init.new_zeros(6 * c.d_mem, E), init.new_zeros(6 * c.d_mem))] * L
    else:
        first = p["memory.init_LMD"] if c.policy == "prmt" else p["memory.init_MD"][None]
    found = [read(of.backbone.model, c, p, pieces(row, c.segment, c.align), first) for row in ids]
    if c.policy == "armt":
        parts = ([torch.stack([layer[i] for layer in state]) for _, state in found] for i in (0, 1))
        return [x for x, _ in found], (*map(torch.stack, parts), torch.ones(len(ids), dtype=torch.bool))
    each = [torch.stack(list(state)) if c.policy == "prmt" else state[0] for _, state in found]
    return [x for x, _ in found], (torch.stack(each),)


def gradients(of: Made, logits: list[torch.Tensor], state: tuple) -> dict[str, torch.Tensor]:
    """Of a fixed random projection of the logits and the state, for every leaf."""
    noise = torch.Generator().manual_seed(2)
    total = torch.zeros((), dtype=of.backbone.dtype)
    for x in (*logits, *(x for x in state if x.is_floating_point())):
        weight = torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x.dtype)
        total = total + (x * weight).sum() / x.numel()
    leaves = of.leaves
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }
