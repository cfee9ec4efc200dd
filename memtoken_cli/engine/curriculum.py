"""From short streams to long ones: which size a batch has, and when the largest one grows.

Knows nothing of tasks: a size is a number, and a metric says how well batches of the largest size go.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from memtoken_cli.io.errors import UsageError

PATIENCE = 3  # checks of a loss
GAIN = 0.005  # what counts as better, relative to the best loss


class Plan(Protocol):
    """What a recipe says of stages; see `data.task_config.CurriculumSection`."""

    @property
    def unit(self) -> str | None: ...
    @property
    def start(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def end(self) -> int | None: ...
    @property
    def counts(self) -> tuple[int, ...] | None: ...
    @property
    def advance_at(self) -> float: ...
    @property
    def mix(self) -> float: ...
    @property
    def check_every(self) -> int: ...
    @property
    def warmup(self) -> int: ...


class Curriculum:
    """The stage that training is in.

    A size below N is drawn now and then so that no size is forgotten: training on one count alone breaks off
    beyond it. Every `check_every` observations the mean metric of the batches that had size N decides.

    Args:
        size: the task's largest size, and the last stage where the plan names none.
        unit: what the task's sizes count; None: not checked.
        loss: the metric is a loss. It ends a stage once PATIENCE checks in a row brought less than GAIN of
        the best one; a score ends it by reaching `advance_at`.

    Raises UsageError where plan and task do not fit.
    """

    def __init__(self, plan: Plan, size: int, *, unit: str | None = None, loss: bool = False) -> None:
        if unit is not None and plan.unit not in (None, unit):
            raise UsageError(f"curriculum.unit is {plan.unit}, the task counts {unit}", hint=f"unit: {unit}")
        self.plan = plan
        self.loss = loss
        self.stages = _stages(plan, size)
        self._stage = 0
        self._changed: int | None = None
        self._seen, self._count, self._stale = 0, 0, 0
        self._sum = 0.0
        self._best: float | None = None

    @property
    def n(self) -> int:
        """N, the largest size now."""
        return self.stages[self._stage]

    @property
    def done(self) -> bool:
        """Whether N is the largest size of all."""
        return self._stage == len(self.stages) - 1

    def draw(self, generator: torch.Generator) -> int:
        """The size of the next batch. Takes two numbers from the generator, whatever they decide."""
        exact, which = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if exact < self.plan.mix:
            return self.n
        sizes = list(range(self.plan.start, self.n, self.plan.step))
        sizes.append(self.n)
        return sizes[int(which * len(sizes))]

    def observe(self, step: int, metric: float, at_n: int) -> None:
        """The metric of the batch of `step`, which had size at_n; may begin the next stage."""
        if at_n == self.n:
            self._sum += metric
            self._count += 1
        self._seen += 1
        if self._seen < self.plan.check_every:
            return
        if self._count and self._passes(self._sum / self._count) and not self.done:
            self._stage += 1
            self._changed = step
            self._best, self._stale = None, 0
        self._seen, self._sum, self._count = 0, 0.0, 0

    def pace(self, step: int) -> float:
        """What the learning rate of `step` is multiplied with: rises to 1 in the `warmup` steps behind a
        change of stage."""
        if self._changed is None or not self.plan.warmup:
            return 1.0
        return min(1.0, max(0, step - self._changed) / self.plan.warmup)

    def state(self) -> dict[str, Any]:
        """All that changes, as JSON: with it and the generator's state a run goes on as if never stopped."""
        return {
            "n": self.n,
            "changed": self._changed,
            "seen": self._seen,
            "sum": self._sum,
            "count": self._count,
            "best": self._best,
            "stale": self._stale,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises UsageError where the plan has no such stage."""
        if state["n"] not in self.stages:
            raise UsageError(
                f"the run was at size {state['n']}, which is no stage of this curriculum",
                hint="resume with the recipe that the run began with",
            )
        self._stage = self.stages.index(state["n"])
        self._changed = state["changed"]
        self._seen, self._sum, self._count = state["seen"], state["sum"], state["count"]
        self._best, self._stale = state["best"], state["stale"]

    def _passes(self, mean: float) -> bool:
        if not self.loss:
            return mean >= self.plan.advance_at
        if self._best is None or mean < self._best * (1 - GAIN):
            self._best, self._stale = mean, 0
        else:
            self._stale += 1
        return self._stale >= PATIENCE


def _stages(plan: Plan, size: int) -> tuple[int, ...]:
    end = size if plan.end is None else plan.end
    stages = plan.counts or (*range(plan.start, end, plan.step), end)
    if stages[-1] > size:
        raise UsageError(
            f"the curriculum's last stage is {stages[-1]}, the task's size {size}",
            hint="lower the stage or raise the task's size",
        )
    if plan.start > end:
        raise UsageError(f"curriculum.start is {plan.start}, the task's size {end}", hint=f"start: {end}")
    return stages
