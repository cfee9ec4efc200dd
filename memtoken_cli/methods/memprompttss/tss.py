"""`tss-base`: four experts and one chain behind the protocol `Model`; any channels, labels it never saw.

Which expert is believed how much, per bank, is `mix.py`'s; the experts are `experts.py`'s. Training is
`scripts/train_tss_base.py`'s and the asset's.

Shape suffixes: T rows, C channels, N tokens, F hand features, D width, P prompts, M tokens, K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.io import artifact
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss import encode, experts, metric, mix, order
from memtoken_cli.methods.memprompttss.experts import Told, View
from memtoken_cli.methods.memprompttss.hand import VERSION, stride_for
from memtoken_cli.methods.memprompttss.model import Encoded, Strange, Unary, Written
from memtoken_cli.methods.memprompttss.read import TYPES, Reader

NAME = "tss-base"
NETWORK = "tss"
REACH = 6  # tokens on each side of a point that are its neighbourhood
CONTEXT = 16  # tokens on each side that a prompt is written over
MOST = 64  # tokens of an interval, evenly spaced
AGAINST = 1.0  # of a negative's read score
# In typical squared distances of a token to its neighbours. Beyond KNOWN a token is worth a question. Unknown
# are those beyond STRANGE at one point a state, and less as more points come nearer to all that a state does:
# on generated series with one state's prompts held out, one token in twenty of the others is then unknown at
# one to three points a state, fewer later (`memtok bench prompts.yaml contestants=[unknown]`).
KNOWN, STRANGE, NEARER = 2.0, 3.2, 1 / 3


class Network(nn.Module):
    """Everything that is trained."""

    def __init__(self, shape: encode.Shape) -> None:
        super().__init__()
        self.encoder = encode.Encoder(shape)
        self.reader = Reader(shape.width)
        self.mix = mix.Mix()


@dataclass(eq=False)
class Tss:
    """A `Model`. Views of series are kept as long as their tokens are."""

    network: Network
    name: str
    digest: str
    strange: float = STRANGE
    features: int = VERSION
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.network.eval()
        self._views: WeakKeyDictionary[Encoded, dict[str, View]] = WeakKeyDictionary()
        own = self.network.encoder
        self._encoder = own if self.device == "cpu" else deepcopy(own).to(self.device)

    def on(self, device: str) -> Tss:
        return self if device == self.device else replace(self, device=device)

    def stride_for(self, rows: int) -> int:
        return stride_for(rows)

    def encode(
        self,
        values_TC: np.ndarray,
        gap_T: np.ndarray,
        channels: Sequence[str],
        stride: int | None = None,
    ) -> Encoded:
        return encode.encode(self._encoder, values_TC, gap_T, channels, stride=stride)

    def write(self, encoded: Encoded, prompts: Sequence[Prompt], series: str) -> list[Written]:
        return [self._written(encoded, prompt, series) for prompt in prompts]

    def read(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, order: str = "off"
    ) -> Unary:
        rows = [row for row in written if row.prompt.level == level]
        shown = [written[p] for p in _shown(written, level)]
        # by first appearance in the bank: another name must not move a bit
        labels = tuple(dict.fromkeys(row.prompt.labels[0] for row in shown))
        if not labels:
            raise DataError(f"no prompt of level {level!r} has a label")
        if len(labels) == 1:
            return Unary(labels, torch.zeros(encoded.tokens, 1), mix.SWITCH, 1.0)
        told = self._told(encoded, series, shown, labels)
        said = self._said(encoded, shown, told)
        right = tuple(one.right(told.slot_P) for one in said)
        with torch.no_grad():
            known = mix.inputs(len(shown), len(labels), len(encoded.channels), right)
            weights = self.network.mix(known)
            cost_NK = weights.cost(said)
        cost_NK = cost_NK - cost_NK.amin(1, keepdim=True)
        free_NK = cost_NK.contiguous()
        cost_NK = self._against(encoded, rows, labels, free_NK)
        lam, temperature = float(weights.lam), float(weights.temperature)
        switch_KK = self._order(series, shown, labels, cost_NK, lam, temperature) if order == "auto" else None
        free = free_NK if cost_NK is not free_NK else None
        return Unary(labels, cost_NK, lam, temperature, switch_KK, free)

    def evidence(
        self, encoded: Encoded, series: str, written: Sequence[Written], level: str, start: int, end: int
    ) -> Tensor:
        """Softmax over label prompts of what near, read and time say of each alone about the segment's mean,
        weighed as the mixture's constants."""
        weight_P = torch.zeros(len(written))
        chosen = _shown(written, level)
        if not chosen or end <= start:
            return weight_P
        rows = [written[p] for p in chosen]
        space, features = self._space(encoded, rows)
        x_QF, owner_Q = experts.components(features)
        mean_1F = space.x_NF[start:end].float().mean(0, keepdim=True)
        apart_Q = metric.distances(mean_1F, x_QF, space.inverse)[0]
        near_P = torch.full((len(rows),), torch.inf).scatter_reduce(0, owner_Q, apart_Q, "amin") / 2
        token_PD = torch.stack([row.token_D for row in rows])
        with torch.no_grad():
            mean_1E = encoded.embed_NE[start:end].float().mean(0, keepdim=True)
            read_P = -self.network.reader.scores(mean_1E, token_PD)[0]
            near, read, _, time, _, _ = self.network.mix.constant.exp().tolist()
        away = [self._away(row, series, encoded.stride, start, end) for row in rows]
        cost_P = near * near_P + read * read_P + time * (torch.tensor(away) / 2).log1p()
        weight_P[chosen] = (-cost_P).softmax(0)
        return weight_P

    def _away(self, row: Written, series: str, stride: int, start: int, end: int) -> float:
        """Tokens between a prompt and a segment; 0 inside, and for a prompt on another series."""
        if row.series != series:
            return 0.0
        first, last = row.prompt.start // stride, (row.prompt.end - 1) // stride
        return float(max(0, first - end + 1, start - last))

    def strangeness(self, encoded: Encoded, written: Sequence[Written], level: str) -> Strange:
        """Distance to the nearest prompt in the series' own metric, a feature."""
        rows = [written[p] for p in _shown(written, level)]
        space, features = self._space(encoded, rows)
        x_QF, _ = experts.components(features)
        places = len(x_QF) / len({row.prompt.labels for row in rows})
        apart_NQ = metric.distances(space.x_NF, x_QF, space.inverse)
        own_N = metric.lengths(space.x_NF, space.inverse)
        away_N = (apart_NQ.amin(1) + own_N).clamp(min=0) / space.x_NF.shape[1]
        return Strange(away_N, self.strange / places**NEARER, KNOWN)

    def _written(self, encoded: Encoded, prompt: Prompt, series: str) -> Written:
        stride, N = encoded.stride, encoded.tokens
        first, last = prompt.start // stride, min((prompt.end - 1) // stride, N - 1)
        if first == last:
            at_M = torch.arange(max(0, first - REACH), min(N, first + REACH + 1))
            context = torch.arange(max(0, first - CONTEXT), min(N, first + CONTEXT + 1))
            away = context - first
        else:
            count = min(MOST, last - first + 1)
            at_M = torch.linspace(first, last, count).round().long()
            context, away = at_M, torch.zeros(count)
        with torch.no_grad():
            token_D = self.network.reader.write(
                encoded.embed_NE[context].float(), away, TYPES.index(prompt.type)
            )
        hand = None if encoded.hand_NF is None else encoded.hand_NF[at_M]
        embed = encoded.embed_NE[at_M]
        return Written(prompt, series, stride, N, encoded.channels, token_D, at_M, embed, hand)

    def _told(self, encoded: Encoded, series: str, rows: Sequence[Written], labels: tuple[str, ...]) -> Told:
        slot_P = torch.tensor([labels.index(row.prompt.labels[0]) for row in rows])
        span_P2 = torch.full((len(rows), 2), -1)
        for p, row in enumerate(rows):
            if row.series == series:
                span_P2[p, 0] = row.prompt.start // encoded.stride
                span_P2[p, 1] = (row.prompt.end - 1) // encoded.stride + 1
        return Told(slot_P, len(labels), span_P2)

    def _said(self, encoded: Encoded, rows: Sequence[Written], told: Told) -> tuple[experts.Said, ...]:
        space, features = self._space(encoded, rows)
        token_PD = torch.stack([row.token_D for row in rows])
        return experts.ask(self.network.reader, encoded.embed_NE, token_PD, space, features, told)

    def _space(self, encoded: Encoded, rows: Sequence[Written]) -> tuple[View, list[Tensor]]:
        """Hand features where all prompts have the channels of the series in hand, else embeddings."""
        views = self._views.setdefault(encoded, {})
        pace = stride_for(encoded.rows) / encoded.stride
        hands = [self._aligned(row, encoded) for row in rows]
        if any(hand is None for hand in hands):
            if "embed" not in views:
                views["embed"] = experts.view(encoded.embed_NE, encoded.gap_N, 1, pace)
            return views["embed"], [row.embed_ME for row in rows]
        if "hand" not in views:
            assert encoded.hand_NF is not None
            views["hand"] = experts.view(encoded.hand_NF, encoded.gap_N, len(encoded.channels), pace)
        return views["hand"], [hand for hand in hands if hand is not None]

    def _aligned(self, row: Written, encoded: Encoded) -> Tensor | None:
        """A prompt's hand features in the order of this series' channels, or None where they differ."""
        if row.hand_MF is None or encoded.hand_NF is None:
            return None
        if row.channels == encoded.channels and row.hand_MF.shape[1] == encoded.hand_NF.shape[1]:
            return row.hand_MF
        if sorted(row.channels) != sorted(encoded.channels):
            return None
        if row.hand_MF.shape[1] != encoded.hand_NF.shape[1]:
            return None
        x_MCf: Tensor = row.hand_MF.unflatten(1, (len(row.channels), -1))
        return x_MCf[:, [row.channels.index(name) for name in encoded.channels]].flatten(1)

    def _against(
        self, encoded: Encoded, rows: Sequence[Written], labels: tuple[str, ...], cost_NK: Tensor
    ) -> Tensor:
        """Negative prompts: what looks like one is less likely to be its label."""
        said = [row for row in rows if row.prompt.type == "not" and set(row.prompt.labels) & set(labels)]
        if not said:
            return cost_NK
        token_PD = torch.stack([row.token_D for row in said])
        with torch.no_grad():
            parts = encoded.embed_NE.split(experts.WHOLE)
            score_NP = torch.cat([self.network.reader.scores(e_NE, token_PD) for e_NE in parts])
        # a token that is as near as the prompt itself pays in full, one that is far pays nothing
        near_NP = (score_NP - score_NP.amax(0)).exp()
        cost_NK = cost_NK.clone()
        for p, row in enumerate(said):
            for label in set(row.prompt.labels) & set(labels):
                cost_NK[:, labels.index(label)] += AGAINST * near_NP[:, p]
        return cost_NK

    def _order(
        self,
        series: str,
        rows: Sequence[Written],
        labels: tuple[str, ...],
        cost_NK: Tensor,
        lam: float,
        temperature: float,
    ) -> Tensor | None:
        """Prices of switches, where every prompt stands on another series and this one bears the order
        out."""
        if any(row.series == series for row in rows):
            return None
        sequences: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            sequences.setdefault(row.series, []).append(
                (row.prompt.start, labels.index(row.prompt.labels[0]))
            )
        told = [[state for _, state in sorted(found)] for _, found in sorted(sequences.items())]
        seen = order.seen_switches(told, len(labels))
        return order.gated(cost_NK, lam, seen, temperature).switch_KK


