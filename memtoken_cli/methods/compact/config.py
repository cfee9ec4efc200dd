"""Keys of `compact`, for the command line and its section of a recipe. No torch here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from memtoken_cli.data.render import Template
from memtoken_cli.engine.compare_config import BenchConfig
from memtoken_cli.io.errors import UsageError


class Config(BaseModel):
    """How a prompt is written and compacted.

    Attributes:
        template: how a shot is written, such as "Query: {input}\\nIntent: {output}\\n\\n"; left out: fits the
            records.
        instruction: text in front of the shots. order: as given, or shuffled by the seed.
        truncate: "shots" drops the last shots that the model's context cannot hold; they are counted.
        chunk: tokens of a piece that is compacted alone where the prompt is longer than the context; "auto":
            half the context.
        budget: how many tokens each head keeps: adaptive (over all layers), adashare (heads of a layer more
            alike), uniform (as many in each).
        cap: no head keeps more than this many times the mean.
        bias: kept tokens stand for dropped ones by a bias of their own (mass), or by one that is folded into
            their keys (none: what an ordinary cache can hold).
        queries: what the memory is prepared for: the shots themselves ("shots"), a repetition ("repeat"),
            "auto", or a file of typical queries.
        references, tokens: shots read as queries, and their tokens, at most; left out: as many as `enough`
            says.
        refine: steps of distillation after the closed form. data: a file of unlabelled queries for it.
        calibrate: fit a bias a label on the shots. dtype: of the stored keys and values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | None = None
    instruction: str = ""
    order: Literal["given", "shuffled"] = "given"
    truncate: Literal["error", "shots"] = "error"
    chunk: Literal["none", "auto"] | int = "none"
    budget: Literal["adaptive", "adashare", "uniform"] = "adaptive"
    cap: float | None = Field(None, ge=1)
    bias: Literal["none", "mass"] = "none"
    queries: str = "auto"
    references: int | None = Field(None, ge=2)
    tokens: int | None = Field(None, ge=16)
    refine: int = Field(0, ge=0)
    data: str | None = None
    calibrate: Literal["auto", "off"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @field_validator("template")
    @classmethod
    def _parsed(cls, text: str | None) -> str | None:
        try:
            return None if text is None else Template.parse(text).text
        except UsageError as error:
            raise ValueError(error.message) from error

    @field_validator("chunk")
    @classmethod
    def _positive(cls, chunk: str | int) -> str | int:
        if isinstance(chunk, int) and chunk < 16:
            raise ValueError("a piece holds at least 16 tokens")
        return chunk


class DataConfig(BenchConfig):
    """What `bench` compares on."""
