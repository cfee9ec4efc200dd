"""What a bank knows of its procedures beside their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memtoken_cli.methods.tokmem.config import AddressMode, Feature, Following, SegmentEnd, by_parts

# what two banks must agree on to become one
ALIKE = (
    "address", "tokens", "features", "segment_end", "prompt", "adapter", "shrinkage", "scatter", "following",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What is known of a procedure beside its tensors.

    instruction: digest of its text, or "". block: the id of what it was added with. described: it was made
    of its description, without samples. score: its own on the validation split.
    """

    name: str
    description: str = ""
    instruction: str = ""
    samples: int = 0
    block: str = ""
    described: bool = False
    score: float | None = None


@dataclass(frozen=True)
class Block:
    """What was added at once. id: digest of its samples and configuration."""

    id: str
    procedures: int
    samples: int


@dataclass(frozen=True)
class Meta:
    """What all rows have in common.

    prompt: digest of the chat template. dtype: of the backbone when features were collected. adapter: digest
    of what the backbone wears. softmax: what trained addresses compete with. history: what was done to it.
    approximate: why scores are not those of a joint fit. notes: metrics and recipe digest, JSON.
    """

    address: AddressMode = "lda"
    tokens: int = 1
    features: tuple[Feature, ...] = ()
    segment_end: SegmentEnd = "none"
    max_procedures: int = 1
    prompt: str = ""
    dtype: str = "float32"
    adapter: str | None = None
    softmax: Literal["full", "bank"] = "full"
    shrinkage: float = 0.1
    keep_val: int = 4
    keep_features: bool = False
    scatter: Literal["shared", "frozen"] = "shared"
    following: Following = "parts"
    blocks: tuple[Block, ...] = ()
    history: tuple[str, ...] = ()
    approximate: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_parts(self) -> bool:
        """Whether closed-form addresses read queries in parts."""
        return self.address == "lda" and by_parts(self.following, self.features)
