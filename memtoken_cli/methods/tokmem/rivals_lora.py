"""The fine-tuned baseline: LoRA on the query and value projections, by `peft` (the extra of that name).

Joint, one block after another, or so with a share of old samples in each batch. The model's own weights are
as they were when an adapter is taken off again.

Shape suffixes: B rows, T tokens, W positions with a target, V vocabulary.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.progress import bar
from memtoken_cli.methods.tokmem.extras import need_peft
from memtoken_cli.methods.tokmem.turns import turns

TARGETS = ("q_proj", "v_proj")
WARMUP = 0.1
VALIDATE = 256  # samples at most that a rate is judged on


@dataclass(frozen=True)
class Pair:
    """A prompt and its response, as text."""

    query: str
    response: str


@dataclass(frozen=True)
class Plan:
    """How LoRA is trained. alpha: twice the rank, as is usual. replayed: the share of a batch that is of
    earlier blocks. rates: tried for a quarter of the steps each; the one with the least validation loss is
    taken."""

    rank: int
    epochs: int
    batch: int
    rates: tuple[float, ...]
    replayed: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """Which rate was taken, the validation loss of each, how many parameters moved, and how long the
    training that counts took."""

    rate: float
    losses: Mapping[float, float]
    parameters: int
    steps: int
    seconds: float


@contextmanager
def adapted(
    backbone: CausalLM,
    blocks: Sequence[Sequence[Pair]],
    val: Sequence[Pair],
    plan: Plan,
    seed: int,
) -> Iterator[Fitted]:
    """Inside the block the backbone wears the adapter that the blocks trained, one after another.

    Raises UsageError where `peft` is missing or the model has no such projections.
    """
    need_peft("LoRA")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        lora_dropout=plan.dropout,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    # each start is the same: the process-wide generator makes the first matrices
    before = seeds.capture()
    seeds.seed_all(seeds.derive(seed, "lora"))
    try:
        worn = get_peft_model(backbone.model, config)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"LoRA does not fit {backbone.name}: {reason}") from error
    finally:
        seeds.restore(before)
    try:
        moving = {name: p for name, p in worn.named_parameters() if p.requires_grad}
        for p in moving.values():
            p.data = p.data.float()  # rates this small vanish in bfloat16
        start = {name: p.detach().clone() for name, p in moving.items()}
        losses = {}
        for rate in plan.rates if len(plan.rates) > 1 else ():
            _load(moving, start)
            _train(backbone, moving, blocks, plan, rate, seed, share=0.25)
            losses[rate] = validation(backbone, val[:VALIDATE], plan.batch)
        rate = min(losses, key=lambda r: losses[r]) if losses else plan.rates[0]
        _load(moving, start)
        begun = time.perf_counter()
        steps = _train(backbone, moving, blocks, plan, rate, seed)
        seconds = time.perf_counter() - begun
        yield Fitted(rate, losses, sum(p.numel() for p in moving.values()), steps, seconds)
    finally:
        worn.unload()
        backbone.model.requires_grad_(False)
        backbone.model.eval()


def _train(
    backbone: CausalLM,
    moving: Mapping[str, torch.nn.Parameter],
    blocks: Sequence[Sequence[Pair]],
    plan: Plan,
    rate: float,
    seed: int,
    share: float = 1.0,
) -> int:
    """The blocks in turn, each with a schedule of its own; `share` of the steps of each."""
    backbone.model.train()
    steps = 0
    for number, block in enumerate(blocks):
        old = [pair for earlier in blocks[:number] for pair in earlier]
        replayed = round(plan.batch * plan.replayed) if old else 0
        total = max(1, math.ceil(share * plan.epochs * len(block) / (plan.batch - replayed)))
        # AdamW's own decay is off, as for the memory rows
        adam = torch.optim.AdamW(moving.values(), lr=rate, weight_decay=0.0)
        rng = random.Random(f"{seed} lora {number}")
        fresh = _endless(block, rng)
        for step in bar(range(total), f"lora {number + 1}/{len(blocks)}", total=total):
            batch = [next(fresh) for _ in range(plan.batch - replayed)]
            batch += rng.sample(old, min(replayed, len(old)))
            for group in adam.param_groups:
                group["lr"] = rate * paced(step, total)
            adam.zero_grad()
            loss, count = response_loss(backbone, batch)
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
            adam.step()
        steps += total
    backbone.model.eval()
    return steps


def paced(step: int, total: int) -> float:
    """Linear warm-up over a tenth of the steps, then linear decay, which would reach zero one step later."""
    warm = max(1, round(WARMUP * total))
    return min((step + 1) / warm, (total - step) / max(1, total - warm + 1), 1.0)


def _endless(block: Sequence[Pair], rng: random.Random) -> Iterator[Pair]:
    while True:
        order = list(range(len(block)))
        rng.shuffle(order)
        yield from (block[i] for i in order)


def response_loss(backbone: CausalLM, batch: Sequence[Pair]) -> tuple[Tensor, int]:
    """(summed cross-entropy of responses and end tokens, how many); rows are padded on the right."""
    tokenizer = backbone.tokenizer
    rows, targets = [], []
    for pair in batch:
        prompt = turns(tokenizer, pair.query)
        answer = (*tokenizer(pair.response, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
        rows.append((*prompt, *answer))
        targets.append([-100] * (len(prompt) - 1) + list(answer))
    T = max(map(len, rows)) - 1
    ids_BT = torch.zeros(len(rows), T, dtype=torch.long)
    target_BT = torch.full((len(rows), T), -100)
    mask_BT = torch.zeros(len(rows), T, dtype=torch.long)
    for b, (row, wanted) in enumerate(zip(rows, targets, strict=True)):
        ids_BT[b, : len(row) - 1] = torch.tensor(row[:-1])
        target_BT[b, : len(wanted)] = torch.tensor(wanted)
        mask_BT[b, : len(row) - 1] = 1
    device = backbone.device
    target_BT = target_BT.to(device)
    h_BTE = backbone.model.get_decoder()(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
    ).last_hidden_state
    wanted_BT = target_BT != -100
    logits_WV = backbone.model.get_output_embeddings()(h_BTE[wanted_BT]).float()
    return cross_entropy(logits_WV, target_BT[wanted_BT], reduction="sum"), int(wanted_BT.sum())


@torch.no_grad()
def validation(backbone: CausalLM, pairs: Sequence[Pair], batch: int) -> float:
    """Mean loss a token. Raises ValueError for no pair."""
    if not pairs:
        raise ValueError("no validation samples to choose a rate by")
    total, count = 0.0, 0
    for start in range(0, len(pairs), batch):
        loss, n = response_loss(backbone, pairs[start : start + batch])
        total, count = total + float(loss), count + n
    return total / count


def _load(moving: Mapping[str, torch.nn.Parameter], start: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, p in moving.items():
            p.copy_(start[name])
