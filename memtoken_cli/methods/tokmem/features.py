"""What the frozen model makes of prompts: keys and values, features that routing looks at, the last state.

None of it depends on the bank: memory rows stand behind the prompt. No gradients here.

Shape suffixes: B rows, T tokens, U tokens of the user's, E model width, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from memtoken_cli.engine import prefix_cache
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.prefix_cache import Kept
from memtoken_cli.methods.tokmem.config import Feature
from memtoken_cli.methods.tokmem.prompt import Prompt

HALF_LIFE = 4  # tokens after which a token counts half as much in a mean that leans to the first


@dataclass(frozen=True)
class Prefix:
    """A prompt, read. kept: its keys and values, or None where they were not kept. features: float32 [E]
    each. h_E: float32, the state behind its last token, which the LM head reads. user: the states [U,E] of
    the user's tokens by level, of those levels that a feature is a mean of; nothing where not kept."""

    prompt: Prompt
    kept: Kept | None
    features: tuple[Tensor, ...]
    h_E: Tensor
    user: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.prompt.ids)

    @property
    def done(self) -> tuple[str, ...]:
        """No procedure yet."""
        return ()

    @property
    def bare(self) -> Prefix:
        """What routing looks at, without what decoding goes on from."""
        return Prefix(self.prompt, None, self.features, self.h_E)


class Frozen:
    """Reads prompts with a frozen backbone, and keeps up to `cache_gib` of keys and values.

    What has been let in stays (a shuffled epoch would throw out of a least-recently-used cache what it needs
    next), so that which prompts are kept depends on the order of the calls of `prepare` alone.
    """

    def __init__(self, backbone: CausalLM, features: Sequence[Feature], cache_gib: float = 0.0) -> None:
        self.backbone, self.features = backbone, tuple(features)
        self.room = int(cache_gib * 2**30)

    def read(self, prompts: Sequence[Prompt]) -> list[Prefix]:
        """Every prompt, in order, with its keys and values; what all begin with is read once.

        Raises DataError for a prompt beyond the context.
        """
        if not prompts:
            return []
        gather = _Gather(self.backbone.dims.layers, self.features, prompts)
        kept = prefix_cache.read(self.backbone, [p.ids for p in prompts], gather)
        return [
            Prefix(p, one, *gather.result(i)) for i, (p, one) in enumerate(zip(prompts, kept, strict=True))
        ]

    def prepare(self, prompts: Sequence[Prompt]) -> list[Prefix]:
        """`read`, keeping keys and values only while there is room."""
        out = []
        counted = False
        for prefix in self.read(prompts):
            assert prefix.kept is not None
            need = prefix.kept.own_bytes
            if not counted:
                need += sum(x.nbytes for x in prefix.kept.pieces[:-1])
            if need <= self.room:
                self.room -= need
                counted = True
                out.append(replace(prefix, user={}))
            else:
                out.append(prefix.bare)
        return out

    def kept(self, prefixes: Sequence[Prefix]) -> list[Kept]:
        """Keys and values of each; those that were not kept are read again, together."""
        lost = [i for i, prefix in enumerate(prefixes) if prefix.kept is None]
        again = dict(zip(lost, self.read([prefixes[i].prompt for i in lost]), strict=True))
        found = [again.get(i, prefix).kept for i, prefix in enumerate(prefixes)]
        return [one for one in found if one is not None]


class _Gather:
    """Picks features out of hidden states as they pass; the shared part is remembered until the end."""

    def __init__(self, layers: int, features: Sequence[Feature], prompts: Sequence[Prompt]) -> None:
        self.features, self.prompts = features, prompts
        self.at = [level(f, layers) for f in features]
        pooled = (at for f, at in zip(features, self.at, strict=True) if f.pool != "last")
        self.levels = tuple(dict.fromkeys(pooled))
        self.shared: dict[int, Tensor] = {}
        self.found: dict[int, tuple[tuple[Tensor, ...], Tensor, dict[int, Tensor]]] = {}

    def __call__(self, rows: Sequence[int], states: tuple[Tensor, ...], first: int) -> None:
        if not rows:
            self.shared = {at: states[at][0] for at in self.levels}
            return
        for b, i in enumerate(rows):
            prompt = self.prompts[i]
            last = len(prompt.ids) - 1 - first
            start, end = prompt.user
            user = {}
            for at in self.levels:
                own_UE = states[at][b, max(start - first, 0) : max(end - first, 0)]
                # of the user's tokens, some may be in what all prompts share
                early_UE = self.shared[at][start:end] if at in self.shared else own_UE[:0]
                user[at] = torch.cat([early_UE, own_UE])
            picked = [
                states[at][b, last].float().clone() if f.pool == "last" else pooled(f, user[at])
                for f, at in zip(self.features, self.at, strict=True)
            ]
            self.found[i] = (tuple(picked), states[-1][b, last].float().clone(), user)

    def result(self, i: int) -> tuple[tuple[Tensor, ...], Tensor, dict[int, Tensor]]:
        return self.found[i]


