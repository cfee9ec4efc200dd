"""One row's way through the grammar: which ids it puts in, when a segment is over, what it has said so far.

PROMPT -> ROUTE -> SEGMENT -> (EOC | complete JSON | EOS | limit) -> ROUTE -> ... -> END. No model here:
`decode.py` brings the decisions. Virtual ids: EOC = V, control token j of procedure i = V + 1 + i k + j.

Shape suffixes: P procedures, k control tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from memtoken_cli.methods.tokmem.bank import Site
from memtoken_cli.methods.tokmem.keys import AUTO, INSIST, Options
from memtoken_cli.methods.tokmem.route import Choice, Route

EndedBy = Literal["eos", "eoc", "json", "limit", "procedure"]


@dataclass(frozen=True)
class Ids:
    """Where memory ids lie beyond the vocabulary. tokens: k."""

    vocab: int
    tokens: int

    @property
    def eoc(self) -> int:
        return self.vocab

    def control(self, procedure: int) -> list[int]:
        first = self.vocab + 1 + procedure * self.tokens
        return list(range(first, first + self.tokens))


@dataclass(frozen=True)
class Plan:
    """A row's options as numbers. forced: a chain of procedures; routes: whether the model chooses at all."""

    forced: tuple[int, ...]
    routes: bool
    choice: Choice
    most: int
    free: bool
    top_k: int
    new: int
    temperature: float
    seed: int
    logprobs: bool

    @classmethod
    def of(cls, options: Options, names: Sequence[str], most: int, seed: int) -> Plan:
        """`most`: the bank's own number of procedures; `seed`: of this row's draws. Raises UsageError."""
        options.check(names)
        allowed = set(options.allowed(names))
        allowed_P = torch.tensor([name in allowed for name in names], dtype=torch.bool)
        place = {name: i for i, name in enumerate(names)}
        insist = options.procedures == INSIST
        return cls(
            forced=tuple(place[name] for name in options.forced),
            routes=options.procedures in (AUTO, INSIST) and bool(allowed),
            choice=Choice(allowed_P, not insist, 0.0 if insist else options.min_prob),
            most=len(options.forced) or options.max_procedures or most,
            free=options.constrain == "none",
            top_k=options.top_k,
            new=options.max_new_tokens,
            temperature=options.temperature,
            seed=seed,
            logprobs=options.logprobs,
        )


@dataclass(frozen=True)
class Segment:
    """What was said under one procedure (None: plain text). ids: vocabulary only, without the end."""

    procedure: str | None
    text: str
    ids: tuple[int, ...]
    ended_by: EndedBy

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def document(self) -> dict[str, Any]:
        return {"text": self.text, "tokens": self.tokens, "ended_by": self.ended_by}


