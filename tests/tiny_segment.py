"""A stand-in for the shipped model of `segment`: closed forms on plain features, fast, of the same protocol.

It keeps the promises that the bank's laws rest on (a row depends on its own prompt only; sums run in
canonical order) and is good enough to tell the states of `walk` apart. Shape suffixes as in `model.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.methods.memprompttss.hard import tokens_of
from memtoken_cli.methods.memprompttss.model import Encoded, Strange, Unary, Written

REACH = 4


class Stub:
    """z-scored means and spreads of a token's surroundings; states by the nearest kept neighbour."""

    def __init__(self, name: str = "stub", features: int = 1) -> None:
        self.name, self.features, self.device = name, features, "cpu"
        self.digest = hashlib.sha256(name.encode()).hexdigest()

    def stride_for(self, rows: int) -> int:
        return 8 if rows >= 4000 else max(1, rows // 500)

    def on(self, device: str) -> Stub:
        self.device = device
        return self

    def encode(
        self,
        values_TC: np.ndarray,
        gap_T: np.ndarray,
        channels: Sequence[str],
        stride: int | None = None,
    ) -> Encoded:
        stride = stride or self.stride_for(len(values_TC))
        x_TC = np.nan_to_num(np.asarray(values_TC, np.float64))
        x_TC = (x_TC - x_TC.mean(0)) / (x_TC.std(0) + 1e-9)
        count = -(-len(x_TC) // stride)
        at_N = np.minimum(np.arange(count) * stride + stride // 2, len(x_TC) - 1)
        half = 16
        padded = np.concatenate([np.repeat(x_TC[:1], half, 0), x_TC, np.repeat(x_TC[-1:], half, 0)])
        total = np.concatenate([np.zeros((1, x_TC.shape[1])), np.cumsum(padded, 0)])
        square = np.concatenate([np.zeros((1, x_TC.shape[1])), np.cumsum(padded**2, 0)])
        mean_NC = (total[at_N + 2 * half] - total[at_N]) / (2 * half)
        var_NC = np.maximum((square[at_N + 2 * half] - square[at_N]) / (2 * half) - mean_NC**2, 0)
        hand = np.concatenate([mean_NC, np.sqrt(var_NC)], 1)
        embed = np.stack([mean_NC.mean(1), np.sqrt(var_NC).mean(1)], 1)
        gap_N = torch.from_numpy(gap_T[at_N].copy())
        return Encoded(
            len(x_TC),
            stride,
            torch.from_numpy(hand).half(),
            torch.from_numpy(embed).half(),
            tuple(channels),
            gap_N,
        )

    def write(self, encoded: Encoded, prompts: Sequence[Prompt], series: str) -> list[Written]:
        out = []
        for prompt in prompts:
            bound = tokens_of(prompt, encoded.stride, encoded.rows)
            at = torch.arange(max(0, bound.start - REACH), min(encoded.tokens, bound.stop + REACH))
            assert encoded.hand_NF is not None
            out.append(
                Written(
                    prompt,
                    series,
                    encoded.stride,
                    encoded.tokens,
                    encoded.channels,
                    encoded.embed_NE[bound.start].float(),
                    at,
                    encoded.embed_NE[at],
                    encoded.hand_NF[at],
                )
            )
        return out

    def _away(self, encoded: Encoded, written: Sequence[Written], level: str) -> tuple[Tensor, list[int]]:
        """[N,p] squared distance to each prompt that shows a label at the level, and which those are."""
        shown = [i for i, w in enumerate(written) if w.prompt.type == "label" and w.prompt.level == level]
        columns = []
        for i in shown:
            w = written[i]
            alike = w.channels == encoded.channels and w.hand_MF is not None and encoded.hand_NF is not None
            here, there = (encoded.hand_NF, w.hand_MF) if alike else (encoded.embed_NE, w.embed_ME)
            assert here is not None and there is not None
            columns.append(((here.float() - there.float().mean(0)) ** 2).mean(1))
        return torch.stack(columns, 1), shown

    def read(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, order: str = "off"
    ) -> Unary:
        away_NP, shown = self._away(encoded, written, level)
        names = [written[i].prompt.labels[0] for i in shown]
        labels = tuple(sorted(set(names)))
        cost_NK = torch.stack(
            [away_NP[:, [i for i, name in enumerate(names) if name == label]].amin(1) for label in labels], 1
        )
        return Unary(labels, 4.0 * cost_NK, 4.0, 1.0)

    def evidence(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, start: int, end: int
    ) -> Tensor:
        away_NP, shown = self._away(encoded, written, level)
        weight_P = torch.zeros(len(written))
        weight_P[shown] = torch.softmax(-away_NP[start:end].mean(0), 0)
        return weight_P

    def strangeness(self, encoded: Encoded, written: Sequence[Written], level: str) -> Strange:
        return Strange(self._away(encoded, written, level)[0].amin(1), 0.5, 0.5)


def walk(rows: int = 6000, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(values, states): six stretches of three states of their own level and spread; `seed`: of the noise."""
    random = np.random.default_rng(seed)
    states_T = np.repeat([0, 1, 2, 0, 2, 1], -(-rows // 6))[:rows]
    level_KC = np.random.default_rng(0).normal(size=(3, channels)) * 2
    spread_K = np.array([0.3, 1.0, 0.6])
    noise = random.normal(size=(rows, channels))
    return level_KC[states_T] + noise * spread_K[states_T][:, None], states_T


NAMES = ("walk", "run", "rest")


def write_walk(path: Path, rows: int = 6000, channels: int = 3, seed: int = 0) -> np.ndarray:
    """The series as a CSV file with a time column; returns the states."""
    values_TC, states_T = walk(rows, channels, seed)
    header = "t," + ",".join(f"x{c}" for c in range(channels))
    lines = [f"{i / 100:.2f}," + ",".join(f"{v:.5f}" for v in row) for i, row in enumerate(values_TC)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return states_T
