"""MemPromptTSS's sections of a recipe: the paper's backends, what they learn from, and how. No torch here.

Keys of `memtok segment` and of `memtok evaluate` stand in files of their own and are only named here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys as EvaluateKeys
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys as SegmentKeys
from memtoken_cli.recipe.sections import Section, TrainSection

Share = Annotated[float, Field(gt=0, le=1)]

RELEASED: dict[str, Any] = {
    "time_attention": False,
    "select_on": "test",
    "stats_from": "all",
    "placement": "single",
    "eval_prompts": "drawn",
    "tail": "drop",
    "transfer_val": "train",
    "dead_tail": True,
    "empty_read": "bias",
    "cache": False,
    "start": "random",
}


class Config(Section):
    """`memprompttss:` a backend of the paper and its protocol. The shape stays with the trained weights.

    Attributes:
        backend: memprompt keeps prompts in a bank; prompttss, its ancestor, shows a window its own prompts.
        width, heads, blocks, encoder_layers, writer_layers, dropout: of the network.
        patch, patch_stride: rows of a patch, and between two.
        rows, stride: of a window; windows: of a subsequence, which has (windows - 1) * stride + rows rows.
        context: rows around a prompt that its token is written from; left out: as many as a window has.
        capacity: tokens that the bank keeps, the newest; left out: all.
        paper_compat: the released code's choices in all of the following keys that are not given.
        time_attention: the encoder attends over time (ours), or over the rows of a batch.
        select_on: the split whose figures choose the epoch. stats_from: the files that mean and std come
            from.
        placement: prompts spread over rows of a few blocks, or all on one row near the start (`single`).
        eval_prompts: fixed by (seed, series, iteration), or different in every epoch (`drawn`).
        tail: rows after the last whole subsequence are padded and masked, or dropped.
        transfer_val: what chooses the epoch where another folder is the test: held-out rows of the source, or
            rows that were trained on.
        dead_tail: the last block updates the memory, which nothing reads.
        empty_read: an empty bank is skipped, or still adds a bias.
        cache: windows of a series are encoded once for all iterations at test time.
        start: copy (ours): before training a window answers with what is said in its memory, as labels start
            as loud as the rest of a prompt, readers pass on what they read, and the head mirrors the labels.
            random: as torch starts such layers.
        token_time: memory tokens tell their place in a window. window_stats: a token with the window's mean
            and spread, which its own normalisation takes away. level_token: prompts tell their level. Not the
            paper's.
    """

    backend: Literal["memprompt", "prompttss"] = "memprompt"
    width: int = Field(default=128, ge=2)
    heads: int = Field(default=2, ge=1)
    blocks: int = Field(default=6, ge=1)
    encoder_layers: int = Field(default=3, ge=0)
    writer_layers: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    patch: int = Field(default=16, ge=1)
    patch_stride: int = Field(default=8, ge=1)
    rows: int = Field(default=256, ge=1)
    stride: int = Field(default=64, ge=1)
    windows: int = Field(default=8, ge=1)
    context: int | None = Field(default=None, ge=1)
    capacity: int | None = Field(default=None, ge=1)
    paper_compat: bool = False
    time_attention: bool = True
    select_on: Literal["validation", "test"] = "validation"
    stats_from: Literal["train", "all"] = "train"
    placement: Literal["spread", "single"] = "spread"
    eval_prompts: Literal["fixed", "drawn"] = "fixed"
    tail: Literal["pad", "drop"] = "pad"
    transfer_val: Literal["held_out", "train"] = "held_out"
    dead_tail: bool = False
    empty_read: Literal["skip", "bias"] = "skip"
    cache: bool = True
    start: Literal["copy", "random"] = "copy"
    token_time: bool = False
    window_stats: bool = False
    level_token: bool = False

    @model_validator(mode="before")
    @classmethod
    def _released(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("paper_compat") is True:
            return RELEASED | given
        return given

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of 2 x heads ({self.heads})")
        if self.rows % self.stride:
            raise ValueError(f"rows {self.rows} are not a multiple of stride {self.stride}")
        for name, rows in (("rows", self.rows), ("context", self.context or self.rows)):
            if rows < self.patch or (rows - self.patch) % self.patch_stride:
                raise ValueError(f"{name} {rows}: not patch {self.patch} + a multiple of {self.patch_stride}")
        if self.patch_stride > self.patch:
            raise ValueError(
                f"patch_stride {self.patch_stride} leaves rows out between patches of {self.patch}"
            )
        return self

    @property
    def length(self) -> int:
        """Rows of a subsequence."""
        return (self.windows - 1) * self.stride + self.rows

    @property
    def crop(self) -> int:
        """Rows that a prompt's token is written from."""
        return self.context or self.rows


