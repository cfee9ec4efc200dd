"""Keys of what `memtok evaluate` and `memtok bench` measure; no torch here.

ExamKeys stand in the section `data:` of a recipe, and with more beside them alone (KEY=VALUE) where an
artifact is measured.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from memtoken_cli.recipe.sections import Section

Kind = Literal["rmt", "prmt", "armt", "none", "static", "xl", "window", "sink", "full"]
Count = Annotated[int, Field(ge=1)]


class ExamKeys(Section):
    """The exam.

    Attributes:
        tests: sequences of the test set, drawn from the seed. batch: how many are answered at once.
        sizes: what is tested, in the unit that the task counts; left out: the task's own size. For a text,
            segments of a row; left out: twice as many as in training.
        teacher: each answer token is read as it should be, whatever the model said: this flatters.
        plot: a picture of the figures (.png, .svg, .pdf).
    """

    tests: int = Field(default=1000, ge=1)
    batch: int = Field(default=128, ge=1)
    sizes: tuple[Count, ...] = ()
    teacher: bool = False
    plot: str | None = None


class EvaluateKeys(ExamKeys):
    """Of `memtok evaluate ARTIFACT`.

    Attributes:
        task: keys to change in the trained task (task.length=48), or another task that has the same
            vocabulary (task.name=reverse).
        path: the text, where the task reads one. model: the language model, where it is not the artifact's.
        seed: of the test set; left out: the one that was trained with.
    """

    task: dict[str, Any] = Field(default_factory=dict)
    path: str | None = None
    model: str | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class BenchSection(Section):
    """`bench:` policies of one recipe beside each other.

    Attributes:
        policies: which; left out: the recipe's own and none.
        lengths: tokens that are read for the speed. Left out: 8 and 64 segments, or none where quality is
            measured.
        generate: tokens that are then generated. repeats: readings of each length; the fastest counts.
        quality: train every policy with the recipe's seeds, steps and data, and test all. Left out: where
            the recipe expects something of it, and no lengths are given.
        seeds: trainings of each policy; left out: the recipe's seed.
        flat: train the rivals also without a curriculum: it helps some less, or hurts.
    """

    policies: tuple[Kind, ...] = ()
    lengths: tuple[Count, ...] = ()
    generate: int = Field(default=32, ge=2)
    repeats: int = Field(default=2, ge=1)
    quality: bool | None = None
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = ()
    flat: bool = False
