"""The keys of `memtok segment`, with their defaults; how a series is read is `data/series.py`'s. No torch."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from memtoken_cli.data.prompts import Hierarchy, parse_hierarchy
from memtoken_cli.data.series import SeriesKeys

ALIAS = "tss-base"
FORMATS = ("csv", "jsonl", "parquet", "labelstudio", "trainset", "audacity", "changepoints")
Format = Literal["csv", "jsonl", "parquet", "labelstudio", "trainset", "audacity", "changepoints"]
LENGTH = re.compile(r"(\d+(?:\.\d+)?)(s?)")


class SegmentKeys(SeriesKeys):
    """KEY=VALUE of `memtok segment`.

    Attributes:
        model: a built-in name, or a weights file of a method that offers segment.
        rows: what a result row is: a segment, one input row, or a row to label next.
        format: of the output; left out: by the extension of --out, else of the series.
        states: how many states there are without prompts, or how many unknown ones.
        unknown: auto: what is unlike every memory is `?` instead of a label.
        hierarchy: JSON, a coarse label to its finer ones, {"gait": ["walk", "run"]}, or that a level.
        order: auto: the order of states on the bank's own series may count on other series.
        min_len: the shortest segment, in rows or in the series' time (`2.5s`).
        smooth: multiplies what a switch costs.
        suggest: how many rows to suggest.
        prompts_mode: sync: a file of prompts is the complete list for this series; add: append it.
        bad_prompts: skip: bad lines are named and counted, exit 4.
        cache: of embeddings: auto (the user's cache directory), off, or a directory.
        stride: rows a token; auto: as the model says. Fewer show shorter segments and take longer.
        capacity: memory tokens of a state that the bank keeps.
        rebuild: encode the bank again with this model.
        session: serve JSONL requests from standard input.
    """

    model: str = Field(default=ALIAS, min_length=1)
    rows: Literal["segments", "states", "suggest"] = "segments"
    format: Format | None = None
    states: int | Literal["auto"] = "auto"
    unknown: Literal["off", "auto"] = "off"
    hierarchy: str | None = None
    order: Literal["auto", "off"] = "auto"
    min_len: int | str = 0
    smooth: float = Field(default=1.0, gt=0)
    suggest: int = Field(default=5, ge=1)
    prompts_mode: Literal["sync", "add"] = "sync"
    bad_prompts: Literal["fail", "skip"] = "fail"
    cache: str = "auto"
    stride: int | Literal["auto"] = "auto"
    capacity: int | Literal["inf"] = "inf"
    rebuild: bool = False
    session: bool = False

    @field_validator("states", "stride", "capacity")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("below 1")
        return value

    @field_validator("min_len")
    @classmethod
    def _length(cls, value: int | str) -> int | str:
        if not LENGTH.fullmatch(str(value)):
            raise ValueError("rows (40) or a time (2.5s)")
        return value

    @field_validator("hierarchy")
    @classmethod
    def _tree(cls, value: str | None) -> str | None:
        if value is not None:
            parse_hierarchy(value)
        return value

    @property
    def tree(self) -> Hierarchy | None:
        """What `hierarchy` says."""
        return None if self.hierarchy is None else parse_hierarchy(self.hierarchy)

    @property
    def per_token(self) -> int | None:
        """`stride`; None: as the model says."""
        return None if self.stride == "auto" else int(self.stride)

    @property
    def limit(self) -> int | None:
        """The bank's capacity; None: no limit."""
        return None if self.capacity == "inf" else int(self.capacity)

    def shortest(self, step: float) -> int:
        """`min_len` in rows of a series whose median step is `step`."""
        found = LENGTH.fullmatch(str(self.min_len))
        assert found is not None, "validated above"
        number = float(found[1])
        return round(number / step) if found[2] else int(number)
