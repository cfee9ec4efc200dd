"""The training loop: it equals a plain loop, resumes to the same bits, and stops when asked."""

import itertools
import json
import math
import os
import signal

import pytest
import torch
from toy_task import ToyTask

from memtoken_cli.engine import seeds
from memtoken_cli.engine.adam import rate
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.fit import Interrupted, Loss, Phase, Terminated, fit
from memtoken_cli.engine.stream import Bptt
from memtoken_cli.engine.stream import run as stream
from memtoken_cli.io.errors import UsageError

RECIPE = "method: toy\n"
EVERY = {"save_every": 2, "log_every": 3, "validate_every": 4, "seed": 5}


def contents(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def train(path, task=None, **options):
    task = task or ToyTask()
    with run_dir(path, RECIPE, fresh=options.pop("fresh", False)) as run:
        return task, fit(task, run, **{**EVERY, **options})


class Stopped(ToyTask):
    """Sends a signal to itself in the step `at`, or raises there."""

    def __init__(self, at, what):
        super().__init__()
        self.at, self.what = at, what

    def observe(self, at, means):
        if at.step == self.at:
            if isinstance(self.what, Exception):
                raise self.what
            os.kill(os.getpid(), self.what)
        return super().observe(at, means)


def test_it_equals_a_plain_loop(tmp_path):
    """AdamW, schedule, clip, phases, pace and seeds as a user would write them out."""
    task, _ = train(tmp_path)
    plain = ToyTask()
    step = 0
    for phase in plain.phases():
        for p in plain.net.parameters():
            p.requires_grad_(False)
        for p in phase.parameters.values():
            p.requires_grad_(True)
        matrices = [p for p in phase.parameters.values() if p.ndim > 1]
        vectors = [p for p in phase.parameters.values() if p.ndim == 1]
        adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        )
        for index in range(phase.steps):
            step += 1
            at = type("At", (), {"step": step, "phase": phase.name, "index": index, "steps": phase.steps})
            batch = plain.batch(at, seeds.generator(5, "batch", phase.name, index))
            seeds.seed_all(seeds.derive(5, "part", step, 0))
            loss = plain.loss(batch)
            adam.zero_grad()
            (loss.total / loss.count).backward()
            if phase.clip:
                torch.nn.utils.clip_grad_norm_(phase.parameters.values(), phase.clip)
            if phase.name == "head":
                lr = 0.05 * min(1.0, (index + 1) / 2) * plain.pace(at)
            else:
                lr = 0.01 * 0.5 * (1 + math.cos(math.pi * index / phase.steps))
            for group in adam.param_groups:
                group["lr"] = lr
            adam.step()
            plain.observe(at, {"loss": loss.total.item() / loss.count})
    for name, w in task.weights().items():
        torch.testing.assert_close(w, plain.weights()[name], rtol=1e-5, atol=1e-7)


def test_phases_freeze_the_rest(tmp_path):
    before = ToyTask().weights()
    task, _ = train(tmp_path, ToyTask(steps=(4, 0)))
    changed = {name for name, w in task.weights().items() if not torch.equal(w, before[name])}
    assert changed == {"3.weight", "3.bias"}


def test_only_a_phases_own_parameters_get_gradients(tmp_path):
    task, _ = train(tmp_path)
    assert task.free == {("head", "3.bias", "3.weight"), ("all", "0.bias", "0.weight", "3.bias", "3.weight")}


def test_events_are_means_over_the_interval(tmp_path):
    task, result = train(tmp_path / "a", log_every=2)
    each, _ = train(tmp_path / "b", log_every=1)
    many = [json.loads(x) for x in (tmp_path / "b/events.jsonl").read_text().splitlines()]
    few = [json.loads(x) for x in (tmp_path / "a/events.jsonl").read_text().splitlines()]
    assert [x["step"] for x in many] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in few] == [2, 4, 6]
    assert [x["phase"] for x in few] == ["head", "head", "all"]
    assert min(many[2]["loss"], many[3]["loss"]) <= few[1]["loss"] <= max(many[2]["loss"], many[3]["loss"])
    assert "valid_norm" in few[1] and "valid_norm" not in few[0]
    assert few[2]["stage"] == 4 and 0 <= few[2]["close"] <= 1
    assert result.last == few[-1]
    assert (
        task.seen == each.seen == [(1, "head"), (2, "head"), (3, "head"), (4, "head"), (5, "all"), (6, "all")]
    )


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(tmp_path / name, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "c").keys()
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_a_crash_at_any_step_resumes_to_the_same_bytes(tmp_path, at, dtype):
    whole, _ = train(tmp_path / "whole", ToyTask(dtype=dtype))
    broken = Stopped(at, RuntimeError("crash"))
    broken.net.to(dtype)
    broken.dtype = dtype
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path / "run", broken)
    torch.manual_seed(123)
    resumed, result = train(tmp_path / "run", ToyTask(dtype=dtype))
    assert result.ran == 6 - (at - 1) // 2 * 2
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    for name, w in resumed.weights().items():
        assert w.dtype == dtype and torch.equal(w, whole.weights()[name])


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGTERM, Terminated, 143), (signal.SIGINT, Interrupted, 130)]
)
@pytest.mark.parametrize("at", [1, 3, 4, 5, 6])
def test_a_signal_saves_within_the_step(tmp_path, at, number, kind, code):
    train(tmp_path / "whole")
    before = signal.getsignal(number)
    with pytest.raises(kind) as error:
        train(tmp_path / "run", Stopped(at, number))
    assert type(error.value) is kind and error.value.exit_code == code
    assert f"step {at} of 6" in error.value.message
    assert signal.getsignal(number) is before
    assert (tmp_path / f"run/checkpoints/step-{at:06d}").is_dir()
    _, result = train(tmp_path / "run")
    assert result.ran == 6 - at
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_second_interrupt_is_obeyed_at_once(tmp_path):
    class Impatient(Stopped):
        def observe(self, at, means):
            os.kill(os.getpid(), signal.SIGINT)
            return super().observe(at, means)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Impatient(1, signal.SIGINT))