class GeneratedSection(Section):
    """`data.generated:` series made from the seed, where there is no folder; the states are local to a
    series.

    Attributes:
        series, rows, channels: how many series, their length and width. states: of each.
    """

    series: int = Field(default=24, ge=3)
    rows: int = Field(default=1024, ge=64)
    channels: int = Field(default=3, ge=1)
    states: int = Field(default=4, ge=2)


class PaperSection(Section):
    """`data.paper:` the exam of the paper's protocol.

    Attributes:
        budget: prompts of the single step, as a share of a subsequence's rows.
        iterations, prompts: of the iterative exam.
        hit: the share of a subsequence's windows that prompts lie in, where they are spread.
    """

    budget: Share = 0.05
    iterations: int = Field(default=8, ge=1)
    prompts: int = Field(default=4, ge=1)
    hit: Share = 0.25


class DataConfig(EvaluateKeys):
    """`data:` labelled series, and what they are examined by.

    Attributes:
        path: a folder of labelled files; left out: generated ones.
        transfer: another folder, which is the test; `path` is then trained on alone.
        levels: of granularity, all on the same outputs; group: so many classes of a level are one of the
            next.
        train, valid: shares of the subsequences, in the files' order; the rest is the test.
    """

    path: str | None = None
    transfer: str | None = None
    levels: int = Field(default=1, ge=1, le=8)
    group: int = Field(default=2, ge=2)
    train: float = Field(default=0.7, gt=0, lt=1)
    valid: float = Field(default=0.15, ge=0, lt=1)
    generated: GeneratedSection = Field(default_factory=GeneratedSection)
    paper: PaperSection = Field(default_factory=PaperSection)

    @model_validator(mode="after")
    def _leaves_a_test(self) -> DataConfig:
        if self.train + self.valid >= 1:
            raise ValueError("train and valid leave no test")
        return self


class TrainConfig(TrainSection):
    """`train:` one step an iteration: a batch of subsequences starts with an empty bank, which grows over
    `iterations` steps of `prompts` prompts each.

    Attributes:
        epochs: over all subsequences and levels; steps, where given: at most so many.
        patience: epochs without a better figure of the split that chooses, before training ends.
        iterations, prompts: of a batch.
        hits: shares of the windows that prompts lie in; one is drawn for each batch.
        p_wrong: the chance that a prompt's payload is false.
        relabel: the share of the batches in which every subsequence has its classes renamed at random, so
            that names are learned from prompts alone; for ids that are local to a file. Not the paper's.
        micro: subsequences a backward; two ranks then give the bits of one. Left out: a rank's share at once.
    """

    epochs: int = Field(default=10, ge=1)
    steps: int | None = Field(default=None, ge=1)  # type: ignore[assignment]
    batch: int = Field(default=4, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    warmup: float = Field(default=0.0, ge=0, le=1)
    decay: Literal["cosine", "linear", "constant"] = "constant"
    patience: int = Field(default=10, ge=1)
    iterations: int = Field(default=8, ge=1)
    prompts: int = Field(default=4, ge=1)
    hits: tuple[Share, ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    p_wrong: float = Field(default=0.0, ge=0, le=1)
    relabel: float = Field(default=0.0, ge=0, le=1)
    micro: int | None = Field(default=None, ge=1)
