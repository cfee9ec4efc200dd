"""The rivals that keep keys and values, or the text itself, in place of a memory. They have no parameters.

    window    attention over the last S + m tokens
    sink      that, and the first 4 tokens of all (StreamingLLM, arXiv 2309.17453)
    full      attention over everything, up to the model's context

Positions are those inside the cache: a row's kept tokens stand at 0..c-1, its text from c on. What nobody
will see again is dropped between segments, and the keys behind it are turned back, so that no position grows
with the stream. Models with learned positions have no such turn: there `window` keeps the tokens and reads
them again in front of every segment, `sink` is refused, and `full`, which drops nothing, is as it is.

Shape suffixes: B rows, L layers, N key/value heads, C kept tokens, D head width, W text columns of a segment,
U columns fed at once, P columns in front of the text, T all columns, K wanted columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import DynamicCache

from memtoken_cli.engine.turn import Turning
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.network import Network, rotary
from memtoken_cli.methods.rmt.places import additive
from memtoken_cli.methods.rmt.policy import Open, State
from memtoken_cli.methods.rmt.span import Kept, Span

SINKS = 4


class Store(Protocol):
    """What a state is made of. The last tensor of a state is filled_B, the tokens a row holds."""

    def start(self, rows: int) -> State: ...

    def enter(self, state: State) -> DynamicCache:
        """The kept tokens as a cache of as many columns as the fullest row has tokens."""
        ...

    def after(self, state: State, kept: Kept, cache: DynamicCache, ids_BW: Tensor) -> State:
        """The next state; `cache` holds what entered and the text, ids_BW the text."""
        ...


@dataclass
class KeysValues:
    """State: (k [B,L,N,C,D], v [B,L,N,C,D], filled_B) in the backbone's precision."""

    network: Network
    span: Span
    turning: Turning | None

    def start(self, rows: int) -> State:
        backbone = self.network.backbone
        dims = backbone.dims
        shape = (rows, dims.layers, dims.kv_heads, self.span.capacity or 0, dims.head_dim)
        empty = torch.zeros(shape, dtype=backbone.dtype, device=backbone.device)
        return empty, empty.clone(), torch.zeros(rows, dtype=torch.int64, device=backbone.device)

    def enter(self, state: State) -> DynamicCache:
        cache = DynamicCache()
        past = int(state[2].max())
        for layer in range(state[0].shape[1] if past else 0):
            cache.update(state[0][:, layer, :, :past], state[1][:, layer, :, :past], layer)
        return cache

    def after(self, state: State, kept: Kept, cache: DynamicCache, ids_BW: Tensor) -> State:
        def taken(x_BNTD: Tensor) -> Tensor:
            B, N, _, D = x_BNTD.shape
            index = kept.column_BC[:, None, :, None].expand(B, N, -1, D)
            return x_BNTD.gather(2, index).masked_fill(~kept.real_BC[:, None, :, None], 0.0)

        k_BLNCD = torch.stack([taken(layer.keys) for layer in cache.layers], 1)
        v_BLNCD = torch.stack([taken(layer.values) for layer in cache.layers], 1)
        return self._turned_back(k_BLNCD, kept.dropped_B), v_BLNCD, kept.filled_B

    def _turned_back(self, k_BLNCD: Tensor, dropped_B: Tensor) -> Tensor:
        distances = dropped_B.tolist()
        if self.turning is None or not any(distances):
            return k_BLNCD
        each = distances if len(set(distances)) > 1 else distances[:1]
        back_BLDD = torch.stack([self.turning.by(d).mT for d in each])
        turned = (k_BLNCD.to(back_BLDD.dtype) @ back_BLDD[:, :, None]).to(k_BLNCD.dtype)
        behind_C = torch.arange(k_BLNCD.shape[3], device=dropped_B.device) >= self.span.sinks
        moved_BC = behind_C & (dropped_B > 0)[:, None]
        return torch.where(moved_BC[:, None, None, :, None], turned, k_BLNCD)


@dataclass
class Tokens:
    """State: (ids_BC int64, filled_B), read again in front of every segment."""

    network: Network
    span: Span

    def start(self, rows: int) -> State:
        device = self.network.backbone.device
        ids_BC = torch.zeros(rows, self.span.capacity or 0, dtype=torch.int64, device=device)
        return ids_BC, torch.zeros(rows, dtype=torch.int64, device=device)

    def enter(self, state: State) -> DynamicCache:
        cache = DynamicCache()
        ids_BC, filled_B = state
        if past := int(filled_B.max()):
            nothing_B = torch.zeros_like(filled_B)
            sees = self.span.sees(nothing_B, filled_B, 0, 0, past)
            position_BP = self.span.index(nothing_B, 0, past)
            x_BPE = self.network.embed(ids_BC[:, :past])
            mask = additive(sees, self.network.backbone.dtype)
            self.network.run(x_BPE, position_BP, mask, None, cache)
        return cache

    def after(self, state: State, kept: Kept, cache: DynamicCache, ids_BW: Tensor) -> State:
        both = torch.cat([state[0][:, : int(state[1].max())], ids_BW], 1)
        return both.gather(1, kept.column_BC).masked_fill(~kept.real_BC, 0), kept.filled_B


