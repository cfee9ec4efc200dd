"""Queries that ask for several procedures in turn, and queries that ask for none: readers, and a seeded
generator that joins single ones. No torch here."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memtoken_cli.data.bfcl import asked_text
from memtoken_cli.data.procedures import Procedure, Sample
from memtoken_cli.io.errors import DataError, Problems, nearest
from memtoken_cli.io.records import read_jsonl

MOST_CALLS = 4
REPEATED = 0.1
LINKS = (" Also, ", " Additionally, ", " Then, ", " Next, ", " After that, ")
LAST_LINKS = (" Finally, ", " Lastly, ")  # before the last of three or more
OTHER_LINKS = (" and then ", "; ", " Plus, ", " Once that is done, ", " While you are at it, ", " - ")
Case = Literal["first", "lower"]
Wording = Literal["trained", "other"]  # the connecting words of training chains, or none of them


@dataclass(frozen=True)
class Call:
    """One step: a procedure and its response. allowed: as a sample's."""

    procedure: str
    output: str
    allowed: str = ""


@dataclass(frozen=True)
class Chain:
    """A query and what it asks for, in order. where: file:line, or nothing."""

    query: str
    calls: tuple[Call, ...]
    where: str = ""


def read_chains(path: str | Path, names: Collection[str]) -> list[Chain]:
    """JSONL {"query", "calls": [{"procedure", "output"}]}. Raises DataError with every bad record."""
    problems, out = Problems(), []
    for record in read_jsonl(path):
        where = f"{path}:{record.line}"
        try:
            out.append(_chain(record.value, names, where))
        except DataError as error:
            problems.add(error)
    problems.raise_any()
    return out


def _chain(value: dict[str, Any], names: Collection[str], where: str) -> Chain:
    query, calls = value.get("query"), value.get("calls")
    hint = 'such as {"query": "..", "calls": [{"procedure": "..", "output": ".."}]}'
    if not isinstance(query, str) or not query.strip():
        raise DataError('"query" must be a string with text', hint=hint, where=where)
    if not isinstance(calls, list) or not calls:
        raise DataError('"calls" must be a list of calls', hint=hint, where=where)
    found = []
    for call in calls:
        named = isinstance(call, dict) and isinstance(call.get("procedure"), str)
        if not named or not isinstance(call.get("output"), str) or not call["output"].strip():
            raise DataError("a call without its procedure or output", hint=hint, where=where)
        if call["procedure"] not in names:
            close = nearest(call["procedure"], names)
            raise DataError(
                f"unknown procedure {call['procedure']}",
                hint=f"did you mean {close}?" if close else None,
                where=where,
            )
        found.append(Call(call["procedure"], call["output"]))
    return Chain(query, tuple(found), where)


def read_negatives(path: str | Path) -> list[str]:
    """JSONL {"query"}, or {"question"} as BFCL's: queries that no procedure answers. Raises DataError with
    every bad record."""
    problems, out = Problems(), []
    for record in read_jsonl(path):
        where = f"{path}:{record.line}"
        try:
            out.append(_query(record.value, where))
        except DataError as error:
            problems.add(error)
    problems.raise_any()
    return out


def _query(value: dict[str, Any], where: str) -> str:
    if "question" in value:
        return asked_text(value, where)
    query = value.get("query")
    if not isinstance(query, str) or not query.strip():
        raise DataError('"query" must be a string with text', hint='{"query": ".."}', where=where)
    return query


def join(
    parts: Sequence[tuple[str, Sample]],
    rng: random.Random,
    case: Case = "first",
    wording: Wording = "trained",
) -> Chain:
    """One query out of several: (procedure, sample) in order, with connecting words between."""
    text = ""
    for i, (_, sample) in enumerate(parts):
        if i:
            last = len(parts) >= 3 and i == len(parts) - 1
            links = LAST_LINKS if last else LINKS
            text += rng.choice(links if wording == "trained" else OTHER_LINKS)
        text += sample.input if not i else _lowered(sample.input, case)
    return Chain(text, tuple(Call(name, sample.output, sample.allowed) for name, sample in parts))


def _lowered(text: str, case: Case) -> str:
    return text.lower() if case == "lower" else text[:1].lower() + text[1:]


def made_chains(
    procedures: Sequence[Procedure],
    split: Literal["train", "test"],
    count: int,
    seed: int,
    *,
    sizes: Sequence[int] | None = None,
    joined: Callable[[Sequence[tuple[str, Sample]], random.Random], Chain] = join,
) -> list[Chain]:
    """`count` chains out of the split's single samples: for training half of 2 calls and half of 3, for tests
    2, 3 and 4 in equal parts.

    Procedures of a chain differ, but for one chain in ten, where one of them comes twice. The same seed makes
    the same chains; training and test share no query, since they share no sample. sizes: other numbers of
    calls. joined: how parts become a query. Raises DataError for too few procedures.
    """
    rng = random.Random(f"{seed} {split} chains")
    pool = {p.name: p.train if split == "train" else p.test for p in procedures}
    names = sorted(name for name, samples in pool.items() if samples)
    longest = min(MOST_CALLS, len(names))
    lengths = tuple(n for n in sizes or ((2, 3) if split == "train" else (2, 3, 4)) if 1 <= n <= longest)
    if count and not lengths:
        raise DataError(f"no chains can be made of {len(names)} procedures", hint="two procedures or more")
    out: list[Chain] = []
    seen: set[str] = set()
    for _ in range(100 * count):
        if len(out) == count:
            break
        n = lengths[len(out) % len(lengths)]
        chosen = rng.sample(names, n)
        if n > 1 and rng.random() < REPEATED:
            chosen[rng.randrange(1, n)] = chosen[0]
        parts = [(name, rng.choice(pool[name])) for name in chosen]
        chain = joined(parts, rng)
        if chain.query not in seen:
            seen.add(chain.query)
            out.append(chain)
    return out
