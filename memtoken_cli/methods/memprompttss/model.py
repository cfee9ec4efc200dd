"""What a model must offer so that `segment` can use it: encode a series, write prompts, read them back.

The shipped `tss-base` and every trained backend stand behind this protocol; decoding (Potts chain, hard
prompts), the bank's file and all output belong to others.

Shape suffixes: T rows of a series, C channels, N tokens (N = ceil(T / stride)), F hand features of a token,
E embedding width, P prompts, K states of a level, M tokens of one prompt's neighbourhood, D width of a
memory token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.io import artifact
from memtoken_cli.io.errors import UsageError


@dataclass(frozen=True, eq=False)
class Encoded:
    """A series as tokens.

    rows: T. stride: rows a token. hand_NF: hand features, z-scored over the series (float16), or None for a
    model that has none. embed_NE: embeddings (float16: rounded before any use, cached or not). channels: the
    used columns, in the order of hand_NF's blocks. gap_N: tokens that lie in a long gap and get no state.
    """

    rows: int
    stride: int
    hand_NF: Tensor | None
    embed_NE: Tensor
    channels: tuple[str, ...]
    gap_N: Tensor

    @property
    def tokens(self) -> int:
        return int(self.embed_NE.shape[0])


@dataclass(frozen=True, eq=False)
class Written:
    """One row of the bank: what a prompt left behind.

    prompt: with rows of the series it was given for. series: that series' name. token_D: the memory token
    (float32). at_M: the neighbourhood's token indices; embed_ME, hand_MF: what stood there (float16).
    stride, tokens: of that series. channels: of that series.
    """

    prompt: Prompt
    series: str
    stride: int
    tokens: int
    channels: tuple[str, ...]
    token_D: Tensor
    at_M: Tensor
    embed_ME: Tensor
    hand_MF: Tensor | None


@dataclass(frozen=True, eq=False)
class Unary:
    """What the bank says about every token at one level.

    labels: the states; cost_NK: float32, low is likely; lam: what a switch costs; temperature: divides
    costs for confidence. switch_KK: a switch's own cost where order is known (added to lam), or None.
    free_NK: costs as they are without negative prompts, where there are some that change them.
    """

    labels: tuple[str, ...]
    cost_NK: Tensor
    lam: float
    temperature: float
    switch_KK: Tensor | None = None
    free_NK: Tensor | None = None

    def times(self, share: float) -> Unary:
        """The same with every token's costs multiplied."""
        if share == 1:
            return self
        free_NK = None if self.free_NK is None else self.free_NK * share
        return replace(self, cost_NK=self.cost_NK * share, free_NK=free_NK)


@dataclass(frozen=True, eq=False)
class Strange:
    """[N] how unlike every prompt a token is. threshold: above it a token is unknown; known: below it, and up
    to twice as much, a user may still be asked about it (`suggest`)."""

    value_N: Tensor
    threshold: float
    known: float


class Model(Protocol):
    """name: what the user calls it. digest: of its weights. features: version of the hand features."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def features(self) -> int: ...
    @property
    def device(self) -> str:
        """Where series are encoded; everything else is the CPU's."""
        ...

    def on(self, device: str) -> Model:
        """The same model, encoding there."""
        ...

    def stride_for(self, rows: int) -> int:
        """Rows a token of a series of this length."""
        ...

    def encode(
        self,
        values_TC: np.ndarray,
        gap_T: np.ndarray,
        channels: Sequence[str],
        stride: int | None = None,
    ) -> Encoded:
        """The series' tokens. values_TC: raw float32, NaN only where gap_T. stride: rows a token; None:
        `stride_for`. Raises DataError where the model cannot take the channels."""
        ...

    def write(self, encoded: Encoded, prompts: Sequence[Prompt], series: str) -> list[Written]:
        """One bank row a prompt, in the order given. Each depends on its own prompt only."""
        ...

    def read(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, order: str = "off"
    ) -> Unary:
        """Costs of the states of `level` for every token, from all rows of the bank; at least one of them has
        a label there. series: the name of the series read, whose own rows tell time too. order: "auto" or
        "off". Raises DataError for labels that the model does not know."""
        ...

    def evidence(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, start: int, end: int
    ) -> Tensor:
        """[P] read weights of the bank's rows on the tokens start..end; they sum to 1 (or to 0)."""
        ...

    def strangeness(self, encoded: Encoded, written: Sequence[Written], level: str) -> Strange:
        """How unlike every prompt of the level the series' tokens are."""
        ...


def device_of(device: str | None) -> str:
    """Where to encode: the CPU, unless a GPU is asked for, since the model is small and bytes must not depend
    on a machine. Raises UsageError for what is neither, or is not there."""
    if device in (None, "cpu"):
        return "cpu"
    from memtoken_cli.engine.models import pick_device

    found = pick_device(device)
    if not found.startswith("cuda"):
        raise UsageError(f"segment does not encode on {found}", hint="--device cpu or cuda")
    return found


def load_model(name: str) -> Model:
    """A shipped model by its alias, or one out of an artifact's file. Raises UsageError, DataError."""
    from memtoken_cli.methods.memprompttss import tss

    if name == tss.NAME:
        return tss.shipped()
    if not Path(name).is_file():
        raise UsageError(f"no model {name!r}", hint=f"model={tss.NAME}, or the file of a trained one")
    header = artifact.read_header(name)
    if header.about.get("network") == tss.NETWORK:
        return tss.open_model(name)
    from memtoken_cli.methods.memprompttss import backend_model  # it learns, too: torch's distributed parts

    return backend_model.open_model(name)
