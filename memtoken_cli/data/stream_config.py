"""Keys of `data.stream` and `data.lessons`, which any method's recipe can have. No torch here."""

from pydantic import BaseModel, ConfigDict, Field


class StreamSection(BaseModel):
    """`data.stream:` a seeded stream of in-context classification tasks; see `data.icl.Stream`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: int = Field(default=4, ge=2)
    pool: int = Field(default=1, ge=1)
    content: int = Field(default=1, ge=1)
    filler: int = Field(default=2, ge=0)
    words: int = Field(default=16, ge=2)
    fillers: int = Field(default=8, ge=1)
    labels: int = Field(default=4, ge=2)
    noise: float = Field(default=0.4, ge=0, le=1)


class LessonSection(BaseModel):
    """`data.lessons:` easy tasks beside the hard ones, which neither a new backbone nor a soft prompt learns
    alone.

    Attributes:
        share: how often, relative to the other lessons.
        pool, content, filler, noise, shots: of its tasks; left out: the stream's (and data.counts).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(gt=0)
    pool: int | None = Field(default=None, ge=1)
    content: int | None = Field(default=None, ge=1)
    filler: int | None = Field(default=None, ge=0)
    noise: float | None = Field(default=None, ge=0, le=1)
    shots: int | None = Field(default=None, ge=2)
