"""A trained backend of the paper as a model that `segment` can use: its own channels, its own classes.

A series is kept as its standardised rows, s of them a token, since windows and crops of any place are read
anew: nothing here is the method of the shipped model. Levels are named `default`, `level1`, `level2`, ...; a
class of a merged level is called after the ids in it (`1+2`).

Shape suffixes: T rows, C channels, N tokens, E = s C, W windows, Q rows of a padded series, P prompts, M
tokens of a neighbourhood, K classes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memtoken_cli.data.prompts import DEFAULT_LEVEL, Prompt
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memprompttss.hand import stride_for
from memtoken_cli.methods.memprompttss.memprompt import MemPrompt
from memtoken_cli.methods.memprompttss.model import Encoded, Strange, Unary, Written
from memtoken_cli.methods.memprompttss.placement import BOUNDARY, CORRECT, LABEL, WRONG
from memtoken_cli.methods.memprompttss.train import Trained, open_trained
from memtoken_cli.methods.memprompttss.windows import Geometry

FEATURES = 1  # version of what stands in an encoded series
BATCH = 32  # windows read at once
LAMBDA = 4.0  # nats that a switch costs
STRANGE = 0.5  # a token is unknown where the likeliest class has less than half
OTHER = "model=tss-base takes any labels and channels"


class BackendModel:
    """Behind the protocol `Model`."""

    def __init__(self, trained: Trained, name: str) -> None:
        if not isinstance(trained.network, MemPrompt):
            raise UsageError(
                f"{name} is a prompttss: it keeps no memory of prompts",
                hint="train memprompttss.backend=memprompt",
            )
        self.trained, self.network, self.name = trained, trained.network, name
        self.geometry = Geometry(trained.config.rows, trained.config.stride, 1)

    @property
    def digest(self) -> str:
        return self.trained.digest

    @property
    def features(self) -> int:
        return FEATURES

    @property
    def device(self) -> str:
        return "cpu"

    def on(self, device: str) -> BackendModel:
        """Itself: a series is only standardised before it is read."""
        return self

    def stride_for(self, rows: int) -> int:
        return stride_for(rows)

    def labels(self, level: str) -> tuple[str, ...]:
        """The classes of a level by name, in the order of the outputs. Raises DataError."""
        names = [DEFAULT_LEVEL, *(f"level{i}" for i in range(1, len(self.trained.classes)))]
        if level not in names:
            raise DataError(
                f"{self.name} has no level {level!r}", hint=f"levels: {', '.join(names)}; {OTHER}"
            )
        return tuple("+".join(map(str, ids)) for ids in self.trained.classes[names.index(level)])

    def encode(
        self,
        values_TC: np.ndarray,
        gap_T: np.ndarray,
        channels: Sequence[str],
        stride: int | None = None,
    ) -> Encoded:
        """Standardised as in training. Raises DataError where the channels are not those of the training."""
        known = self.trained.channels
        lacking = [name for name in known if name not in channels]
        if lacking and len(channels) != len(known):
            raise DataError(
                f"{self.name} was trained on {len(known)} channels ({', '.join(known)}), the series has "
                f"{len(channels)} ({', '.join(channels)})",
                hint=OTHER,
            )
        # the same names in any order, or as many of other names in the order given
        order = list(range(len(known))) if lacking else [list(channels).index(name) for name in known]
        x_TC = (torch.from_numpy(values_TC[:, order]) - self.trained.mean_C) / self.trained.std_C
        x_TC = torch.nan_to_num(x_TC)
        T, s = len(x_TC), stride or self.stride_for(len(x_TC))
        N = -(-T // s)
        padded = x_TC[torch.arange(N * s).clamp(max=T - 1)]
        gap_N = torch.from_numpy(gap_T)[torch.arange(N * s).clamp(max=T - 1)].view(N, s).all(1)
        return Encoded(T, s, None, padded.reshape(N, -1).half(), tuple(known), gap_N)

    @torch.no_grad()
    def write(self, encoded: Encoded, prompts: Sequence[Prompt], series: str) -> list[Written]:
        """One token a prompt, from the row in its middle. Raises DataError for labels that are no class."""
        x_TC = rows_of(encoded)
        written = []
        for prompt in prompts:
            row = (prompt.start + prompt.end - 1) // 2
            at_11 = torch.tensor([[row]])
            level = self._index(prompt.level)
            token_11D = self.network.write_vectors(x_TC[None], at_11, self._vector(prompt)[None, None], level)
            at_M = torch.tensor([min(row // encoded.stride, encoded.tokens - 1)])
            written.append(
                Written(
                    prompt,
                    series,
                    encoded.stride,
                    encoded.tokens,
                    encoded.channels,
                    token_11D[0, 0],
                    at_M,
                    encoded.embed_NE[at_M],
                    None,
                )
            )
        return written

    @torch.no_grad()
    def read(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, order: str = "off"
    ) -> Unary:
        """Minus the log of the classes' mean chances over the windows that a token's centre row lies in."""
        labels = self.labels(level)
        p_TK = self._chances(encoded, written, level)[:, : len(labels)]
        p_TK = p_TK / p_TK.sum(1, keepdim=True).clamp(min=1e-30)
        centre_N = centres(encoded)
        cost_NK = -p_TK[centre_N].clamp(min=1e-8).log()
        rank = sorted(range(len(labels)), key=labels.__getitem__)
        return Unary(tuple(labels[k] for k in rank), cost_NK[:, rank].contiguous(), LAMBDA, 1.0)

    @torch.no_grad()
    def evidence(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, start: int, end: int
    ) -> Tensor:
        """[P] how much the first block's windows over these tokens attend to each row of the bank."""
        mine = [w.prompt.level == level for w in written]
        weight_P = torch.zeros(len(written))
        if not any(mine):
            return weight_P
        bank_1MD = self._bank(written, level)
        middle = min((start + end) // 2 * encoded.stride, encoded.rows - 1)
        first = max(0, min(middle - self.geometry.rows // 2, encoded.rows - self.geometry.rows))
        x_QC = rows_of(encoded)
        x_TC = x_QC[(torch.arange(self.geometry.rows) + first).clamp(max=len(x_QC) - 1)]
        weight_P[torch.tensor(mine)] = self.network.attends(self.network.encoder(x_TC[None]), bank_1MD)[0]
        return weight_P

    def strangeness(self, encoded: Encoded, written: Sequence[Written], level: str) -> Strange:
        """One minus the chance of the likeliest class."""
        cost_NK = self.read(encoded, "", written, level).cost_NK
        return Strange(1 - (-cost_NK.min(1).values).exp(), STRANGE, STRANGE)

    def _chances(self, encoded: Encoded, written: Sequence[Written], level: str) -> Tensor:
        """[T,K] of every row: the mean over the windows that it lies in, the last one moved inside the
        series."""
        rows, stride = self.geometry.rows, self.geometry.stride
        x_QC = rows_of(encoded)
        if len(x_QC) < rows:
            x_QC = x_QC[torch.arange(rows).clamp(max=len(x_QC) - 1)]
        starts = sorted({*range(0, len(x_QC) - rows + 1, stride), len(x_QC) - rows})
        bank_1MD = self._bank(written, level)
        total = torch.zeros(len(x_QC), self.network.classes)
        count = torch.zeros(len(x_QC), 1)
        for at in range(0, len(starts), BATCH):
            part = starts[at : at + BATCH]
            x_VTC = torch.stack([x_QC[start : start + rows] for start in part])
            bank_VMD = bank_1MD.expand(len(part), *bank_1MD.shape[1:])
            p_VTK = self.network.read(self.network.encoder(x_VTC), bank_VMD).softmax(-1)
            for start, p_TK in zip(part, p_VTK, strict=True):
                total[start : start + rows] += p_TK
                count[start : start + rows] += 1
        return (total / count)[: encoded.rows]

    def _bank(self, written: Sequence[Written], level: str) -> Tensor:
        tokens = [w.token_D for w in written if w.prompt.level == level]
        return torch.stack(tokens)[None] if tokens else torch.zeros(1, 0, self.network.config.width)

    def _index(self, level: str) -> int:
        self.labels(level)
        return 0 if level == DEFAULT_LEVEL else int(level.removeprefix("level"))

    def _vector(self, prompt: Prompt) -> Tensor:
        """[D]: what the prompt says, before it has read its surroundings."""
        net, K = self.network, self.network.classes
        labels = self.labels(prompt.level)
        for label in prompt.labels:
            if label not in labels:
                raise DataError(f"{self.name} knows no state {label!r}", hint=f"{', '.join(labels)}; {OTHER}")
        if prompt.type in ("label", "not"):
            aspect, kind = (CORRECT if prompt.type == "label" else WRONG), LABEL
            v = torch.zeros(2 * K)
            v[[labels.index(label) + K * (1 - aspect) for label in prompt.labels]] = 1
            said_D = net.label(v)
        else:
            aspect, kind = CORRECT, BOUNDARY
            said_D = net.boundary.weight[int(prompt.type == "boundary")]
        told: Tensor = said_D + net.kind.weight[kind] + net.aspect.weight[aspect]
        return told


def rows_of(encoded: Encoded) -> Tensor:
    """[T,C]: the standardised rows of a series as this model encodes it."""
    return encoded.embed_NE.float().reshape(encoded.tokens * encoded.stride, -1)[: encoded.rows]


def centres(encoded: Encoded) -> Tensor:
    """[N] the row that a token's label is that of."""
    return (torch.arange(encoded.tokens) * encoded.stride + encoded.stride // 2).clamp(max=encoded.rows - 1)


def open_model(path: str | Path) -> BackendModel:
    """The trained backend of a file. Raises UsageError, DataError."""
    return BackendModel(open_trained(path), str(path))
