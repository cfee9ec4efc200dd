"""MemCom's sections of a recipe and its KEY=VALUE options of `memtok compress`. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from memtoken_cli.data.render import Template
from memtoken_cli.data.stream_config import LessonSection, StreamSection
from memtoken_cli.engine.compare_config import Ratio, Rival
from memtoken_cli.io.errors import UsageError
from memtoken_cli.recipe.sections import Section, TrainSection

READING = frozenset({"compressor", "template", "instruction"})


class Config(Section):
    """`memcom:`. The first three say what to compress with and how; the rest is the compressor's shape, which
    a trained compressor brings along.

    Attributes:
        compressor: the trained compressor (the artifact that `memtok train` printed).
        template: how shots become text; left out: as in the compressor's training.
        instruction: a header kept in front of the shots.
        layers: memory of its own for every layer, or one (the last layer's) that enters as a soft prompt.
        writer: memory tokens cross-attend to the source layer by layer, or (`gist`) are appended to it.
        weights: what the second phase trains of the source and memory stacks: all, low-rank parts or nothing.
        rank: of the low-rank parts.
        slots: the most memory tokens a prompt can have.
        positions: of the memory tokens in the target: 0..m-1, or spread over the source's.
        rotary: cross-attention sees where tokens stand (ours), or content alone.
        enters: what the memory stack's layer l makes is read by the target's layer l (`same`), or l + 1.
        start: what cross-attention adds before training: nothing, or a copy of the source's states (ours).
    """

    compressor: str | None = None
    template: str | None = None
    instruction: str = ""
    layers: Literal["all", "last"] = "all"
    writer: Literal["cross", "gist"] = "cross"
    weights: Literal["full", "lora", "frozen"] = "full"
    rank: int = Field(default=16, ge=1)
    slots: int = Field(default=512, ge=1)
    positions: Literal["packed", "spread"] = "packed"
    rotary: bool = True
    enters: Literal["same", "next"] = "same"
    start: Literal["zero", "copy"] = "zero"

    @field_validator("template")
    @classmethod
    def _parsed(cls, text: str | None) -> str | None:
        try:
            return None if text is None else Template.parse(text).text
        except UsageError as error:
            raise ValueError(error.message) from error

    @model_validator(mode="after")
    def _gist_has_layers(self) -> Config:
        if self.writer == "gist" and (self.layers == "last" or self.weights == "frozen"):
            raise ValueError("writer: gist keeps every layer's keys and values, and trains its stack")
        if self.writer == "gist" and self.positions == "spread":
            raise ValueError("writer: gist places its tokens behind the source: positions: packed")
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """What a trained compressor brings along."""
        return self.model_dump(mode="json", exclude=set(READING))


class ExamSection(Section):
    """`data.exam:` what bench and evaluate measure on: tasks that no training has seen.

    Attributes:
        tasks, queries: how many, and of each.
        ratios: budgets; rivals: engine baselines beside the full prompt.
        variants: other compressors that bench trains with the same steps and data: `soft` (layers: last),
            `gist` (writer: gist), `frozen`, `lora` (weights).
    """

    tasks: int = Field(default=50, ge=1)
    queries: int = Field(default=20, ge=1)
    ratios: tuple[Ratio, ...] = Field(default=(4, 8), min_length=1)
    rivals: tuple[Rival, ...] = ("none", "fewer")
    variants: tuple[Literal["soft", "gist", "frozen", "lora"], ...] = ("soft",)


class DataConfig(Section):
    """`data:` what compressors learn from: a stream of tasks, or shots and a corpus, mixed.

    Attributes:
        stream: synthetic tasks; excludes the other two. lessons: see there.
        shots: labelled records (JSONL, CSV): tasks are drawn from them.
        corpus: a text file or folder, cut into a source and what follows it.
        share: of the batches that come from `shots` where there is a corpus too.
        heldout: the share of the labels of `shots` that training never sees; exams draw from them.
        counts: how many shots a task's prompt has; one of them is drawn for each batch.
        classes: how many labels a task of `shots` has.
        queries: asked of each prompt in one step.
        source, continuation: tokens of a piece of the corpus.
        limit: at most this many records of the corpus.
    """

    stream: StreamSection | None = None
    lessons: tuple[LessonSection, ...] = ()
    shots: str | None = None
    corpus: str | None = None
    share: float = Field(default=0.5, ge=0, le=1)
    heldout: float = Field(default=0.2, ge=0, lt=1)
    counts: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(32,), min_length=1)
    classes: int = Field(default=16, ge=2)
    queries: int = Field(default=8, ge=1)
    source: int = Field(default=2048, ge=2)
    continuation: int = Field(default=256, ge=2)
    limit: int | None = Field(default=None, ge=1)
    exam: ExamSection = Field(default_factory=ExamSection)

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.stream is None) == (self.shots is None and self.corpus is None):
            raise ValueError("give stream, or shots and/or corpus")
        return self


class TrainConfig(TrainSection):
    """`train:` the first phase, of steps, trains the new parts (memory tokens, cross-attention); the second,
    of whole_steps, the whole compressor.

    Attributes:
        whole_steps, whole_lr: of the second phase.
        ratios: one of them is drawn for each batch, so that one compressor serves all.
        distill: the share of the loss that is KL to what the full prompt predicts; the rest is cross-entropy.
        autoencode: weight of predicting the source itself from its memory (ICAE's pretraining).
    """

    steps: int = Field(default=1000, ge=1)
    whole_steps: int = Field(default=1000, ge=0)
    whole_lr: float = Field(default=2e-5, gt=0)
    ratios: tuple[Ratio, ...] = Field(default=(2, 4, 8, 16), min_length=1)
    distill: float = Field(default=0.5, ge=0, le=1)
    autoencode: float = Field(default=0.0, ge=0)