def _shown(written: Sequence[Written], level: str) -> list[int]:
    """Which rows show a state of the level."""
    return [p for p, row in enumerate(written) if row.prompt.level == level and row.prompt.type == "label"]


@cache
def shipped() -> Tss:
    """The model that the package carries. Raises DataError where its file is damaged."""
    with files("memtoken_cli").joinpath("assets", f"{NAME}.safetensors").open("rb") as stream:
        return _opened(stream.read(), NAME)


def open_model(path: str) -> Tss:
    """A model of this kind out of a file. Raises DataError."""
    return _opened(Path(path).read_bytes(), path)


def save(network: Network, path: Path, about: dict[str, object]) -> None:
    """Write weights as float16, with a data card; the bytes depend on nothing else. Raises OSError."""
    state = {name: value.half() for name, value in network.state_dict().items()}
    shape = {"width": network.encoder.out.out_features, "heads": network.encoder.heads}
    artifact.write(
        path,
        state,
        artifact.Header(
            method="memprompttss", kind="model", about={"network": NETWORK, "shape": shape, **about}
        ),
    )


def _opened(data: bytes, name: str) -> Tss:
    header, tensors = artifact.read(data, name=name)
    network = Network(encode.Shape(**header.about["shape"]))
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    return Tss(network, NAME, header.digest, float(header.about.get("strange", STRANGE)))
