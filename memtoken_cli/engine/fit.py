"""The one training loop: phases, batches by step number, checkpoints, resuming, signals, ranks.

What is trained, on which data and with which loss is a `Task`; where it is written is a `RunDir`
(`checkpoint.py`). The data position is the step number and every step seeds its own generators, so a resumed
run takes the very steps that an uninterrupted one takes.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from memtoken_cli.engine import seeds
from memtoken_cli.engine.adam import Adam, master, norm, rate
from memtoken_cli.engine.checkpoint import Checkpoint, RunDir
from memtoken_cli.engine.dist import World, fill_, tree, whole
from memtoken_cli.engine.stopping import Interrupted, Terminated, signals
from memtoken_cli.engine.task import At, Enough, Loss, Observes, Paces, Phase, Task, Validates
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.progress import bar

__all__ = ["At", "FitResult", "Interrupted", "Loss", "Phase", "Task", "Terminated", "fit"]

PATIENCE = 50  # steps in a row without a finite loss before a run is given up


@dataclass(frozen=True)
class FitResult:
    """steps: in all. ran: in this process (0: nothing was left to do). skipped: without a finite loss or
    gradient. last: the newest logged event. seconds: of this process."""

    steps: int
    ran: int
    skipped: int
    last: Mapping[str, Any]
    seconds: float


def fit(
    task: Task,
    run: RunDir,
    *,
    seed: int = 0,
    save_every: int = 100,
    log_every: int = 10,
    validate_every: int | None = None,
    micro: int | None = None,
    world: World | None = None,
) -> FitResult:
    """Train from the newest checkpoint, or from the start, to the end; a finished run is left as it is.

    Args:
        micro: samples a backward; a batch is cut into such parts and their gradients are added as a balanced
            tree, so that two ranks give the bits of one. None: each rank's share at once (equal to rounding).

    Raises Interrupted / Terminated after saving, UsageError where the loss stays non-finite, OSError (a full
    disk) with the earlier checkpoints intact, DataError where every checkpoint is damaged.
    """
    return _Loop(task, run, seed, save_every, log_every, validate_every, micro, world or World()).run()


@dataclass
class _Part:
    """A sum over samples: gradients, and (sum, count) pairs; the loss itself is the pair `loss`."""

    gradients: dict[str, Tensor]
    sums: dict[str, tuple[float, float]]


def _add(a: _Part, b: _Part) -> _Part:
    for name, x in b.gradients.items():
        a.gradients[name] = a.gradients[name].add_(x) if name in a.gradients else x
    return _Part(a.gradients, _add_sums(a.sums, b.sums))


def _add_sums(
    a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]
) -> dict[str, tuple[float, float]]:
    zero = (0.0, 0.0)
    names = [*a, *(name for name in b if name not in a)]
    pairs = {name: (a.get(name, zero), b.get(name, zero)) for name in names}
    return {name: (x[0] + y[0], x[1] + y[1]) for name, (x, y) in pairs.items()}


class _Loop:
    def __init__(
        self,
        task: Task,
        run: RunDir,
        seed: int,
        save_every: int,
        log_every: int,
        validate_every: int | None,
        micro: int | None,
        world: World,
    ) -> None:
        self.task, self.rundir, self.seed, self.micro, self.world = task, run, seed, micro, world
        self.save_every, self.log_every, self.validate_every = save_every, log_every, validate_every
        self.phases = list(task.phases())
        self.total = sum(phase.steps for phase in self.phases)
        self.parameters: dict[str, Parameter] = {}
        for phase in self.phases:
            for name, parameter in phase.parameters.items():
                if self.parameters.setdefault(name, parameter) is not parameter:
                    raise ValueError(f"{name} names two parameters")
        self.masters = {name: master(p) for name, p in self.parameters.items()}
        self.adam: Adam | None = None
        self.step = self.skipped = self.in_a_row = 0
        self.sums: dict[str, tuple[float, float]] = {}
        self.last: dict[str, Any] = {}

    def run(self) -> FitResult:
        began, resumed = time.monotonic(), self._resume()
        with signals() as stop:
            for step in bar(range(resumed + 1, self.total + 1), "train", total=self.total - resumed):
                at, phase = self._at(step)
                self._enter(at, phase)
                try:
                    self._advance(at, phase)
                except Enough:
                    break
                asked = max(self.world.gather(stop()))
                due = step % self.save_every == 0 or at.index + 1 == at.steps
                if due or asked:
                    self._save(regular=due)
                if asked:
                    kind = Terminated if asked == signal.SIGTERM else Interrupted
                    raise kind(
                        f"interrupted after step {step} of {self.total}, saved",
                        hint="run the same command again: it goes on from there",
                    )
        ran = self.step - resumed
        return FitResult(self.step, ran, self.skipped, self.last, time.monotonic() - began)

    def _at(self, step: int) -> tuple[At, Phase]:
        index = step - 1
        for phase in self.phases:
            if index < phase.steps:
                return At(step, phase.name, index, phase.steps), phase
            index -= phase.steps
        raise ValueError(f"step {step} is beyond the last phase")

    def _enter(self, at: At, phase: Phase) -> None:
        if self.adam is not None and at.index:
            return
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in phase.parameters)
            parameter.grad = None
        self.adam = Adam(phase.parameters, self.masters, phase.weight_decay, phase.betas)

    def _advance(self, at: At, phase: Phase) -> None:
        assert self.adam is not None
        self._reseed("step", at.step)
        gradients, sums = self._gradients(at, phase)
        self._reseed("after", at.step)
        count = sums["loss"][1]
        for x in gradients.values():
            x.div_(max(count, 1.0))
        length = norm(list(gradients.values()))
        lr = rate(phase.lr, at.index, at.steps, phase.warmup, phase.decay, phase.floor)
        if isinstance(self.task, Paces):
            lr *= self.task.pace(at)
        means = {name: s / c if c else math.nan for name, (s, c) in sums.items()}
        if count and math.isfinite(means["loss"]) and math.isfinite(length):
            if phase.clip is not None and length > phase.clip:
                for x in gradients.values():
                    x.mul_(phase.clip / length)
            self.adam.step(gradients, lr)
            self.in_a_row = 0
            self.sums = _add_sums(self.sums, sums | {"grad_norm": (length, 1.0)})
        else:
            self._skip(at, phase)
        self.step = at.step
        extra = self.task.observe(at, means) if isinstance(self.task, Observes) else {}
        self._log(at, lr, extra)

    def _reseed(self, *names: seeds.Name) -> None:
        # by step and part, not by rank: dropout too is the same on any number of ranks
        seeds.seed_all(seeds.derive(self.seed, *names))

    def _skip(self, at: At, phase: Phase) -> None:
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= PATIENCE:
            raise UsageError(
                f"the loss or its gradient was not finite for {PATIENCE} steps, up to step {at.step}",
                hint=f"lower the learning rate of phase {phase.name} (now {phase.lr:g}), then use --fresh",
            )

    def _gradients(self, at: At, phase: Phase) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
        """The summed gradients of the whole batch, in the masters' precision, and its sums."""
        batch = self.task.batch(at, seeds.generator(self.seed, "batch", phase.name, at.index))
        if self.micro is None:
            share = self.world.share(len(batch))
            cuts = {self.world.rank: slice(share.start, share.stop)} if share else {}
        else:
            parts = self.world.share(-(-len(batch) // self.micro))
            cuts = {i: slice(i * self.micro, (i + 1) * self.micro) for i in parts}

        def leaf(i: int) -> _Part:
            for parameter in phase.parameters.values():
                parameter.grad = None
            self._reseed("part", at.step, i)
            loss = self.task.loss(batch[cuts[i]])
            if loss.total.requires_grad:
                loss.total.backward()
            found = {name: p.grad for name, p in phase.parameters.items()}
            wide = {name: g.to(self.masters[name].dtype) for name, g in found.items() if g is not None}
            return _Part(wide, {"loss": (float(loss.total.detach()), float(loss.count)), **loss.metrics})

        mine = tree(min(cuts), max(cuts) + 1, leaf, _add) if cuts else _Part({}, {"loss": (0.0, 0.0)})
        report: dict[str, Any] = {"sums": mine.sums, "names": sorted(mine.gradients)}
        everyone = self.world.gather(report)
        names = sorted({name for one in everyone for name in one["names"]})
        for name in names:
            if name not in mine.gradients:
                mine.gradients[name] = torch.zeros_like(self.masters[name], requires_grad=False)
        gradients = {name: mine.gradients[name] for name in phase.parameters if name in mine.gradients}
        self.world.sum_(list(gradients.values()))
        sums = tree(0, len(everyone), lambda i: _add_sums(everyone[i]["sums"], {}), _add_sums)
        for parameter in phase.parameters.values():
            parameter.grad = None
        return gradients, sums

    def _log(self, at: At, lr: float, extra: Mapping[str, float]) -> None:
        checked = self.validate_every and (at.step % self.validate_every == 0 or at.step == self.total)
        validated = self.task.validate(at) if checked and isinstance(self.task, Validates) else {}
        if at.step % self.log_every == 0 or at.step == self.total or validated:
            # sorted, as a checkpoint gives them back
            means = {name: s / c if c else None for name, (s, c) in sorted(self.sums.items())}
            event = {
                "step": at.step,
                "phase": at.phase,
                "lr": lr,
                "loss": None,
                **means,
                **extra,
                "skipped": self.skipped,
            }
            event |= {f"valid_{name}": x for name, x in validated.items()}
            self.last = {
                k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in event.items()
            }
            self.sums = {}
            self.rundir.log(self.last)

    def _save(self, regular: bool) -> None:
        assert self.adam is not None
        own = dict(self.task.state())
        tensors = {f"parameter/{name}": whole(x) for name, x in self.masters.items()}
        tensors |= {f"adam/{name}": x for name, x in self.adam.state().items()}
        tensors |= {f"random/{name}": x for name, x in seeds.capture().items()}
        tensors |= {f"task/{name}": x for name, x in own.items() if isinstance(x, Tensor)}
        values = {
            "total": self.total,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "sums": self.sums,
            "last": self.last,
            "task": {name: x for name, x in own.items() if not isinstance(x, Tensor)},
        }
        self.rundir.save(Checkpoint(self.step, tensors, values, regular))

    def _resume(self) -> int:
        """Load the newest checkpoint, the same one on every rank; returns how many steps are done."""
        found = self.rundir.load() if self.world.leader else None
        step = self.world.gather(found.step if found else 0)[0]
        if step == 0:
            return 0
        found = found or self.rundir.load(step)
        assert found is not None
        for name, x in self.masters.items():
            fill_(x, found.tensors[f"parameter/{name}"])
            if x is not self.parameters[name]:
                fill_(self.parameters[name], x)
        at, phase = self._at(step)
        self._enter(at, phase)
        assert self.adam is not None
        self.adam.load(_under("adam/", found.tensors))
        self.task.load_state({**found.values["task"], **_under("task/", found.tensors)})
        seeds.restore(_under("random/", found.tensors))
        self.step, self.skipped, self.in_a_row = step, found.values["skipped"], found.values["in_a_row"]
        self.sums = {name: (s, c) for name, (s, c) in found.values["sums"].items()}
        self.last = found.values["last"]
        return step


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
