"""What a compressor learns from: prompts to compress, and what is then read or asked behind them.

Three kinds, all as `Batch`: tasks of a synthetic stream, tasks drawn from labelled records, and running text
cut into a source and what follows it. Queries of one prompt share a row and do not see each other.

Shape suffixes: B rows, T source tokens, U continuation tokens, W wanted columns of the continuation.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from memtoken_cli.data.icl import Stream
from memtoken_cli.data.render import Template, Tokenizer, answer_ids, query_ids, render
from memtoken_cli.data.shots import Query, Shot, Shots
from memtoken_cli.io.errors import DataError

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """source_BT, padded on the right, length_B of it real; slots: what it is to be compressed to.

    after_BU: what is read behind it, offset_BU: how far behind, seen_BUU: True where a token sees another;
    target_BW: the tokens that follow the columns wanted_W, IGNORE where there is none.
    """

    source_BT: Tensor
    length_B: Tensor
    slots: int
    after_BU: Tensor
    offset_BU: Tensor
    seen_BUU: Tensor
    wanted_W: Tensor
    target_BW: Tensor

    def __len__(self) -> int:
        return len(self.source_BT)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(
            self.source_BT[rows],
            self.length_B[rows],
            self.slots,
            self.after_BU[rows],
            self.offset_BU[rows],
            self.seen_BUU[rows],
            self.wanted_W,
            self.target_BW[rows],
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.source_BT.to(device),
            self.length_B.to(device),
            self.slots,
            self.after_BU.to(device),
            self.offset_BU.to(device),
            self.seen_BUU.to(device),
            self.wanted_W.to(device),
            self.target_BW.to(device),
        )


class Episodes(Protocol):
    def batch(self, rows: int, ratio: float, generator: torch.Generator) -> Batch:
        """`rows` prompts to be compressed by `ratio`: a function of its arguments only."""
        ...


@dataclass(frozen=True)
class StreamEpisodes:
    """Tasks of a synthetic stream: `counts` shots (one number a batch), then `queries` in a row."""

    stream: Stream
    counts: Sequence[int]
    queries: int

    def batch(self, rows: int, ratio: float, generator: torch.Generator) -> Batch:
        shots = self.counts[int(torch.randint(len(self.counts), (1,), generator=generator))]
        drawn = self.stream.draw(rows, shots + self.queries, generator)
        size = self.stream.shot_tokens
        cut, U = 1 + shots * size, self.queries * (size - 1)
        after = drawn.ids_BT[:, cut:].view(rows, self.queries, size)[..., :-1].flatten(1)
        place_U = torch.arange(U)
        row_U, offset_U = place_U // (size - 1), place_U % (size - 1)
        seen_UU = (row_U[:, None] == row_U) & (place_U[:, None] >= place_U)
        return Batch(
            drawn.ids_BT[:, :cut],
            torch.full((rows,), cut),
            slots_of(cut, ratio),
            after,
            offset_U.expand(rows, U),
            seen_UU.expand(rows, U, U),
            torch.arange(1, self.queries + 1) * (size - 1) - 1,
            drawn.label_BS[:, shots:],
        )


@dataclass(frozen=True)
class ShotEpisodes:
    """Tasks drawn from labelled records: `classes` labels, `counts` shots, `queries` to be answered.

    Raises DataError where the records have fewer labels or examples than a task needs.
    """

    records: Sequence[Query]
    template: Template
    tokenizer: Tokenizer
    classes: int
    counts: Sequence[int]
    queries: int
    longest: int

    def batch(self, rows: int, ratio: float, generator: torch.Generator) -> Batch:
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        by_label: dict[str, list[str]] = {}
        for record in self.records:
            by_label.setdefault(record.output or "", []).append(record.input)
        count = rng.choice(list(self.counts))
        prompts, asked = zip(*(self._task(by_label, count, rng) for _ in range(rows)), strict=True)
        return padded(prompts, asked, ratio)

    def _task(
        self, by_label: dict[str, list[str]], count: int, rng: random.Random
    ) -> tuple[list[int], list[tuple[list[int], int]]]:
        """A prompt's ids, and each query's ids with its answer, of which so many tokens are the answer."""
        if len(by_label) < 2:
            raise DataError(
                "tasks need records with two labels or more", hint="data.shots=FILE with more labels"
            )
        names = rng.sample(sorted(by_label), min(self.classes, len(by_label)))
        pairs = [(text, name) for name in names for text in by_label[name]]
        rng.shuffle(pairs)
        if len(pairs) <= count:
            raise DataError(
                f"{len(pairs)} records of {len(names)} labels are too few for {count} shots and a query",
                hint="data.counts=[...] with fewer, or more data.classes",
            )
        items = [Shot(text, name, 0) for text, name in pairs[:count]]
        ids = render(Shots(items, "pairs", "<task>", ""), self.template, self.tokenizer).ids
        if len(ids) > self.longest:
            raise DataError(
                f"a task of {count} shots has {len(ids)} tokens, the model reads {self.longest}",
                hint="data.counts=[...] with fewer",
            )
        asked = []
        known = {name for _, name in pairs[:count]}
        for text, name in [p for p in pairs[count:] if p[1] in known][: self.queries]:
            answer = answer_ids(self.template, self.tokenizer, name)
            asked.append((query_ids(self.template, self.tokenizer, text) + answer, len(answer)))
        if not asked:
            raise DataError(
                f"no record is left to ask after {count} shots", hint="data.counts=[...] with fewer"
            )
        return ids, asked


@dataclass(frozen=True)
class CorpusEpisodes:
    """Running text: `source` tokens to compress and `after` tokens that follow them, cut anywhere."""

    ids_X: Tensor
    source: int
    after: int

    @classmethod
    def of(cls, texts: Iterable[str], tokenizer: Tokenizer, source: int, after: int) -> CorpusEpisodes:
        """Texts one after the other, a blank line between. Raises DataError where they are too short."""
        ids: list[int] = []
        for text in texts:
            ids += tokenizer.encode(text + "\n\n", add_special_tokens=False)
        if len(ids) < source + after:
            raise DataError(
                f"the corpus has {len(ids)} tokens, a piece needs {source + after}",
                hint="data.source=N and data.continuation=N, smaller",
            )
        return cls(torch.tensor(ids), source, after)

    def batch(self, rows: int, ratio: float, generator: torch.Generator) -> Batch:
        T, U = self.source, self.after
        start_B = torch.randint(len(self.ids_X) - T - U + 1, (rows,), generator=generator)
        piece = self.ids_X[start_B[:, None] + torch.arange(T + U)]
        # the first token after the source is predicted from the source's last, which the memory stands for
        return Batch(
            piece[:, :T],
            torch.full((rows,), T),
            slots_of(T, ratio),
            piece[:, T:-1],
            torch.arange(U - 1).expand(rows, U - 1),
            torch.ones(U - 1, U - 1, dtype=torch.bool).tril().expand(rows, U - 1, U - 1),
            torch.arange(U - 1),
            piece[:, T + 1 :],
        )


@dataclass(frozen=True)
class Mixed:
    """Each batch of one kind, drawn by its share."""

    kinds: Sequence[Episodes]
    shares: Sequence[float]

    def batch(self, rows: int, ratio: float, generator: torch.Generator) -> Batch:
        if len(self.kinds) == 1:
            return self.kinds[0].batch(rows, ratio, generator)
        kind = int(torch.multinomial(torch.tensor(self.shares, dtype=torch.float64), 1, generator=generator))
        return self.kinds[kind].batch(rows, ratio, generator)


def slots_of(tokens: int, ratio: float) -> int:
    """floor(t / ratio). Raises DataError where nothing is left."""
    slots = int(tokens / ratio)
    if slots < 1:
        raise DataError(
            f"a prompt of {tokens} tokens at ratio {ratio:g} keeps none", hint="lower train.ratios"
        )
    return slots


def padded(
    prompts: Sequence[Sequence[int]], asked: Sequence[Sequence[tuple[list[int], int]]], ratio: float
) -> Batch:
    """Prompts and queries of unequal length; the shortest prompt's budget holds for all."""
    B = len(prompts)
    T = max(map(len, prompts))
    rows = [[ids[:-1] for ids, _ in queries] for queries in asked]
    U = max(sum(map(len, row)) for row in rows)
    source, after = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, U, dtype=torch.long)
    offset, target = torch.zeros(B, U, dtype=torch.long), torch.full((B, U), IGNORE)
    # padding sees itself, so that its softmax is defined
    seen = torch.eye(U, dtype=torch.bool).repeat(B, 1, 1)
    for b, prompt in enumerate(prompts):
        source[b, : len(prompt)] = torch.tensor(prompt)
        start = 0
        for ids, answer in asked[b]:
            n = len(ids) - 1
            here = slice(start, start + n)
            after[b, here] = torch.tensor(ids[:-1])
            offset[b, here] = torch.arange(n)
            seen[b, here, here] = torch.ones(n, n, dtype=torch.bool).tril()
            target[b, start + n - answer : start + n] = torch.tensor(ids[1:])[n - answer :]
            start += n
    wanted_W = (target != IGNORE).any(0).nonzero()[:, 0]
    length_B = torch.tensor([len(prompt) for prompt in prompts])
    slots = slots_of(int(length_B.min()), ratio)
    return Batch(source, length_B, slots, after, offset, seen, wanted_W, target[:, wanted_W])
