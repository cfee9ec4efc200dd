"""Routing: which procedure (or TEXT, or END) a row goes on with, by the bank's addresses (TokMem eq. 4).

Reads states, runs nothing of the backbone but its head. The grammar that asks is `decode.py`. Trained
addresses compete with the vocabulary in one softmax; `lda` scores compete among themselves, TEXT and END. At
the first site "text" is the vocabulary's share, at a boundary "end" is that of the EOS token.

Shape suffixes: B rows, P procedures, S procedures and specials, E model width, D feature width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from memtoken_cli.engine import vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.decode import end_ids
from memtoken_cli.methods.tokmem.bank import SITES, Bank, Site
from memtoken_cli.methods.tokmem.features import columns, level
from memtoken_cli.methods.tokmem.kinds import AnyScorer, FirstSite, means_of
from memtoken_cli.methods.tokmem.parts import Parts
from memtoken_cli.methods.tokmem.statistics import END, TEXT


class State(Protocol):
    """What a row is routed by. h_E: what the head reads; features: float32 [D], one a feature of the site.
    user: states [U,E] of the user's tokens, by level; done: the procedures until now."""

    @property
    def h_E(self) -> Tensor: ...
    @property
    def features(self) -> Sequence[Tensor]: ...
    @property
    def user(self) -> Mapping[int, Tensor]: ...
    @property
    def done(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Choice:
    """What one row may choose: the procedures allowed_P, and with `plain` none of them (TEXT, or the END),
    which also wins where the best procedure has less than min_prob."""

    allowed_P: Tensor
    plain: bool = True
    min_prob: float = 0.0


@dataclass(frozen=True)
class Route:
    """One decision. procedure: None for text or the end; p: of what was chosen. logit: the procedure's score.
    alternatives: the next ones, so that with the chosen one there are `top_k`. p_text, p_end, and several,
    whether the query asks for several procedures: None where the bank cannot tell."""

    site: Site
    procedure: str | None
    p: float
    logit: float | None = None
    forced: bool = False
    alternatives: tuple[tuple[str, float], ...] = ()
    p_text: float | None = None
    p_end: float | None = None
    several: bool | None = None

    def document(self) -> dict[str, Any]:
        """As --json tells it."""
        first = {"p_text": self.p_text, "several": self.several}
        plain = first if self.site == "first" else {"p_end": self.p_end}
        return {
            "site": self.site,
            "procedure": self.procedure,
            "p": self.p,
            "logit": self.logit,
            "forced": self.forced,
            "alternatives": [{"procedure": name, "p": p} for name, p in self.alternatives],
            **plain,
        }


@dataclass(frozen=True)
class Scores:
    """scores_BS float64 of procedures and specials by `labels`, log-odds; whether each row asks for several
    procedures, where that is known."""

    labels: tuple[str, ...]
    scores_BS: Tensor
    asks: Sequence[bool] | None = None

    @property
    def several(self) -> list[bool | None]:
        return [None] * len(self.scores_BS) if self.asks is None else list(self.asks)


class Router:
    """A bank's addresses, made ready once: the closed forms are solved here."""

    def __init__(self, bank: Bank, backbone: CausalLM) -> None:
        self.bank, self.backbone = bank, backbone
        self.names = bank.names
        self.trained = bank.meta.address != "lda"
        self.joins = self.trained and bank.meta.softmax == "full"  # with the vocabulary, in one softmax
        self.address_PE: Tensor | None = None
        self.scorers: dict[str, AnyScorer] = {}
        if self.trained:
            rows_PE = bank.control_PkE[:, 0] if bank.address_PE is None else bank.address_PE
            self.address_PE = rows_PE.to(backbone.device)
        elif self.names:
            self.scorers = {site: bank.scorer(site) for site in SITES if site in bank.sites}
        features, layers = bank.meta.features, backbone.dims.layers
        self.levels = [level(features[f], layers) for f in means_of(features)]
        self.ends = end_ids(backbone)

    def answers(self, site: Site) -> bool:
        """Whether the bank can route at this site; a boundary needs trained addresses or statistics of it."""
        parted = site == "boundary" and self.bank.parted
        return bool(self.names) and (self.trained or site in self.scorers or parted)

    @cached_property
    def parts(self) -> Parts:
        """What reads queries in parts, solved where one is; of a bank that does."""
        found = self.bank.parts()
        assert found is not None, "only queries of banks that read parts have any"
        return found

    @property
    def splits(self) -> bool:
        """Whether the first site reads queries in parts: where answers may have several, and no statistics
        tell such queries."""
        unseen = "several" not in self.bank.sites and self.bank.meta.max_procedures > 1
        return self.bank.parted and unseen

    def route(
        self,
        states: Sequence[State],
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        top_k: int = 3,
        site: Site = "first",
        *,
        plain: bool = True,
        min_prob: float = 0.0,
    ) -> list[Route]:
        """One decision a state, all under the same conditions. Raises UsageError for a name that is not in
        the bank."""
        wanted = {self.bank.index(name) for name in allow} or set(range(len(self.names)))
        wanted -= {self.bank.index(name) for name in deny}
        allowed_P = torch.tensor([i in wanted for i in range(len(self.names))], dtype=torch.bool)
        return self.pick(site, states, [Choice(allowed_P, plain, min_prob)] * len(states), top_k)

    def pick(
        self, site: Site, states: Sequence[State], choices: Sequence[Choice], top_k: int = 3
    ) -> list[Route]:
        """One decision a row, each under its own conditions; a row with nothing allowed goes on as text or
        ends."""
        if not self.answers(site):
            return [_nothing(site)] * len(states)
        allowed_BP = torch.stack([choice.allowed_P for choice in choices])
        several: list[bool | None] = [None] * len(states)
        if self.trained:
            scores_BP, p_BP, plain_B = self._trained(site, states, allowed_BP)
        else:
            scores = self.scores(site, states)
            scores_BP, p_BP, plain_B = self._scored(site, scores, allowed_BP, choices)
            several = scores.several
        routes = [
            self._route(site, choice, top_k, scores_P, p_P, None if plain_B is None else float(plain_B[b]))
            for b, (choice, scores_P, p_P) in enumerate(zip(choices, scores_BP, p_BP, strict=True))
        ]
        return [replace(route, several=s) for route, s in zip(routes, several, strict=True)]

    def scores(self, site: Site, states: Sequence[State]) -> Scores:
        """What closed-form addresses say at a site that they answer at."""
        if site == "boundary" and self.bank.parted:
            done = [[self.names.index(name) for name in state.done] for state in states]
            found = [self.parts.following(*pair) for pair in zip(self._tokens(states), done, strict=True)]
            return Scores(self.parts.labels, torch.stack(found))
        scorer = self.scorers[site]
        features = self.bank.projected(columns(state.features for state in states))
        scores = Scores(scorer.labels, scorer.scores(features))
        if isinstance(scorer, FirstSite):
            return replace(scores, asks=scorer.asks_for_several(features).tolist())
        return self._split(scores, states) if self.splits else scores

    @property
    def focuses(self) -> bool:
        """Whether a segment sees its own part of the query alone: where queries for several procedures are
        told, and no sliding window counts what is hidden."""
        told = self.splits or isinstance(self.scorers.get("first"), FirstSite)
        return self.bank.parted and told and all(w is None for w in self.backbone.dims.windows)

    def part(self, state: State, done: Sequence[str]) -> range:
        """The user's tokens that ask for the last of the procedures `done`."""
        (token_UL,) = self._tokens([state])
        return self.parts.span(token_UL, [self.names.index(name) for name in done])

    def _split(self, scores: Scores, states: Sequence[State]) -> Scores:
        """Rows that ask for several procedures, by the first of their parts; what is no procedure stays as
        far from the best one as it was."""
        tokens, P = self._tokens(states), len(self.names)
        asks = [self.parts.several(token_UL) for token_UL in tokens]
        scores_BS = scores.scores_BS.clone()
        for b in (b for b, several in enumerate(asks) if several):
            first_P = self.parts.first(tokens[b])
            scores_BS[b, P:] += first_P.amax() - scores_BS[b, :P].amax()
            scores_BS[b, :P] = first_P
        return Scores(scores.labels, scores_BS, asks)

    def _tokens(self, states: Sequence[State]) -> list[Tensor]:
        """[U,P] of each row: what its tokens say for the procedures."""
        users = [[state.user[at].float() for at in self.levels] for state in states]
        return [self.parts.tokens(self.bank.projected(user)) for user in users]

    def joint(self, h_BE: Tensor) -> tuple[Tensor, Tensor]:
        """float32 logits of the vocabulary [B,V] and of the trained addresses [B,P], on the CPU."""
        assert self.address_PE is not None, "only trained addresses have logits"
        P = len(self.address_PE)
        logits = vocab.logits(self.backbone, h_BE[:, None], self.address_PE)[:, 0].float().cpu()
        words_BV, scores_BP = logits.split([logits.shape[-1] - P, P], -1)
        bias_P = self.bank.address_bias_P
        return words_BV, scores_BP if bias_P is None else scores_BP + bias_P

    def free_route(self, site: Site, log_p_P: Tensor, logits_P: Tensor, chosen: int, top_k: int) -> Route:
        """The route of a row that took procedure `chosen` out of the free softmax over words and memory."""
        order = [i for i in log_p_P.argsort(descending=True, stable=True).tolist() if i != chosen]
        p_P = log_p_P.exp()
        shown = tuple((self.names[i], float(p_P[i])) for i in order[: max(0, top_k - 1)] if p_P[i] > 0)
        words = max(0.0, 1.0 - float(p_P.sum()))
        route = Route(site, self.names[chosen], float(p_P[chosen]), float(logits_P[chosen]), False, shown)
        return replace(route, p_text=words) if site == "first" else route

    def _trained(
        self, site: Site, states: Sequence[State], allowed_BP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        h_BE = torch.stack([state.h_E for state in states]).to(self.backbone.device)
        words_BV, scores_BP = self.joint(h_BE)
        shut_BP = ~allowed_BP & allowed_BP.any(-1, keepdim=True)  # with nothing allowed no score is read
        scores_BP = scores_BP.masked_fill(shut_BP, float("-inf"))
        if site == "first" and not self.joins:
            return scores_BP, scores_BP.softmax(-1), None
        total_B = torch.cat([words_BV, scores_BP], -1).logsumexp(-1)
        plain_B = words_BV.logsumexp(-1) if site == "first" else words_BV[:, self.ends].amax(-1)
        return scores_BP, (scores_BP - total_B[:, None]).exp(), (plain_B - total_B).exp()

    def _scored(
        self,
        site: Site,
        scores: Scores,
        allowed_BP: Tensor,
        choices: Sequence[Choice],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        special, P = TEXT if site == "first" else END, len(self.names)
        allowed_BS = torch.zeros(len(choices), len(scores.labels), dtype=torch.bool)
        allowed_BS[:, :P] = allowed_BP
        at = scores.labels.index(special) if special in scores.labels else None
        if at is not None:
            allowed_BS[:, at] = torch.tensor([choice.plain for choice in choices])
        scores_BS = scores.scores_BS.masked_fill(~allowed_BS, float("-inf"))
        empty_B1 = ~allowed_BS.any(-1, keepdim=True)
        p_BS = scores_BS.masked_fill(empty_B1, 0.0).softmax(-1).masked_fill(empty_B1, 0.0)
        return scores_BS[:, :P], p_BS[:, :P], None if at is None else p_BS[:, at]

    def _route(
        self, site: Site, choice: Choice, top_k: int, scores_P: Tensor, p_P: Tensor, plain: float | None
    ) -> Route:
        if not bool(choice.allowed_P.any()):
            return _nothing(site)
        order = [i for i in scores_P.argsort(descending=True, stable=True).tolist() if choice.allowed_P[i]]
        best, p = order[0], float(p_P[order[0]])
        loses = plain is not None and (plain > p or (site == "boundary" and plain == p))
        if choice.plain and (loses or p < choice.min_prob):
            rest, route = order, Route(site, None, 1.0 - p if plain is None else plain)
        else:
            rest = order[1:]
            route = Route(site, self.names[best], p, float(scores_P[best]))
        shown = rest[: max(0, top_k - (len(order) - len(rest)))]
        others = tuple((self.names[i], float(p_P[i])) for i in shown)
        if site == "first":
            return replace(route, alternatives=others, p_text=plain)
        return replace(route, alternatives=others, p_end=plain)


def _nothing(site: Site) -> Route:
    """No procedure may come here."""
    return Route(site, None, 1.0, p_text=1.0) if site == "first" else Route(site, None, 1.0, p_end=1.0)