@dataclass
class Row:
    """queue: ids that go in before anything is chosen. route: the site of a due decision. talks: inside a
    segment. several: whether the query asks for several procedures, where the bank can tell: a query for one
    ends after it, one for several has a second. ids: all that went in or was said after the prompt, memory
    ids included, EOS not. room: how many that may be. routes_at_eos: EOS ends a segment only, and a route
    follows."""

    plan: Plan
    ids_of: Ids
    names: Sequence[str]
    segment_end: str
    ends: frozenset[int]
    text_of: Callable[[Sequence[int]], str]
    room: int
    routes_at_eos: bool = False
    queue: deque[int] = field(default_factory=deque)
    route: Site | None = None
    talks: bool = False
    done: bool = False
    several: bool | None = None
    procedure: str | None = None
    said: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chain = deque(self.plan.forced)
        self.rng = torch.Generator().manual_seed(self.plan.seed)
        if self.chain or (self.plan.routes and not self.plan.free):
            self.route = "first"
        else:
            self.talks = True

    @property
    def called(self) -> tuple[str, ...]:
        """The procedures until now, in order."""
        return tuple(route.procedure for route in self.routes if route.procedure is not None)

    @property
    def used(self) -> int:
        return len(self.called)

    @property
    def choice(self) -> Choice:
        """What the decision that is due is among. min_prob and `auto!` are about plain text alone."""
        if self.route == "first":
            return self.plan.choice
        return replace(self.plan.choice, plain=not (self.several and self.used == 1), min_prob=0.0)

    @property
    def interruptible(self) -> bool:
        """A segment that nothing but the next procedure separates from it: one may come at any token."""
        told = self.procedure is not None and self.segment_end == "none" and not self.plan.forced
        return told and bool(self.said) and self.used < self.plan.most and self._fits()

    @property
    def may_end(self) -> bool:
        """Whether the EOC id may be chosen now."""
        return self.segment_end == "eoc" and (self.procedure is not None or self.plan.free)

    def decided(self, route: Route) -> None:
        """Go on with a procedure, as plain text, or not at all."""
        site, self.route = self.route, None
        self.routes.append(route)
        if site == "first":
            self.several = route.several
        if route.procedure is not None:
            self.enter(route.procedure)
        elif site == "first":
            self.talks = True
        else:
            self.done = True

    def force(self) -> Route:
        """The chain's next procedure, where a decision is due."""
        assert self.route is not None, "no decision is due"
        route = Route(self.route, self.names[self.chain.popleft()], 1.0, forced=True)
        self.decided(route)
        return route

    def interrupted(self, route: Route) -> None:
        """Another procedure came where a word could have come."""
        if self.said or self.procedure is not None:
            self._close("procedure")
        self.routes.append(route)
        assert route.procedure is not None, "text does not interrupt"
        self.enter(route.procedure)

    def enter(self, name: str) -> None:
        self.procedure, self.talks = name, True
        self.queue.extend(self.ids_of.control(self.names.index(name)))

    def put(self) -> int:
        """The next id of the queue."""
        token = self.queue.popleft()
        self.ids.append(token)
        if self.plan.free and self._full():
            self._close("limit")
            self.done = True
        return token

    def take(self, token: int) -> int | None:
        """One chosen id of a segment: what goes in, or None where nothing does (EOS, or the row is done)."""
        ended: EndedBy | None
        if token == self.ids_of.eoc:
            ended = "eoc"
        elif token in self.ends:
            ended = "eos"
        else:
            self.said.append(token)
            self.ids.append(token)
            ended = "json" if self._json_end() is not None else "limit" if self._full() else None
        if ended is None:
            return token
        self._close(ended)
        if self.plan.free and ended == "eoc":
            self.procedure, self.talks = None, True  # the paper's softmax goes on by itself
        elif not self._goes_on(ended):
            self.done = True
            return None
        else:
            self.route = "boundary"
        if ended == "eoc":
            self.ids.append(token)
        elif self.segment_end == "eoc":
            self.queue.append(self.ids_of.eoc)
        return None if ended == "eos" else token

    def _goes_on(self, ended: EndedBy) -> bool:
        if not self._fits():
            return False
        if self.plan.forced or self.plan.free:
            return bool(self.chain)
        over = ended in ("eoc", "json") or (ended == "eos" and self.routes_at_eos)
        more = self.several is not False and self.used < self.plan.most
        return over and self.procedure is not None and more

    def _fits(self) -> bool:
        """Whether another procedure and a word of it have room."""
        return len(self.ids) + 1 + self.ids_of.tokens + 1 <= self.room

    def _full(self) -> bool:
        spent = len(self.ids) if self.plan.free else len(self.said)
        return spent >= self.plan.new or len(self.ids) >= self.room

    def _json_end(self) -> int | None:
        """Where the one complete JSON object or list ends that the segment began with."""
        if self.segment_end != "json" or self.procedure is None or not self._closes():
            return None
        text = self.text_of(self.said)
        start = len(text) - len(text.lstrip())
        if text[start : start + 1] not in ("{", "["):
            return None
        try:
            return json.JSONDecoder().raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            return None

    def _closes(self) -> bool:
        """Only a token with a bracket can complete a value: the rest need no parsing."""
        last = self.text_of(self.said[-1:])
        return "}" in last or "]" in last

    def _close(self, ended_by: EndedBy) -> None:
        text = self.text_of(self.said)
        if ended_by == "json":
            text = text[: self._json_end()]
        self.segments.append(Segment(self.procedure, text, tuple(self.said), ended_by))
        self.talks, self.said = False, []
