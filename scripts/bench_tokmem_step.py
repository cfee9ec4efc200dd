"""CPU seconds of one TokMem training step: the whole sequence with all logits (the paper's), split behind the
prompt, cached, and split with a shared instruction.

    python scripts/bench_tokmem_step.py [MODEL] [PROMPT TOKENS] [DTYPE]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import models, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.tokmem.config import FEATURES
from memtoken_cli.methods.tokmem.examples import IGNORE, Layout, Segment, layout
from memtoken_cli.methods.tokmem.features import Frozen, Prefix
from memtoken_cli.methods.tokmem.loss import Table, sequence_loss
from memtoken_cli.methods.tokmem.prompt import Prompt

BATCH, RESPONSE, ROUNDS = 4, 12, 5


def seconds(step: Callable[[], object]) -> float:
    """The median CPU time of a few calls, after one to warm up."""
    step()
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return sorted(found)[ROUNDS // 2]


def main(model: str, tokens: int, dtype: str) -> None:
    backbone = models.load(model, device="cpu", dtype=dtype)
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(100, 40000, (n,), generator=generator).tolist()

    header = ids(min(20, tokens // 2))
    apart = [header + ids(tokens - len(header)) for _ in range(BATCH)]
    instruction = header + ids(tokens * 3 // 4 - len(header))
    shared = [instruction + ids(tokens - len(instruction)) for _ in range(BATCH)]
    V, E = backbone.dims.vocab, backbone.dims.width
    rows = Parameter(0.1 * torch.randn(2, E, generator=generator))
    layouts = [layout([Segment(0, tuple(ids(RESPONSE)))], V, 1, 2, "none", "all") for _ in range(BATCH)]
    frozen = Frozen(backbone, FEATURES)

    def read(prompts: list[list[int]]) -> list[Prefix]:
        return frozen.read([Prompt(tuple(p), (1, len(p) - 4)) for p in prompts])

    def fast(prefixes: list[Prefix]) -> None:
        kept = [prefix.kept for prefix in prefixes if prefix.kept is not None]
        h_BE = torch.stack([prefix.h_E for prefix in prefixes])
        rows.grad = None
        table = Table(torch.cat([torch.zeros(1, E), rows]), rows, False)
        sequence_loss(backbone, table, kept, h_BE, layouts).total.backward()

    cached = read(apart)
    told = {
        "naive": seconds(lambda: naive(backbone, rows, apart, layouts)),
        "split": seconds(lambda: fast(read(apart))),
        "split, shared instruction": seconds(lambda: fast(read(shared))),
        "cached": seconds(lambda: fast(cached)),
    }
    print(f"{model} {dtype}, batch {BATCH}, prompt {tokens}, response {RESPONSE}, CPU seconds a step")
    for name, each in told.items():
        print(f"{name:28}{each:8.3f}   {told['naive'] / each:5.2f}x")
    three = told["split"] + 2 * told["cached"]
    print(f"{'three epochs':28}{three:8.3f}   {3 * told['naive'] / three:5.2f}x")


def naive(backbone: CausalLM, rows: Parameter, prompts: list[list[int]], layouts: list[Layout]) -> None:
    """The whole sequence with gradients and logits everywhere, as the published code takes it."""
    rows.grad = None
    V = backbone.dims.vocab
    table = torch.cat([torch.zeros(1, rows.shape[1]), rows])
    ids_BT = torch.tensor([[*p, *one.ids] for p, one in zip(prompts, layouts, strict=True)])
    labels_BT = torch.tensor(
        [[IGNORE] * (len(p) - 1) + [one.first, *one.targets] for p, one in zip(prompts, layouts, strict=True)]
    )
    x_BTE = vocab.embed(backbone, ids_BT, table).to(backbone.dtype)
    h_BTE = backbone.model.get_decoder()(inputs_embeds=x_BTE, use_cache=False).last_hidden_state
    logits = vocab.logits(backbone, h_BTE, table)
    logits = torch.cat([logits[..., :V], logits[..., V + 1 :]], -1)
    target = torch.where(labels_BT > V, labels_BT - 1, labels_BT)
    cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum", ignore_index=IGNORE).backward()


if __name__ == "__main__":
    said = [*sys.argv[1:], *("smollm2-135m", "120", "float32")[len(sys.argv) - 1 :]]
    main(said[0], int(said[1]), said[2])
