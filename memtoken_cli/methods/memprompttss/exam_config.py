"""What `memtok evaluate` and `memtok bench` measure, as keys; no torch here.

They stand in the section `data:` of a recipe, and alone (KEY=VALUE) where an artifact is measured.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memtoken_cli.recipe.sections import Section

Task = Literal["paper", "clicks", "transfer", "unsup", "prompts", "speed"]
Count = Annotated[int, Field(ge=1)]

CLICK_ROWS = (
    "time",
    "knn",
    "knn-smooth",
    "knn-potts",
    "logreg-smooth",
    "forest-smooth",
    "logreg-potts",
    "mix",
    "tss",
    "ceiling",
)
TRANSFER_ROWS = (
    "knn",
    "knn-potts",
    "logreg-smooth",
    "logreg-potts",
    "forest-smooth",
    "forest-full",
    "tss-off",
    "tss-auto",
    "tss-empty",
    "tss-shuffled",
    "tss-home-shuffled",
    "majority",
)
PROMPT_ROWS = ("interval", "boundary", "negative", "levels", "noise", "calibration", "unknown", "suggest")
SPEED_ROWS = ("encode", "refine", "refine-cold", "process")
UNSUP_ROWS = ("tss", "whole", "claspy", "clap", "pelt", "binseg", "window")


class EvaluateKeys(Section):
    """The exam.

    Attributes:
        task: clicks: simulated on one series; transfer: prompts on a series, figures on the next; unsup:
            without prompts; prompts: other kinds of prompts; speed: seconds; paper: the published protocol.
            Left out: paper for a recipe, clicks for a model's file, transfer for a bank's.
        channels: which columns to use (names, globs, positions, `0-22`); left out: all.
        contestants: rows of the table; left out: all that the task has.
        subject: what the rows `tss*` are: a built-in model, or a file.
        clicks: simulated on each series.
        k: prompts a state, where they are drawn. seeds: how often they are drawn.
        pairs: transfer from a series to the next: in the order of the files' names (`next`), only where both
            have one prefix up to the last `_` (`same`), or only where not (`other`).
        shuffle: transfer also to the next series with its segments in another order.
        coarse: fine states of one coarse state, where they are many-to-one: {1: 1, 2: 1}; left out: merged in
            pairs by first occurrence.
        longest: rows of a series that other packages than ours are given without prompts: their time grows
            with the square.
        limit: at most so many series. smoke: a short form of the task, under a minute.
        plot: the curve of accuracy over clicks as a picture (.png, .svg, .pdf).
        sizes: rows of the speed task's series.
    """

    task: Task | None = None
    channels: str | None = None
    contestants: tuple[str, ...] | None = Field(default=None, min_length=1)
    subject: str = Field(default="tss-base", min_length=1)
    clicks: int = Field(default=30, ge=1, le=1000)
    k: tuple[Count, ...] = Field(default=(1, 3, 5), min_length=1)
    seeds: int = Field(default=3, ge=1)
    pairs: Literal["next", "same", "other"] = "next"
    shuffle: bool = True
    coarse: dict[int, int] | None = None
    longest: int = Field(default=20_000, ge=1)
    limit: int | None = Field(default=None, ge=1)
    smoke: bool = False
    plot: str | None = None
    sizes: tuple[Count, ...] = Field(default=(5_000, 100_000, 1_000_000), min_length=1)