class Cached:
    """window, sink and full around one backbone. Raises UsageError where model and policy do not fit."""

    def __init__(self, network: Network, config: Config) -> None:
        self.network, self.config, self.size = network, config, config.segment
        self.training = False
        self.context = network.backbone.dims.context
        narrow = [w for w in network.backbone.dims.windows if w is not None]
        self.limit = min(self.context, *narrow) if narrow else self.context
        window = None if config.policy == "full" else config.segment + config.slots
        self.span = Span(window, SINKS if config.policy == "sink" else 0)
        self._check(min(narrow, default=self.context))
        self.store: Store = KeysValues(network, self.span, None)
        if self.span.capacity is None:
            return
        turning = None
        if rotary(network):
            turning = Turning.of(network.backbone, self.size, max(1, self.span.capacity))
        if turning is not None:
            self.store = KeysValues(network, self.span, turning)
        elif config.policy == "window":
            self.store = Tokens(network, self.span)
        else:
            raise UsageError(
                "policy sink needs relative positions: keys of learned ones cannot move up to the sinks",
                hint="rmt.policy=window re-encodes",
            )

    def _check(self, narrow: int) -> None:
        columns = (self.span.capacity or 0) + self.size
        if columns > self.context:
            raise UsageError(
                f"{columns} columns of a segment do not fit the model's {self.context} positions",
                hint="a smaller rmt.segment or rmt.slots",
            )
        reach = self.span.window if self.config.policy == "window" else columns
        if reach is not None and reach > narrow:
            raise UsageError(
                f"{self.config.policy} reaches {reach} tokens back, the model's sliding window {narrow}",
                hint="a smaller rmt.segment or rmt.slots",
            )

    def parameters(self) -> Mapping[str, Parameter]:
        return {}

    def calibrate(self, ids_BW: Tensor) -> None:
        pass

    def start(self, rows: int) -> State:
        return self.store.start(rows)

    def segment(
        self, ids_BW: Tensor, count_B: Tensor, state: State, wanted_K: Tensor | None
    ) -> tuple[Tensor | None, State]:
        at = self.open(state, len(ids_BW))
        logits = self._read(at, ids_BW, count_B, wanted_K)
        return logits, self._next(at, ids_BW, count_B)

    def open(self, state: State, rows: int) -> Open:
        return Open(state, self.store.enter(state), kept={"ids": state[-1].new_empty(rows, 0)})

    def feed(self, at: Open, ids_BU: Tensor, wanted: bool = True) -> Tensor | None:
        count_B = torch.full((len(ids_BU),), at.count + ids_BU.shape[1], device=ids_BU.device)
        every = torch.arange(ids_BU.shape[1], device=ids_BU.device) if wanted else None
        logits = self._read(at, ids_BU, count_B, every)
        at.kept["ids"] = torch.cat([at.kept["ids"], ids_BU], 1)
        return logits

    def close(self, at: Open) -> State:
        if not at.count:
            return at.state
        return self._next(at, at.kept["ids"], torch.full_like(at.state[-1], at.count))

    def _read(self, at: Open, ids_BU: Tensor, count_B: Tensor, wanted_K: Tensor | None) -> Tensor | None:
        """Logits of the columns ids_BU, which follow at.count others; count_B: real ones of them all.

        Raises DataError beyond the context."""
        filled_B, stop = at.state[-1], at.count + ids_BU.shape[1]
        past = at.cache.get_seq_length() - at.count
        length = int((filled_B + count_B).max()) if self.span.window is None else 0
        if length > self.limit:
            raise DataError(
                f"full attention over {length} tokens does not fit the model's {self.limit}",
                hint="shorter streams, or another rmt.policy",
            )
        sees = self.span.sees(filled_B, count_B, past, at.count, stop)
        position_BU = self.span.index(filled_B, past, stop)[:, past + at.count :].clamp(max=self.context - 1)
        mask = additive(sees, self.network.backbone.dtype)
        _, logits = self.network.run(self.network.embed(ids_BU), position_BU, mask, wanted_K, at.cache)
        at.count = stop
        return logits

    def _next(self, at: Open, ids_BW: Tensor, count_B: Tensor) -> State:
        kept = Kept.of(self.span, at.state[-1], count_B, at.cache.get_seq_length() - at.count)
        return self.store.after(at.state, kept, at.cache, ids_BW)