def test_a_finished_run_is_left_alone(tmp_path):
    first, done = train(tmp_path)
    before = contents(tmp_path)
    torch.manual_seed(9)
    torch.rand(7)
    again, result = train(tmp_path)
    assert result.ran == 0 and result.steps == 6 and result.last == done.last
    assert contents(tmp_path) == before
    assert all(torch.equal(w, first.weights()[name]) for name, w in again.weights().items())
    assert again.seen == []


def test_what_follows_training_draws_the_same_numbers_after_a_resume(tmp_path):
    train(tmp_path)
    first = torch.rand(3)
    torch.manual_seed(9)
    train(tmp_path)
    assert torch.equal(torch.rand(3), first)


def test_fresh_starts_over(tmp_path):
    train(tmp_path)
    before = contents(tmp_path)
    _, result = train(tmp_path, fresh=True)
    assert result.ran == 6 and contents(tmp_path) == before


def test_bfloat16_parameters_move_by_a_float32_master(tmp_path):
    """Steps far below bfloat16's resolution must add up."""

    class Tiny(ToyTask):
        def phases(self):
            return [
                Phase("all", 200, 1e-4, dict(self.net.named_parameters()), decay="constant", weight_decay=0.0)
            ]

    wide, _ = train(tmp_path / "wide", Tiny(drop=0.0), save_every=200, log_every=200)
    narrow, _ = train(
        tmp_path / "narrow", Tiny(dtype=torch.bfloat16, drop=0.0), save_every=200, log_every=200
    )
    before = ToyTask().weights()["3.weight"]
    moved = (wide.weights()["3.weight"] - before).abs().mean()
    apart = (narrow.weights()["3.weight"].float() - wide.weights()["3.weight"]).abs().mean()
    assert apart < 0.4 * moved


@pytest.mark.parametrize("micro", [1, 2, 5, 7])
def test_micro_batches_change_only_the_rounding(tmp_path, micro):
    whole, _ = train(tmp_path / "whole", ToyTask(drop=0.0))
    cut, _ = train(tmp_path / "cut", ToyTask(drop=0.0), micro=micro)
    for name, w in cut.weights().items():
        torch.testing.assert_close(w, whole.weights()[name], rtol=1e-4, atol=1e-6)


class Spiky(ToyTask):
    """A loss that is not finite in the steps `bad` (from 0)."""

    def __init__(self, bad):
        super().__init__(steps=(4, 60))
        self.bad, self.now = bad, 0

    def batch(self, at, generator):
        self.now = at.step
        return super().batch(at, generator)

    def loss(self, part):
        found = super().loss(part)
        return Loss(found.total * math.nan, found.count) if self.now in self.bad else found


def test_steps_without_a_finite_loss_are_skipped_and_counted(tmp_path):
    task, result = train(tmp_path, Spiky({2, 3}), log_every=1, save_every=100)
    assert result.skipped == 2
    events = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [x["loss"] is None for x in events[:4]] == [False, True, True, False]
    assert all(torch.isfinite(w).all() for w in task.weights().values())


def test_a_run_that_stays_non_finite_is_given_up(tmp_path):
    with pytest.raises(UsageError, match="not finite for 50 steps, up to step 52") as error:
        train(tmp_path, Spiky(set(range(3, 64))))
    assert "learning rate" in error.value.hint


def test_a_task_may_run_its_own_backward(tmp_path):
    """`replay` adds gradients inside the loss; the step is the one of `full`."""

    class Recurrent(ToyTask):
        def __init__(self, mode):
            super().__init__(drop=0.0)
            self.mode = Bptt.parse(mode)

        def loss(self, part):
            x_T4 = torch.cat(list(part))

            def segment(t, state):
                y = self.net(x_T4[t : t + 1] + state[0])[0, 0]
                return (torch.tanh(state[0] + y),), (y - 1) ** 2

            found = stream(segment, (torch.zeros(1, 4),), len(x_T4), self.mode)
            return Loss(found.total, len(x_T4))

        def phases(self):
            return [Phase("all", 6, 0.05, dict(self.net.named_parameters()), clip=0.5)]

    full, _ = train(tmp_path / "full", Recurrent("full"))
    replay, _ = train(tmp_path / "replay", Recurrent("replay"))
    cut, _ = train(tmp_path / "cut", Recurrent("last:0"))
    for name, w in replay.weights().items():
        torch.testing.assert_close(w, full.weights()[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(cut.weights()["0.weight"], full.weights()["0.weight"], rtol=1e-4)


def test_one_name_means_one_parameter(tmp_path):
    class Twice(ToyTask):
        def phases(self):
            a, b = super().phases()
            return [a, Phase("b", 1, 0.1, {"3.bias": b.parameters["0.bias"]})]

    with pytest.raises(ValueError, match=r"3\.bias"):
        train(tmp_path, Twice())


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_schedules(decay):
    rates = [rate(2.0, i, 10, 4, decay) for i in range(10)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    expected = {"constant": 2.0, "linear": 2.0 * (1 - 5 / 6), "cosine": 1 + math.cos(math.pi * 5 / 6)}[decay]
    assert rates[9] == pytest.approx(expected)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
