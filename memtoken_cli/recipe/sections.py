"""The sections that recipes of every method share. A method's own stand in methods/<name>/config.py."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_MODEL = "smollm2-135m"


class Section(BaseModel):
    """A part of a recipe: closed (an unknown key is an error) and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainSection(Section):
    """`train:` where a method has no TrainConfig of its own.

    Attributes:
        steps: optimiser steps.
        batch: examples a step, over all processes.
        lr: the peak learning rate.
        warmup: the share of the steps that the rate rises from zero.
        decay: what it does after that. decay_to: the share of the peak that it ends at.
        clip: the largest gradient norm; 0 for none.
        betas: AdamW's.
        save_every, log_every: in steps.
    """

    steps: int = Field(default=100, ge=1)
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.02, ge=0, le=1)
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    decay_to: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    save_every: int = Field(default=100, ge=1)
    log_every: int = Field(default=10, ge=1)


class DataSection(Section):
    """`data:` where a method has no DataConfig of its own.

    Attributes:
        path: a local file or folder, or the id of a data set on the Hugging Face hub; None: made from the
        seed. split: which part of a hub data set. stream: read a hub data set as it comes instead of
        downloading it whole. limit: at most this many records.
    """

    path: str | None = None
    split: str = "train"
    stream: bool = False
    limit: int | None = Field(default=None, ge=1)


class NamedModel(Section):
    """`model: {name: ...}`: a local directory or GGUF file, a hub id, or a built-in alias."""

    name: str = Field(default=DEFAULT_MODEL, min_length=1)


class NewModel(Section):
    """`model: {new: ...}`: a small causal LM with fresh weights, trained first if `pretrain` says so.

    Attributes:
        layers, width, heads, kv_heads, head_dim, ffn: its size; left out, kv_heads is `heads`, head_dim
            width / heads and ffn 4 x width.
        vocab: rows of the embedding; left out: as many as the tokenizer or the task has.
        context: the longest sequence, in tokens.
        init_std: of the embeddings at the start; left out: as of the other matrices, 1/sqrt(width).
        scale_residual: start the matrices that write into the residual stream smaller, by 1/sqrt(2 x layers).
        tie: embeddings and LM head are one matrix.
    """

    # not qwen2: transformers reads each such folder with that family's own tokenizer
    new: Literal["llama", "gpt2", "qwen3", "gemma3"]
    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=2)
    ffn: int | None = Field(default=None, ge=1)
    vocab: int | None = Field(default=None, ge=2)
    context: int = Field(default=2048, ge=2)
    init_std: float | None = Field(default=None, gt=0)
    scale_residual: bool = False
    tie: bool = True
    pretrain: TrainSection | None = None

    @model_validator(mode="after")
    def _divides(self) -> NewModel:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.new == "gpt2" and (self.kv_heads not in (None, self.heads) or self.head_dim is not None):
            raise ValueError("gpt2 has as many kv_heads as heads, each of width / heads")
        return self