def pooled(feature: Feature, x_UE: Tensor) -> Tensor:
    """float32 [E]: the mean of the user's states that a feature is."""
    weight_U1 = leaning(feature, len(x_UE)).to(x_UE.device)
    return (weight_U1 * x_UE.float()).sum(0) / weight_U1.sum()


def leaning(feature: Feature, tokens: int) -> Tensor:
    """[U,1] what each of the user's tokens counts in a mean over them."""
    if feature.pool != "lead":
        return torch.ones(tokens, 1)
    return 0.5 ** (torch.arange(tokens)[:, None] / HALF_LIFE)


def level(feature: Feature, layers: int) -> int:
    """Which of the layers + 1 hidden states a feature is of."""
    # half up: Python would round half to even, which differs between depths
    return min(layers, int(feature.depth * layers + 0.5))


@dataclass(frozen=True)
class Place:
    """What a row is routed by behind a segment. done: the procedures until now."""

    h_E: Tensor
    features: tuple[Tensor, ...]
    user: Mapping[int, Tensor] = field(default_factory=dict)
    done: tuple[str, ...] = ()


class Boundary:
    """The features behind a row's last segment, gathered as its tokens go in.

    Those of the first site, but with the last token's states of now, and the mean final state of the
    segment's own tokens (neither memory nor its end). Before each `see`, `said` tells whether that token is
    such a one.
    """

    def __init__(self, watch: Sequence[Feature], prefix: Prefix, layers: int) -> None:
        self.watch, self.prefix = tuple(watch), prefix
        self.at = [level(f, layers) for f in self.watch]
        self.layers = layers
        self.said = False
        self.last: list[Tensor] = list(prefix.features)
        self.total_E = torch.zeros_like(prefix.h_E)
        self.count = 0
        self.fresh = True

    def see(self, states: Sequence[Tensor], h_E: Tensor, put: int) -> None:
        """The states [E] of every layer behind the token `put`, and what the head reads there."""
        final_E = h_E.float()
        for f, (feature, at) in enumerate(zip(self.watch, self.at, strict=True)):
            if feature.pool == "last":
                self.last[f] = final_E if at == self.layers else states[at].float()
        if self.said:
            if self.fresh:
                self.total_E, self.count = torch.zeros_like(final_E), 0
            self.total_E, self.count = self.total_E + final_E, self.count + 1
        # memory and ends stand between segments: what is said next begins another one
        self.fresh, self.said = not self.said, False

    def state(self, h_E: Tensor) -> Place:
        """What the row is routed by now."""
        segment_E = self.total_E / self.count if self.count else h_E.float()
        return Place(h_E, (*self.last, segment_E))


def behind(
    states: Sequence[Tensor], prefix: Prefix, watch: Sequence[Feature], said: range, at: int
) -> tuple[Tensor, ...]:
    """`Boundary`'s features of a row whose whole continuation is at hand: states [U,E] of every layer; the
    segment's own tokens are `said`, the boundary is behind token `at`."""
    layers = len(states) - 1
    found = [
        states[level(f, layers)][at].float() if f.pool == "last" else first
        for f, first in zip(watch, prefix.features, strict=True)
    ]
    return (*found, states[-1][said.start : said.stop].float().mean(0))


def columns(rows: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """One [B,D] tensor a feature, on the CPU, of rows of [D] features."""
    return [torch.stack(column).cpu() for column in zip(*rows, strict=True)]
