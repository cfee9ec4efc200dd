"""The toy's own section of a recipe and its KEY=VALUE options."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """width: numbers a token has. case: whether words differ by it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=64, ge=1)
    case: Literal["keep", "fold"] = "fold"
