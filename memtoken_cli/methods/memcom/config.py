"""MemCom's sections of a recipe and its KEY=VALUE options of `memtok compress`. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from memtoken_cli.recipe.sections import Section, TrainSection

Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]
READING = frozenset({"compressor", "template", "instruction"})


class Config(Section):
    """`memcom:`. The first three say what to compress with and how; the rest is the compressor's shape, which a
    trained compressor brings along.

    Attributes:
        compressor: the trained compressor (the artifact that `memtok train` printed).
        template: how shots become text; left out: the one of the compressor's training.
        instruction: a header kept in front of the shots.
        layers: memory of its own for every layer, or one (the last layer's) that enters as a soft prompt.
        writer: memory tokens that cross-attend to the source layer by layer, or (`gist`) that are appended to it.
        weights: what the second phase trains of the source and memory stacks: all, low-rank parts or nothing.
        rank: of the low-rank parts.
        slots: the most memory tokens a prompt can have.
        positions: of the memory tokens in the target: 0..m-1, or spread over the source's.
        rotary: cross-attention sees where tokens stand (ours), or content alone.
        enters: the memory stack's output at layer l is read by the target's layer l (the `same`), or l + 1.
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

    @model_validator(mode="after")
    def _gist_has_layers(self) -> Config:
        if self.writer == "gist" and (self.layers == "last" or self.weights == "frozen"):
            raise ValueError("writer: gist keeps every layer's keys and values, and trains its stack")
        if self.writer == "gist" and self.positions == "spread":
            raise ValueError("writer: gist places its tokens behind the source: positions: packed")
        return self


class StreamSection(Section):
    """`data.stream:` a seeded stream of in-context classification tasks; see `data.icl.Stream`."""

    classes: int = Field(default=8, ge=2)
    pool: int = Field(default=6, ge=1)
    content: int = Field(default=2, ge=1)
    filler: int = Field(default=3, ge=0)
    words: int = Field(default=64, ge=2)
    fillers: int = Field(default=8, ge=1)
    labels: int = Field(default=8, ge=2)


class DataConfig(Section):
    """`data:` what compressors learn from: a stream of tasks, or shots and a corpus, mixed.

    Attributes:
        stream: synthetic tasks; excludes the other two.
        shots: labelled records (JSONL, CSV): tasks are drawn from them.
        corpus: a text file or folder, cut into a source and what follows it.
        share: of the batches that come from `shots` where there is a corpus too.
        heldout: the share of the labels of `shots` that training never sees; bench and evaluate draw from them.
        counts: how many shots a task's prompt has; one of them is drawn for each batch.
        classes: how many labels a task of `shots` has.
        queries: asked of each prompt in one step.
        source, continuation: tokens of a piece of the corpus.
        limit: at most this many records of the corpus.
    """

    stream: StreamSection | None = None
    shots: str | None = None
    corpus: str | None = None
    share: float = Field(default=0.5, ge=0, le=1)
    heldout: float = Field(default=0.2, ge=0, lt=1)
    counts: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(32,), min_length=1)
    classes: int = Field(default=16, ge=2)
    queries: int = Field(default=8, ge=1)
    source: int = Field(default=2048, ge=2)
    continuation: int = Field(default=256, ge=1)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.stream is None) == (self.shots is None and self.corpus is None):
            raise ValueError("give stream, or shots and/or corpus")
        return self


class TrainConfig(TrainSection):
    """`train:` the first phase trains the new parts (memory tokens, cross-attention); the second, of whole_steps,
    the whole compressor.

    Attributes:
        whole_steps, whole_lr: of the second phase.
        ratios: one of them is drawn for each batch, so that one compressor serves all.
        distill: the share of the loss that is KL to what the full prompt would predict; the rest is cross-entropy.
        autoencode: weight of predicting the source itself from its memory (ICAE's pretraining).
    """

    steps: int = Field(default=1000, ge=1)
    whole_steps: int = Field(default=1000, ge=0)
    whole_lr: float = Field(default=2e-5, gt=0)
    ratios: tuple[Ratio, ...] = Field(default=(2, 4, 8, 16), min_length=1)
    distill: float = Field(default=0.5, ge=0, le=1)
    autoencode: float = Field(default=0.0, ge=0)
