"""Sessions over tiny models for tests, and the same text read without any cache or session."""

import torch
from tiny import tiny_gpt2, tiny_llama
from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.policy import Policy
from memtoken_cli.methods.rmt.session import Session

SIZE = 8  # tokens of a segment
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
LAYOUTS = [
    (model, policy)
    for model in MODELS
    for policy in ("rmt", "prmt", "armt", "xl", "none", "static", "window", "sink", "full")
    if (model, policy) not in (("gpt2", "xl"), ("gpt2", "sink"))  # these need rotary positions
]


def policy(model: str = "llama", kind: str = "rmt", **config: object) -> tuple[CausalLM, Policy]:
    """Every parameter has a value of its own: zeros at the start would hide mistakes."""
    backbone = MODELS[model]()
    for weight in backbone.model.parameters():
        weight.data *= 0.5  # a steep model amplifies rounding
    said = {"policy": kind, "segment": SIZE, "slots": 3, "d_mem": 16} | config
    made = policy_for(backbone, Config.model_validate(said), seed=1)
    noise = torch.Generator().manual_seed(2)
    for parameter in made.parameters().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
        parameter.requires_grad_(False)
    return backbone, made


def session(model: str = "llama", kind: str = "rmt", rows: int = 1, **config: object) -> Session:
    return Session.of(*policy(model, kind, **config), rows)


def text(tokens: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(4, 60, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def naive(of: Policy, ids_BT: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(logits behind the last token, the memory), segment by segment from the beginning."""
    B, T = ids_BT.shape
    state, logits = of.start(B), None
    for start in range(0, T, of.size):
        ids_BW = ids_BT[:, start : start + of.size]
        W = ids_BW.shape[1]
        logits, new = of.segment(ids_BW, torch.full((B,), W), state, torch.tensor([W - 1]))
        state = new if of.size == W else state
    assert logits is not None
    return logits[:, -1], state
