"""What a comparison or an evaluation may be told, as models of a recipe's section. No torch here."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..data.stream_config import LessonSection, StreamSection

Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Rival = Literal["none", "fewer", "random", "uniform", "knorm", "snapkv", "h2o", "kvzip", "expected"]


class _Scoring(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        None, description="labelled queries: JSONL or CSV; for a pool, where queries come from"
    )
    shots: str | None = Field(None, description="the prompt's shots")
    labels: Literal["whole", "first_token"] = Field(
        "whole", description="score whole labels or their first token"
    )
    calibrate: bool = Field(True, description="also report accuracy with a bias a label, fitted on the shots")
    queries: int = Field(200, ge=1, description="at most so many queries (a draw)")
    batch_tokens: int = Field(4096, ge=1, description="tokens scored in one forward")
    seed: int = Field(0, ge=0)


class EvaluateConfig(_Scoring):
    """Measuring one artifact; with `shots`, beside the whole prompt and fewer shots."""

    queries: int = Field(100_000, ge=1, description="at most so many queries")


class BenchConfig(_Scoring):
    """Comparing methods within one budget: on `shots` and `path`, on many draws of a labelled `pool`, or on
    tasks of a synthetic `stream`."""

    pool: str | None = Field(None, description="labelled records to draw tasks from: JSONL or CSV")
    classes: int = Field(16, ge=2, description="labels of a draw")
    per_class: int = Field(6, ge=1, description="shots of each label")
    draws: int = Field(1, ge=1, description="tasks drawn, with seeds seed, seed + 1, ...")
    ratios: tuple[Ratio, ...] = Field((2, 4, 8, 16), min_length=1)
    rivals: tuple[Rival, ...] = Field(
        ("none", "fewer", "uniform", "snapkv", "h2o", "kvzip", "expected"),
        description="baselines; the full prompt always runs",
    )
    stream: StreamSection | None = Field(None, description="synthetic tasks, made from the seed")
    lessons: tuple[LessonSection, ...] = Field((), description="easier tasks that a new model learns first")
    counts: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (32,), min_length=1, description="shots of a task of the stream; exams have the most"
    )
    plot: str | None = Field(None, description="quality against ratio as a picture (.png, .svg, .pdf)")

    @model_validator(mode="after")
    def _one_source(self) -> "BenchConfig":
        if self.stream is not None:
            if self.pool or self.shots or self.path:
                raise ValueError("give stream, or a pool, or shots and path, not both")
            return self
        if self.pool is None and (self.shots is None or self.path is None):
            raise ValueError("give pool=FILE, or shots=FILE and path=FILE")
        if self.pool is not None and self.shots is not None:
            raise ValueError("give pool=FILE or shots=FILE, not both")
        if self.pool is None and self.draws != 1:
            raise ValueError("draws needs a pool or a stream; shots and path are one task")
        return self
