"""The LoRA baseline: its loss beside the plain one, what validation decides, replay, and that it leaves no
trace."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_gemma3, tiny_llama, tiny_qwen2

from memtoken_cli.data import operations
from memtoken_cli.engine import models
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.tokmem import rivals_lora
from memtoken_cli.methods.tokmem.rivals_lora import Lesson, Pair, Plan, adapted, paced, tuned, worn
from memtoken_cli.methods.tokmem.rivals_lora_loss import Line, padded_loss, response_loss
from memtoken_cli.methods.tokmem.turns import turns

pytest.importorskip("peft")

TEXTS = ("abc bca", "cab", "a b c a b", "bb", "ccc aab", "ba", "abcabc", "c")


def pairs(answer: str) -> list[Pair]:
    return [Pair(text, answer) for text in TEXTS]


def lines(backbone: CausalLM, some: list[Pair]) -> list[Line]:
    return rivals_lora._lines(backbone, some)


MIXED = [Pair("a query", "ok"), Pair("a longer query here", "yes!"), Pair("a", "no"), Pair("a", "maybe so")]


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_gemma3])
def test_the_flat_loss_is_the_padded_one(make) -> None:  # type: ignore[no-untyped-def]
    """Loss, and the gradient of every adapter parameter; rows of unequal length, two prompts the same."""
    backbone = make()
    batch = lines(backbone, MIXED)
    with worn(backbone, Plan(2, 1, 4, (1e-3,)), 0) as moving:
        with torch.no_grad():
            for p in moving.values():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.1)
        found = []
        for loss_of in (response_loss, padded_loss):
            loss, count = loss_of(backbone, batch)
            found.append((loss, count, torch.autograd.grad(loss, list(moving.values()))))
    (flat, n, flat_grads), (padded, m, padded_grads) = found
    assert n == m == sum(len(line.response) for line in batch)
    assert flat.item() == pytest.approx(padded.item(), rel=1e-5)
    for a, b in zip(flat_grads, padded_grads, strict=True):
        assert float(b.norm()) > 0
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_the_loss_is_of_the_response_and_its_end_alone() -> None:
    backbone = tiny_llama()
    ids = [
        *turns(backbone.tokenizer, "a query"),
        *backbone.tokenizer("ok", add_special_tokens=False).input_ids,
        2,
    ]
    logits = backbone.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    alone = -sum(float(logits[i - 1, ids[i]]) for i in range(len(ids) - 3, len(ids)))
    loss, count = response_loss(backbone, lines(backbone, [Pair("a query", "ok")]))
    assert (count, loss.item()) == (3, pytest.approx(alone, rel=1e-5))


def test_it_learns_and_leaves_no_trace() -> None:
    backbone = tiny_llama()
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    some = lines(backbone, pairs("cats"))
    untrained = rivals_lora.validation(backbone, some, 4)
    lessons = [Lesson(pairs("cats")[:4], pairs("cats")[:4]), Lesson(pairs("cats")[4:], pairs("cats")[4:])]
    with adapted(backbone, lessons, Plan(2, epochs=12, batch=4, rates=(1e-5, 2e-2)), 0) as fitted:
        assert rivals_lora.validation(backbone, some, 4) < untrained - 0.1
        assert fitted.rate >= 2e-2
        assert fitted.losses[2e-2] < fitted.losses[1e-5]
        # q: 32 -> 32, v: 32 -> 16, rank 2, two layers
        assert fitted.parameters == 2 * (2 * (32 + 32) + 2 * (32 + 16))
    after = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert rivals_lora.validation(backbone, some, 4) == untrained
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_the_starter_learns_an_operation_it_does_not_know() -> None:
    """LoRA on the toy's model: the word that a row would stand for is learned into the weights."""
    backbone = models.load("tokmem-toy", "cpu")
    (procedure, *_) = operations.toy(8, 24, 4, 4, 0)
    lesson = Lesson(
        [Pair(s.input, s.output) for s in procedure.train], [Pair(s.input, s.output) for s in procedure.val]
    )
    val = lines(backbone, list(lesson.val))
    before = rivals_lora.validation(backbone, val, 4)
    with adapted(backbone, [lesson], Plan(8, epochs=8, batch=8, rates=(1e-2,)), 0) as fitted:
        assert rivals_lora.validation(backbone, val, 4) < before / 2
        assert fitted.losses == {} and fitted.rate == 1e-2 and 0 < fitted.steps <= 24


