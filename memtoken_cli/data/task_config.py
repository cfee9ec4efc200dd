"""Keys of `task:` and `curriculum:`: what a stream with a memory is trained on. No torch here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from memtoken_cli.recipe.sections import Section

Name = Literal[
    "copy", "reverse", "retrieval", "remember", "rewrite", "recall", "quadratic", "babilong", "text"
]
Unit = Literal["length", "segments", "pairs"]

_COPY: dict[str, Any] = {"length": 24, "symbols": 10}
_PAIRS: dict[str, Any] = {"pairs": 8, "key_size": 1, "value_size": 1, "symbols": 16}
DEFAULTS: dict[str, dict[str, Any]] = {
    "copy": _COPY,
    "reverse": _COPY,
    "retrieval": {"pairs": 4},
    "remember": _PAIRS,
    "rewrite": _PAIRS,
    "recall": {"count": 2, "keys": 4, "values": 8, "noise": 16, "segments": 6},
    "quadratic": {"bound": 100, "scale": 10, "no_root": 0.2},
    "babilong": {"facts": None, "background": None, "questions": ("qa1",), "segments": 6},
    "text": {"document_break": None, "validation": 0.05, "segments": 8, "words": None},
}


class TaskSection(Section):
    """`task:` one task by name, and its keys; those of other tasks are None, and an error where set.

    Attributes:
        name: the task.
        length, symbols: copy, reverse (24, 10): how many symbols stand to be copied, of how many kinds.
        pairs: retrieval (4), remember and rewrite (8): how many a row has; the latter in a segment each.
        key_size, value_size, symbols: remember, rewrite (1, 1, 16): symbols of a key and of a value.
        count, keys, values, noise: recall (2, 4, 8, 16): facts of a row; kinds of keys, values and noise.
        segments: recall, babilong (6), text (8): how many a row has.
        bound, scale, no_root: quadratic (100, 10, 0.2): roots are int(U(-bound, bound)), the coefficients a
        multiple up to scale of the reduced ones; the share of equations without real roots.
        facts, background, questions: babilong (None, None, [qa1]): a folder of bAbI files and a text to hide
        their facts in, both made from the seed where None; which questions are asked.
        document_break, validation: text (None, 0.05): the line between documents; the last share of the file
        that is not trained on.
        words: text (None): a new model reads whole words, this many of the most frequent ones, instead of
        bytes.
    """

    name: Name = "copy"
    length: int | None = Field(default=None, ge=1)
    symbols: int | None = Field(default=None, ge=2)
    pairs: int | None = Field(default=None, ge=1)
    key_size: int | None = Field(default=None, ge=1)
    value_size: int | None = Field(default=None, ge=1)
    count: int | None = Field(default=None, ge=1)
    keys: int | None = Field(default=None, ge=1)
    values: int | None = Field(default=None, ge=2)
    noise: int | None = Field(default=None, ge=1)
    segments: int | None = Field(default=None, ge=1)
    # beyond these a line of 30 characters is too short
    bound: int | None = Field(default=None, ge=2, le=100)
    scale: int | None = Field(default=None, ge=1, le=1000)
    no_root: float | None = Field(default=None, ge=0, le=1)
    facts: str | None = None
    background: str | None = None
    questions: tuple[str, ...] | None = Field(default=None, min_length=1)
    document_break: str | None = Field(default=None, min_length=1)
    validation: float | None = Field(default=None, gt=0, lt=1)
    words: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _own_keys(cls, given: Any) -> Any:
        """The named task's defaults, and no other task's keys."""
        if not isinstance(given, dict):
            return given
        name = given.get("name", "copy")
        own = DEFAULTS.get(name) if isinstance(name, str) else None
        if own is None:
            return given
        all_keys = {key for keys in DEFAULTS.values() for key in keys}
        foreign = [key for key in given if key in all_keys - own.keys() and given[key] is not None]
        if foreign:
            raise ValueError(f"the task {name} has no {foreign[0]}; its keys are {', '.join(own)}")
        # what leaves a validator is no longer JSON, where a list may be a tuple
        said = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return own | {key: value for key, value in said.items() if value is not None or key not in own}

    @model_validator(mode="after")
    def _fits(self) -> TaskSection:
        if self.name == "recall" and (self.count or 0) > (self.keys or 0):
            raise ValueError(f"{self.count} facts have no distinct keys among {self.keys}: raise task.keys")
        if self.name == "retrieval" and (self.pairs or 0) > 26:
            raise ValueError("retrieval has 26 letters to ask for, so at most 26 pairs")
        room = (self.symbols or 0) ** (self.key_size or 0)
        if self.name == "remember" and (self.pairs or 0) > room:
            raise ValueError(f"{self.pairs} pairs have no distinct keys among {room}: raise task.key_size")
        return self


class CurriculumSection(Section):
    """`curriculum:` from short streams to long ones.

    A stage is a largest size N: start, start + step, ... end. A batch of it has N with probability `mix`,
    else a size uniform over start, start + step, ... N. `start` at the task's size: no curriculum, every
    batch is of that size.

    Attributes:
        unit: what sizes count, to be checked against the task's; left out: the task's.
        start, step, end: the stages; end left out: the task's size.
        counts: the stages one by one instead, rising; start and step are then only of the sizes drawn.
        advance_at: the metric of batches of N that ends a stage, looked at every `check_every` steps.
        warmup: steps that the rate rises from zero again at a new stage.
    """

    unit: Unit | None = None
    start: int = Field(default=1, ge=1)
    step: int = Field(default=1, ge=1)
    end: int | None = Field(default=None, ge=1)
    counts: tuple[int, ...] | None = Field(default=None, min_length=1)
    advance_at: float = Field(default=0.9, gt=0, le=1)
    mix: float = Field(default=0.5, ge=0, le=1)
    check_every: int = Field(default=25, ge=1)
    warmup: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _rises(self) -> CurriculumSection:
        if self.counts is not None:
            if self.end is not None:
                raise ValueError("counts names the stages already: leave out end")
            if any(a >= b for a, b in pairwise(self.counts)):
                raise ValueError(f"counts must rise: {', '.join(map(str, self.counts))}")
            if self.counts[0] < self.start:
                raise ValueError(f"the first of counts is {self.counts[0]}, less than start {self.start}")
        elif self.end is not None and self.end < self.start:
            raise ValueError(f"end {self.end} is less than start {self.start}")
        return self
