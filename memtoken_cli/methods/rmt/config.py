"""The recipe's sections of `rmt`. No torch here."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from memtoken_cli.data.task_config import CurriculumSection, TaskSection
from memtoken_cli.methods.rmt.exam_config import BenchSection, ExamKeys, Kind
from memtoken_cli.methods.rmt.exam_config import EvaluateKeys as EvaluateKeys
from memtoken_cli.methods.rmt.generate_config import GenerateKeys as GenerateKeys
from memtoken_cli.recipe.sections import Section, TrainSection

LAYERWISE = ("prmt", "armt")  # what diagonal batching runs in parallel
CACHES = ("window", "sink", "full")  # keys and values, no memory tokens
UNCHANGED = ("none", "static")  # their state is no memory: every segment begins with the parameters of now

POSITIONS = re.compile(r"contiguous|pinned|zero|wrapped|offset:\d+")
BPTT = re.compile(r"full|replay|(last|window):\d+")


class Config(Section):
    """`rmt:`

    Attributes:
        policy: rmt, prmt or armt; or a rival: none, static, xl, window, sink, full.
        slots: memory tokens m (xl: cached positions). segment: text tokens S of a segment.
        mask: causal, or `blocks`: read and write blocks see all of themselves (the NeurIPS code's).
        positions: contiguous, pinned, zero, offset:K; wrapped only for imported ARMT checkpoints.
        state_norm: final (the backbone's last norm as it is), matched (and a learned gain that starts at
            the scale of the embeddings), none.
        state_noise: standard deviation of noise on the state at every boundary, in training only.
        sink: put the BOS embedding in front of the read block of every segment.
        align: left (a short tail), right (a short head), center (equal parts).
        loss: all tokens, the labels of a task only, or last:K segments.
        bptt: full, replay, last:K, window:K.
        restart: of window:K, the share of segments in front of which a reader forgets and begins with M_1,
            drawn from the seed; else M_1 would be trained where a document begins and nowhere else.
        trained: all, memory (the backbone is frozen) or lora.
        rank: of LoRA; alpha is four times as much.
        diagonal: auto, on or off; prmt and armt only.
        init: a safetensors file with the key names of the official checkpoints.
        d_mem: of armt's associative memory. normalise: its keys to length one. gate_z: its write gate also
            scales what z takes up (the published code's does not).
    """

    policy: Kind = "rmt"
    slots: int = Field(default=16, ge=0)
    segment: int = Field(default=256, ge=1)
    mask: Literal["causal", "blocks"] = "causal"
    positions: str = "pinned"
    state_norm: Literal["final", "matched", "none"] = "matched"
    state_noise: float = Field(default=0.0, ge=0)
    sink: Literal["none", "bos"] = "none"
    align: Literal["left", "right", "center"] = "left"
    loss: str = "labels"
    bptt: str = "full"
    restart: float = Field(default=1 / 16, ge=0, le=1)
    trained: Literal["all", "memory", "lora"] = "all"
    rank: int = Field(default=8, ge=1)
    diagonal: Literal["auto", "on", "off"] = "auto"
    init: str | None = None
    d_mem: int = Field(default=64, ge=1)
    normalise: bool = True
    gate_z: bool = False

    @field_validator("positions")
    @classmethod
    def _places(cls, text: str) -> str:
        if not POSITIONS.fullmatch(text):
            raise ValueError("positions: contiguous, pinned, zero or offset:K")
        return text

    @field_validator("bptt")
    @classmethod
    def _flow(cls, text: str) -> str:
        if not BPTT.fullmatch(text):
            raise ValueError("bptt: full, replay, last:K or window:K")
        return text

    @field_validator("loss")
    @classmethod
    def _scored(cls, text: str) -> str:
        if not re.fullmatch(r"all|labels|last:[1-9]\d*", text):
            raise ValueError("loss: all, labels or last:K")
        return text

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.policy in ("prmt", "armt", "static", "xl") and self.slots == 0:
            raise ValueError(f"policy: {self.policy} needs slots; policy: none has no memory")
        if self.policy == "prmt" and self.sink == "bos":
            raise ValueError("prmt has no column in front of its read block: sink: none")
        if self.policy == "armt" and (self.sink == "bos" or self.positions == "zero"):
            raise ValueError("armt has no read block: sink: none, positions: contiguous, pinned or wrapped")
        if self.positions == "wrapped" and self.policy != "armt":
            raise ValueError("positions: wrapped is that of imported armt checkpoints")
        return self


class BankKeys(Section):
    """`memtok bank export` takes no keys."""


class DataConfig(ExamKeys):
    """`data:` and what is tested.

    Attributes:
        path: the text of `task: {name: text}`, a file or a folder.
    """

    path: str | None = None


class TrainConfig(TrainSection):
    """`train:`

    Attributes:
        stop_at: end when the accuracy at the full size, over the last check_every steps, reaches this.
        micro: rows a backward.
    """

    batch: int = Field(default=64, ge=1)
    steps: int = Field(default=1000, ge=1)
    stop_at: float | None = Field(default=None, gt=0, le=1)
    micro: int | None = Field(default=None, ge=1)


SECTIONS = {"task": TaskSection, "curriculum": CurriculumSection, "bench": BenchSection}
