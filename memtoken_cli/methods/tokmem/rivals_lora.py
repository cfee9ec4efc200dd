"""The fine-tuned baseline: LoRA on the query and value projections, by `peft` (the extra of that name).

Joint, one block after another, or so with a share of old samples among the new. The model's own weights are
as they were when an adapter is taken off again. The loss is `rivals_lora_loss.py`'s.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from memtoken_cli.engine import seeds, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.progress import bar
from memtoken_cli.methods.tokmem.extras import need_peft
from memtoken_cli.methods.tokmem.rivals_lora_loss import Line, response_loss
from memtoken_cli.methods.tokmem.turns import turns

TARGETS = ("q_proj", "v_proj")
WARMUP = 0.1
VALIDATE = 256  # samples at most that a rate, or an epoch, is judged on
TRIAL = 0.25  # of the steps, for each rate
FURTHER = 4  # rates beyond the given ones
PATIENCE = 2  # epochs without a better one that end a block

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """A prompt and its response, as text."""

    query: str
    response: str


@dataclass(frozen=True)
class Lesson:
    """What is learned at once, and what its epochs are judged by."""

    pairs: Sequence[Pair]
    val: Sequence[Pair] = ()


@dataclass(frozen=True)
class Plan:
    """How LoRA is trained. alpha: twice the rank, as is usual. replayed: the share of the samples that are of
    earlier blocks. rates: see `tuned`; a single one is taken as it is."""

    rank: int
    epochs: int
    batch: int
    rates: tuple[float, ...]
    replayed: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """Which rate was taken, the validation loss of each that was tried, how many parameters moved, in how
    many steps, and the seconds of the training that counts."""

    rate: float
    losses: Mapping[float, float]
    parameters: int
    steps: int
    seconds: float


@contextmanager
def adapted(backbone: CausalLM, lessons: Sequence[Lesson], plan: Plan, seed: int) -> Iterator[Fitted]:
    """Inside the block the backbone wears the adapter that the lessons trained, one after another.

    Raises UsageError where `peft` is missing or the model has no such projections.
    """
    with worn(backbone, plan, seed) as moving:
        start = _copy(moving)
        coded = [_Coded(_lines(backbone, x.pairs), _lines(backbone, spread(x.val))) for x in lessons]
        val = spread([line for lesson in coded for line in lesson.val])

        def tried(rate: float) -> float:
            _load(moving, start)
            bare = [_Coded(lesson.lines, []) for lesson in coded]
            _train(backbone, moving, bare, plan, rate, seed, share=TRIAL)
            return validation(backbone, val, plan.batch)

        losses = tuned(plan.rates, tried) if len(plan.rates) > 1 else {}
        rate = min(losses, key=lambda r: losses[r]) if losses else plan.rates[0]
        _load(moving, start)
        begun = time.perf_counter()
        steps = _train(backbone, moving, coded, plan, rate, seed)
        seconds = time.perf_counter() - begun
        yield Fitted(rate, losses, sum(p.numel() for p in moving.values()), steps, seconds)


@contextmanager
def worn(backbone: CausalLM, plan: Plan, seed: int) -> Iterator[Mapping[str, Parameter]]:
    """A new adapter on the backbone: its parameters by name, float32."""
    need_peft("LoRA")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        lora_dropout=plan.dropout,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    vocab.head(backbone)  # checked before the model is changed
    # each start is the same: the process-wide generator makes the first matrices
    before = seeds.capture()
    seeds.seed_all(seeds.derive(seed, "lora"))
    try:
        model = get_peft_model(backbone.model, config)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"LoRA does not fit {backbone.name}: {reason}") from error
    finally:
        seeds.restore(before)
    try:
        moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for p in moving.values():
            p.data = p.data.float()  # rates this small vanish in bfloat16
        yield moving
    finally:
        model.unload()
        backbone.model.requires_grad_(False)
        backbone.model.eval()


def tuned(rates: Sequence[float], loss_of: Callable[[float], float]) -> dict[float, float]:
    """The loss of each rate, and of further ones, twice or half as large, while the best is at an end."""
    losses = {rate: _finite(loss_of(rate)) for rate in rates}
    for _ in range(FURTHER):
        best = min(losses, key=lambda r: losses[r])
        if best == max(losses):
            following = 2 * best
        elif best == min(losses):
            following = best / 2
        else:
            break
        losses[following] = _finite(loss_of(following))
    return losses


def _finite(loss: float) -> float:
    """A rate that blew up is the worst."""
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class _Coded:
    """A lesson in ids."""

    lines: Sequence[Line]
    val: Sequence[Line]


def _lines(backbone: CausalLM, pairs: Sequence[Pair]) -> list[Line]:
    tokenizer = backbone.tokenizer
    return [
        Line(
            turns(tokenizer, pair.query),
            (*tokenizer(pair.response, add_special_tokens=False).input_ids, tokenizer.eos_token_id),
        )
        for pair in pairs
    ]


def spread(some: Sequence[T]) -> Sequence[T]:
    """At most VALIDATE of them, from all over."""
    return some[:: max(1, math.ceil(len(some) / VALIDATE))]


def _train(
    backbone: CausalLM,
    moving: Mapping[str, Parameter],
    lessons: Sequence[_Coded],
    plan: Plan,
    rate: float,
    seed: int,
    share: float = 1.0,
) -> int:
    """The lessons in turn, each with a schedule of its own; `share` of the steps of each.

    Where a lesson has validation samples, the epoch after which they are likeliest is the one that stays, and
    training ends PATIENCE epochs behind it.
    """
    steps = 0
    for number, lesson in enumerate(lessons):
        old = [line for earlier in lessons[:number] for line in earlier.lines]
        fresh = plan.batch * (1 - plan.replayed if old else 1.0)  # of a batch, on average
        total = max(1, math.ceil(share * plan.epochs * len(lesson.lines) / fresh))
        epoch = math.ceil(len(lesson.lines) / fresh)
        # AdamW's own decay is off, as for the memory rows
        adam = torch.optim.AdamW(moving.values(), lr=rate, weight_decay=0.0)
        rng = random.Random(f"{seed} lora {number}")
        new = _endless(lesson.lines, rng)
        best, kept, since = math.inf, None, 0
        backbone.model.train()
        for step in bar(range(total), f"lora {number + 1}/{len(lessons)}", total=total):
            count = math.floor((step + 1) * fresh) - math.floor(step * fresh)
            batch = [next(new) for _ in range(count)]
            batch += rng.sample(old, min(plan.batch - count, len(old)))
            for group in adam.param_groups:
                group["lr"] = rate * paced(step, total)
            adam.zero_grad()
            loss, targets = response_loss(backbone, batch)
            (loss / targets).backward()
            torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
            adam.step()
            steps += 1
            if lesson.val and ((step + 1) % epoch == 0 or step + 1 == total):
                found = validation(backbone, lesson.val, plan.batch)
                since += 1
                if found < best or kept is None:
                    best, kept, since = found, _copy(moving), 0
                if since == PATIENCE:
                    break
        if kept is not None:
            _load(moving, kept)
    backbone.model.eval()
    return steps


def paced(step: int, total: int) -> float:
    """Linear warm-up over a tenth of the steps, then linear decay, which would reach zero one step later."""
    warm = max(1, round(WARMUP * total))
    return min((step + 1) / warm, (total - step) / max(1, total - warm + 1), 1.0)


def _endless(lines: Sequence[Line], rng: random.Random) -> Iterator[Line]:
    while True:
        order = list(range(len(lines)))
        rng.shuffle(order)
        yield from (lines[i] for i in order)


@torch.no_grad()
def validation(backbone: CausalLM, lines: Sequence[Line], batch: int) -> float:
    """Mean loss a token, without dropout. Raises ValueError for no line."""
    if not lines:
        raise ValueError("no validation samples to choose by")
    training = backbone.model.training
    backbone.model.eval()
    total, count = 0.0, 0
    for start in range(0, len(lines), batch):
        loss, n = response_loss(backbone, lines[start : start + batch])
        total, count = total + float(loss), count + n
    backbone.model.train(training)
    return total / count


def _copy(moving: Mapping[str, Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in moving.items()}


def _load(moving: Mapping[str, Parameter], start: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, p in moving.items():
            p.copy_(start[name])
