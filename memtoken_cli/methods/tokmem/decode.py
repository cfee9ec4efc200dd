"""The batched, cached decode: rows of a batch in states of their own, each through `grammar.Row`.

Memory ids come where a route is due only, vocabulary ids in segments only; constrain="none" is the paper's
free softmax over both. `plain.py` is the naive oracle. Text and batching are `generate.py`'s.

Shape suffixes: B rows, T tokens, P procedures, k control tokens, R = 1 + P k rows of the table (EOC first),
E model width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.engine import prefix_cache, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem.bank import SITES, Bank, Site
from memtoken_cli.methods.tokmem.events import EndEvent, Event, Result, RouteEvent
from memtoken_cli.methods.tokmem.features import Boundary, Frozen, Place, Prefix
from memtoken_cli.methods.tokmem.grammar import Ids, Plan, Row
from memtoken_cli.methods.tokmem.prompt import Prompt
from memtoken_cli.methods.tokmem.route import Route, Router, State
from memtoken_cli.methods.tokmem.taught import table_of
from memtoken_cli.methods.tokmem.telling import Telling


class Decoder:
    """A backbone and a bank, ready to decode batches."""

    def __init__(self, backbone: CausalLM, bank: Bank, router: Router | None = None) -> None:
        self.backbone, self.bank = backbone, bank
        self.router = router or Router(bank, backbone)
        self.table_RE = table_of(bank, backbone.device)
        self.frozen = Frozen(backbone, ())  # reads parts
        self.ids_of = Ids(backbone.dims.vocab, bank.meta.tokens)
        self.ends = frozenset(self.router.ends)
        self.none_0E = self.table_RE[:0]

    def row(self, plan: Plan, length: int) -> Row:
        """A row behind a prompt of `length` tokens.

        Raises DataError where prompt, memory and the first segment (a forced chain: all of them) do not fit
        the context, UsageError where a bank of closed-form addresses is to be decoded without the grammar.
        """
        if plan.free and not self.router.trained and not plan.forced and plan.routes:
            raise UsageError(
                "constrain=none needs addresses in the vocabulary's softmax, this bank's are closed-form",
                hint="constrain=grammar, or train with tokmem.address=coupled",
            )
        context, segments = self.backbone.dims.context, max(1, len(plan.forced))
        k = self.bank.meta.tokens if plan.forced or plan.routes else 0
        eoc = self.bank.meta.segment_end == "eoc"
        needed = segments * (k + plan.new) + (segments - 1) * eoc
        if plan.free:
            needed = plan.new
        if length + needed > context:
            raise DataError(
                f"a prompt of {length} tokens and {needed} after it do not fit the {context} of "
                f"{self.backbone.name}",
                hint="shorten the prompt or lower max_new_tokens",
            )
        return Row(
            plan,
            self.ids_of,
            self.bank.names,
            self.bank.meta.segment_end,
            self.ends,
            self._text,
            context - length,
            # closed-form addresses are no logits: there EOS ends a segment, and scores tell what follows
            not eoc and not self.router.trained and self.router.answers("boundary"),
        )

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.backbone.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    @torch.no_grad()
    def run(self, prefixes: Sequence[Prefix], rows: Sequence[Row], aloud: bool = True) -> Iterator[Event]:
        """Events of a batch as they come, those of texts where `aloud`; each row ends with its EndEvent."""
        batch = _Batch(self, prefixes, rows, aloud)
        while True:
            yield from batch.step()
            if not batch.alive:
                return
            batch.feed()


@dataclass
class _Live:
    """A row in the batch. at: its place in the cache. again: tokens of parts of its prompt that were read
    anew. telling: where texts are given out as they come."""

    number: int
    row: Row
    prefix: Prefix
    boundary: Boundary
    at: int
    position: int
    again: int = 0
    put: int | None = None
    telling: Telling | None = None


class _Batch:
    """Rows that share a cache. h_BE: what the head reads of the last token of each."""

    def __init__(
        self, decoder: Decoder, prefixes: Sequence[Prefix], rows: Sequence[Row], aloud: bool
    ) -> None:
        self.decoder, self.backbone = decoder, decoder.backbone
        self.started = time.perf_counter()
        self.cache, self.mask_BT = prefix_cache.batched(self.backbone, prefixes)
        self.h_BE = torch.stack([prefix.h_E for prefix in prefixes]).to(self.backbone.device)
        watch = decoder.bank.meta.features if "boundary" in decoder.router.scorers else ()
        self.alive = [
            _Live(n, row, prefix, Boundary(watch, prefix, self.backbone.dims.layers), n, prefix.length)
            for n, (row, prefix) in enumerate(zip(rows, prefixes, strict=True))
        ]
        for live in self.alive if aloud else ():
            live.telling = Telling(live.number, live.row)
        self.watching = bool(watch)
        self.prompted = max(prefix.length for prefix in prefixes)
        self.positions = [live.position for live in self.alive]
        self.B = len(rows)

    def step(self) -> Iterator[Event]:
        """Decide for every row what goes in next; rows with nothing left end."""
        for live in self.alive:
            live.put = None
        yield from self._routes()
        talking = [live for live in self.alive if live.row.talks and not live.row.queue]
        for live, picked in zip(talking, self._choose(talking) if talking else (), strict=True):
            if isinstance(picked, Route):
                live.row.interrupted(picked)
                yield from self._told(live)
                yield RouteEvent(live.number, picked)
            else:
                live.put = live.row.take(picked)
                live.boundary.said = live.put is not None and live.put < self.decoder.ids_of.vocab
                yield from self._told(live)
        yield from self._routes()  # EOS does not go in: what follows it is decided at once
        for live in self.alive:
            if live.put is None and not live.row.done:
                live.put = live.row.put()
                yield from self._told(live)
            if live.row.done:
                yield EndEvent(live.number, self._result(live))
        self.alive = [live for live in self.alive if not live.row.done]

    def feed(self) -> None:
        """One forward over what was put in."""
        if 2 * len(self.alive) <= self.B:
            self._compact()
        ids_B1 = torch.zeros(self.B, 1, dtype=torch.long)
        for live in self.alive:
            assert live.put is not None, "a row that goes on has something to go on with"
            ids_B1[live.at, 0] = live.put
            self.positions[live.at] = live.position
            live.position += 1
        device = self.backbone.device
        if self.mask_BT is not None:
            self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(self.B, 1)], 1)
        x_B1E = vocab.embed(self.backbone, ids_B1.to(device), self.decoder.table_RE)
        out = self.backbone.model.get_decoder()(
            inputs_embeds=x_B1E.to(self.backbone.dtype),
            position_ids=torch.tensor(self.positions, device=device)[:, None],
            attention_mask=self.mask_BT,
            cache=self.cache,
            use_cache=True,
            output_hidden_states=self.watching,
        )
        self.h_BE = out.last_hidden_state[:, -1]
        for live in self.alive if self.watching else ():
            assert live.put is not None
            live.boundary.see([x[live.at, -1] for x in out.hidden_states], self.h_BE[live.at], live.put)

    def _routes(self) -> Iterator[Event]:
        """Decisions that are due and not forced, site by site."""
        due = [x for x in self.alive if x.put is None and x.row.route and not x.row.queue]
        for live in due:
            if live.row.chain:
                yield RouteEvent(live.number, live.row.force())
        for site in SITES:
            lives = [live for live in due if live.row.route == site and not live.row.chain]
            if not lives:
                continue
            top_k = max(live.row.plan.top_k for live in lives)
            states = [self._state(live, site) for live in lives]
            choices = [live.row.choice for live in lives]
            for live, route in zip(
                lives, self.decoder.router.pick(site, states, choices, top_k), strict=True
            ):
                live.row.decided(route)
                yield RouteEvent(live.number, route)
        self._focus([live for live in due if live.row.queue])

    def _state(self, live: _Live, site: Site) -> State:
        if site == "first":
            return live.prefix
        if not self.decoder.bank.parted:
            return live.boundary.state(self.h_BE[live.at])
        return Place(self.h_BE[live.at], (), live.prefix.user, live.row.called)

    def _focus(self, lives: Sequence[_Live]) -> None:
        """Of a query for several procedures, the part that asks for a segment is read anew, by itself, and
        followed as a query for one is: neither the other parts nor what was said to them is seen."""
        router = self.decoder.router
        due: list[_Live] = []
        parts: list[Prompt] = []
        for live in lives if router.focuses else ():
            row, prefix = live.row, live.prefix
            if row.several is None and row.plan.forced:
                row.several = router.scores("first", [prefix]).several[0]
            if row.several:
                due.append(live)
                parts.append(prefix.prompt.part(router.part(prefix, row.called)))
        for live, part in zip(due, self.decoder.frozen.read(parts), strict=True):
            assert part.kept is not None
            if self.mask_BT is None:
                self.mask_BT = torch.ones(self.B, self.cache.get_seq_length(), dtype=torch.long)
                self.mask_BT = self.mask_BT.to(self.backbone.device)
            prefix_cache.put(self.cache, self.mask_BT, live.at, part.kept, self.prompted)
            live.position = part.length
            live.again += part.length

    def _choose(self, lives: Sequence[_Live]) -> list[int | Route]:
        """The next id of every row inside a segment, or the route that ends it."""
        h_BE = self.h_BE[[live.at for live in lives]] if len(lives) < self.B else self.h_BE
        eoc = self.decoder.bank.eoc_E is not None
        rows_RE = self.decoder.table_RE[:1] if eoc else self.decoder.none_0E
        words_BV = vocab.logits(self.backbone, h_BE[:, None], rows_RE)[:, 0].float()
        V = self.decoder.ids_of.vocab
        if eoc and not all(live.row.may_end for live in lives):
            shut_B = torch.tensor([not live.row.may_end for live in lives], device=words_BV.device)
            words_BV[shut_B, V] = float("-inf")
        joint = [b for b, live in enumerate(lives) if self._competes(live.row)]
        memory = dict(zip(joint, self.decoder.router.joint(h_BE[joint])[1], strict=True)) if joint else {}
        best_B = words_BV.argmax(-1).tolist()
        return [self._pick(live.row, words_BV[b], best_B[b], memory.get(b)) for b, live in enumerate(lives)]

    def _competes(self, row: Row) -> bool:
        """Whether memory ids may win where a word is due."""
        open_ = row.plan.free or (row.interruptible and self.decoder.router.joins)
        return open_ and row.plan.routes and self.decoder.router.trained

    def _pick(self, row: Row, words_V: Tensor, best: int, memory_P: Tensor | None) -> int | Route:
        if memory_P is None and row.plan.temperature == 0 and not row.plan.logprobs:
            return best
        words_V, V = words_V.cpu(), len(words_V)
        if memory_P is None:
            logits = words_V
        else:
            logits = torch.cat([words_V, memory_P.masked_fill(~row.plan.choice.allowed_P, float("-inf"))])
        log_p = logits.log_softmax(-1)
        if row.plan.temperature > 0 and (memory_P is None or row.plan.free):
            p = (logits / row.plan.temperature).softmax(-1)
            at = int(torch.multinomial(p, 1, generator=row.rng))
        else:
            at = int(logits.argmax())
        if at < V:
            if row.plan.logprobs:
                row.logprobs.append(float(log_p[at]))
            return at
        assert memory_P is not None, "nothing else lies beyond the vocabulary"
        site: Site = "boundary" if row.ids else "first"
        return self.decoder.router.free_route(site, log_p[V:], logits[V:], at - V, row.plan.top_k)

    def _told(self, live: _Live) -> Iterator[Event]:
        return iter(()) if live.telling is None else live.telling.more()

    def _result(self, live: _Live) -> Result:
        row = live.row
        return Result(
            "\n".join(segment.text for segment in row.segments),
            tuple(row.segments),
            tuple(row.routes),
            live.prefix.length + live.again,
            sum(token >= self.decoder.ids_of.vocab for token in row.ids),
            time.perf_counter() - self.started,
            tuple(row.ids),
            tuple(row.logprobs),
        )

    def _compact(self) -> None:
        """Only rows that go on stay in the cache."""
        keep = torch.tensor([live.at for live in self.alive], device=self.backbone.device)
        self.cache.batch_select_indices(keep)
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[keep]
        self.positions = [self.positions[live.at] for live in self.alive]
        for at, live in enumerate(self.alive):
            live.at = at
        self.B = len(self.alive)