@pytest.mark.parametrize(
    ("best", "wanted"),
    [
        (2e-3, [2e-3, 4e-3, 1e-3]),
        (8e-3, [2e-3, 4e-3, 8e-3, 16e-3]),
        (5e-4, [2e-3, 4e-3, 1e-3, 5e-4, 2.5e-4]),
        (1e9, [2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3]),  # it ends somewhere
    ],
)
def test_rates_go_on_while_the_best_is_at_an_end(best: float, wanted: list[float]) -> None:
    losses = tuned((2e-3, 4e-3), lambda rate: abs(math.log(rate / best)))
    assert list(losses) == pytest.approx(wanted)


def test_a_rate_that_blows_up_is_the_worst() -> None:
    losses = tuned((1e-3, 2e-3, 4e-3), lambda rate: math.nan if rate > 2e-3 else 1 / rate)
    assert min(losses, key=lambda rate: losses[rate]) == 2e-3


def test_the_best_epoch_stays_and_training_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_llama()
    seen: list[dict[str, torch.Tensor]] = []
    told = iter((3.0, 2.0, 2.5, 2.2, 1.0))

    def judged(backbone: CausalLM, val: list[Line], batch: int) -> float:
        seen.append({k: p.detach().clone() for k, p in backbone.model.named_parameters() if "lora" in k})
        return next(told)

    monkeypatch.setattr(rivals_lora, "validation", judged)
    plan = Plan(2, epochs=20, batch=4, rates=(3e-2,))
    with adapted(backbone, [Lesson(pairs("cats"), pairs("dogs!"))], plan, 0) as fitted:
        last = {k: p.detach().clone() for k, p in backbone.model.named_parameters() if "lora" in k}
    assert fitted.steps == 4 * 2, "two epochs behind the best"
    assert last.keys() == seen[1].keys() and all(torch.equal(last[k], seen[1][k]) for k in last)
    assert not any(torch.equal(last[k], seen[3][k]) for k in last)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The responses of every batch that training takes."""
    seen: list[list[str]] = []

    def noted(backbone: CausalLM, batch: list[Line]) -> tuple[torch.Tensor, int]:
        if torch.is_grad_enabled():
            seen.append([backbone.tokenizer.decode(line.response[:-1]) for line in batch])
        return response_loss(backbone, batch)

    monkeypatch.setattr(rivals_lora, "response_loss", noted)
    yield seen


def test_a_fifth_of_the_samples_is_of_earlier_blocks(batches: list[list[str]]) -> None:
    backbone = tiny_llama()
    lessons = [Lesson(pairs("one")), Lesson(pairs("two"))]
    with adapted(backbone, lessons, Plan(1, epochs=4, batch=4, rates=(1e-3,), replayed=0.2), 0):
        pass
    first, second = batches[:8], batches[8:]
    assert all(batch == ["one"] * 4 for batch in first)
    said = [word for batch in second for word in batch]
    assert all(len(batch) == 4 for batch in second)
    assert said.count("one") / len(said) == pytest.approx(0.2, abs=0.03)
    assert said.count("two") >= 4 * len(TEXTS), "the new ones are seen as often as without replay"


def test_the_schedule_warms_up_and_ends_above_zero() -> None:
    rates = [paced(step, 20) for step in range(20)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 0 < rates[-1] < 0.1
