"""What contestants of a comparison see, and what each is: a name and a way to make a memory within a budget.

Kept apart from `compare.py`, so that a method can enter without importing the runner.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.render import Rendered, Template, render
from ..data.shots import Shots
from .backbone import CausalLM
from .memory import Layers
from .method import Budget, Compresses, Made


@dataclass(frozen=True)
class Context:
    """One draw: the prompt, prefilled once for everybody. `labels`: the classes to choose among, sorted."""

    backbone: CausalLM
    shots: Shots
    template: Template
    rendered: Rendered
    full: Layers
    prefill_seconds: float
    labels: tuple[str, ...]
    instruction: str = ""
    seed: int = 0

    @property
    def tokens(self) -> int:
        return len(self.rendered.ids)


@dataclass(frozen=True)
class Contestant:
    """`make(context, slots)` gives a memory of at most `slots` tokens per layer and head on average.

    calibrated_by: whose leave-one-out scores calibrate it: the "prompt"'s (the whole prompt's, which every
    contestant has at hand while compressing), its "own" shots' (Made.about["shots"]: their indices) or
    "nobody". whole: made once, for no budget.
    prefills: `make` reads the prompt again, which is no cost of compressing.
    """

    name: str
    make: Callable[[Context, int], Made]
    calibrated_by: str = "prompt"
    whole: bool = False
    prefills: bool = False


def context(
    backbone: CausalLM, shots: Shots, template: Template, instruction: str = "", seed: int = 0
) -> Context:
    """Render and prefill. Raises DataError where the prompt does not fit the backbone."""
    rendered = render(shots, template, backbone.tokenizer, instruction)
    start = time.perf_counter()
    full = backbone.prefill(rendered.ids)
    seconds = time.perf_counter() - start
    return Context(backbone, shots, template, rendered, full, seconds, shots.outputs, instruction, seed)


def entrant(name: str, method: Compresses, config: Any) -> Contestant:
    """A method that compresses as a contestant; `config` is its own Config, with the bench's template."""

    def make(ctx: Context, slots: int) -> Made:
        return method.compress(ctx.backbone, ctx.shots, Budget(slots=slots), config, ctx.seed)

    return Contestant(name, make, prefills=True)


def subset(shots: Shots, chosen: Sequence[int]) -> Shots:
    """The shots of these indices, in the order given."""
    return replace(shots, items=[shots.items[i] for i in chosen])
