"""Questions with their gold, the replies of whatever is examined, and the marks of each: one vocabulary for
banks and for everything they are held against.

How replies come about is not known here; what becomes of marks is `sheets.py`'s.

Shape suffixes: B questions, P procedures (and, last, no procedure at all).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtoken_cli.data.chains import Chain
from memtoken_cli.data.procedures import Procedure
from memtoken_cli.methods.tokmem.sheets import SHARES, Sheet
from memtoken_cli.metrics.calls import Call, by_number, canonical, marks
from memtoken_cli.metrics.calls import Marks as CallMarks
from memtoken_cli.metrics.rouge import exact, rouge_l

TOP = 3
CALL_MARKS = ("tool_f1", "arg_f1", "call_f1", "exact")


@dataclass(frozen=True)
class Question:
    """A query and its gold steps: names, and for each the responses that are right. No step: a negative.
    allowed: as a sample's, of each step."""

    query: str
    gold: tuple[str, ...]
    references: tuple[tuple[str, ...], ...] = ()
    instruction: str | None = None
    allowed: tuple[str, ...] = ()

    @property
    def calls(self) -> list[Call]:
        """The gold steps as tool calls."""
        allowed = self.allowed or ("",) * len(self.gold)
        parts = zip(self.gold, self.references, allowed, strict=True)
        return [Call(name, texts[0], free) for name, texts, free in parts]


@dataclass(frozen=True)
class Choice:
    """What a router said at the first site. ranked: the likeliest names, best first ("" is no procedure)."""

    ranked: tuple[str, ...]
    p: float
    nll: float


@dataclass(frozen=True)
class Reply:
    """An answer: its segments' texts, under which procedures (None where the contestant knows none)."""

    texts: tuple[str, ...]
    procedures: tuple[str, ...] | None = None
    prompt_tokens: int = 0
    memory_tokens: int = 0


def questions(
    procedures: Sequence[Procedure], tests: int, instructed: bool, split: str = "test"
) -> list[Question]:
    """At most `tests` samples of each procedure, procedure by procedure."""
    return [
        Question(
            sample.input,
            (p.name,),
            (sample.outputs,),
            p.instruction if instructed and p.instruction else None,
            (sample.allowed,),
        )
        for p in procedures
        for sample in (p.test if split == "test" else p.val)[:tests]
    ]


def chain_questions(chains: Sequence[Chain]) -> list[Question]:
    return [
        Question(
            chain.query,
            tuple(c.procedure for c in chain.calls),
            tuple((c.output,) for c in chain.calls),
            allowed=tuple(c.allowed for c in chain.calls),
        )
        for chain in chains
    ]


def negatives(queries: Sequence[str]) -> list[Question]:
    return [Question(query, ()) for query in queries]


def choices(
    log_p_BP: Tensor, names: Sequence[str], asked: Sequence[Question], top: int = TOP
) -> list[Choice]:
    """What log-probabilities say; a column more than names is that of no procedure."""
    labels = (*names, "")[: log_p_BP.shape[1]]
    at = {name: i for i, name in enumerate(labels)}
    found = []
    for log_p_P, question in zip(log_p_BP.double(), asked, strict=True):
        best = torch.argsort(log_p_P, descending=True, stable=True)[:top].tolist()
        wanted = question.gold[0] if question.gold else ""
        # a name that is not in the bank at all cannot be right
        nll = -float(log_p_P[at[wanted]]) if wanted in at else math.inf
        found.append(Choice(tuple(labels[i] for i in best), float(log_p_P[best[0]].exp()), nll))
    return found


def mark_routes(sheet: Sheet, asked: Sequence[Question], chosen: Sequence[Choice]) -> None:
    """Columns top1, top3, nll, p, right (questions with a gold step), false_fire (negatives)."""
    for question, choice in zip(asked, chosen, strict=True):
        first = question.gold[0] if question.gold else ""
        hit = choice.ranked[0] == first
        known = bool(question.gold)
        values = {
            "top1": float(hit) if known else math.nan,
            "top3": float(first in choice.ranked) if known else math.nan,
            "nll": choice.nll if known else math.nan,
            "p": choice.p if known else math.nan,
            "false_fire": math.nan if known else float(choice.ranked[0] != ""),
        }
        for name, value in values.items():
            sheet.marks.setdefault(name, []).append(value)
        sheet.pairs.append((first, choice.ranked[0]))


def mark_replies(sheet: Sheet, asked: Sequence[Question], replies: Sequence[Reply]) -> None:
    """Columns rouge_l, em, prompt_tokens, memory_tokens, set_match (where procedures are known); tool marks
    where every reference is a JSON object, of single calls only where there are no others. Negatives count
    tokens alone."""
    are_calls = outputs_are_calls(asked)
    each: list[CallMarks] = []
    for question, reply in zip(asked, replies, strict=True):
        values = dict.fromkeys(("rouge_l", "em", "set_match"), math.nan)
        if question.gold:
            text, right = answer_of(reply), reference_of(question)
            values["rouge_l"], values["em"] = rouge_l(text, right), float(exact(text, right))
            if reply.procedures is not None:
                values["set_match"] = float(set(reply.procedures) == set(question.gold))
        values |= {"prompt_tokens": reply.prompt_tokens, "memory_tokens": reply.memory_tokens}
        for name, value in values.items():
            sheet.marks.setdefault(name, []).append(value)
        if are_calls and question.gold:
            each.append(marks(calls_of(reply), question.calls))
    if each:
        numbers = [len(question.gold) for question in asked if question.gold]
        sheet.calls = by_number(each, numbers)
        least, told = min(2, max(numbers)), iter(each)
        by_question = [next(told) if question.gold else None for question in asked]
        kept = [m if len(q.gold) >= least else None for m, q in zip(by_question, asked, strict=True)]
        for name in CALL_MARKS:
            sheet.marks[name] = [math.nan if m is None else getattr(m, name) for m in kept]


def outputs_are_calls(asked: Sequence[Question]) -> bool:
    texts = [texts[0] for question in asked for texts in question.references]
    return bool(texts) and all(canonical(text) is not None for text in texts)


def answer_of(reply: Reply) -> str:
    return "\n".join(text.strip() for text in reply.texts)


def reference_of(question: Question) -> tuple[str, ...]:
    """Of one step, all of its references; of several, the first of each, one a line."""
    if len(question.references) == 1:
        return question.references[0]
    return ("\n".join(texts[0] for texts in question.references),)


def calls_of(reply: Reply) -> list[Call]:
    """The calls of a reply: by its procedures, or, where it knows none, from lines `NAME {...}`."""
    if reply.procedures is not None:
        return [Call(*pair) for pair in zip(reply.procedures, reply.texts, strict=False)]
    return written_calls("\n".join(reply.texts))


def written_calls(text: str) -> list[Call]:
    found = []
    for line in text.splitlines():
        name, brace, rest = line.partition("{")
        if line.strip():
            found.append(Call(name.strip(), brace + rest.strip()))
    return found


def call_line(name: str, arguments: str) -> str:
    """How a rival that writes text is to call a tool."""
    return f"{name} {arguments}"


def by_procedure(sheet: Sheet, asked: Sequence[Question]) -> list[dict[str, Any]]:
    """Means of the marks of each procedure's questions, by the first gold step."""
    places: dict[str, list[int]] = {}
    for i, question in enumerate(asked):
        if question.gold:
            places.setdefault(question.gold[0], []).append(i)
    rows = []
    for name, at in places.items():
        row: dict[str, Any] = {"procedure": name}
        for mark in (*SHARES, "nll"):
            values = [sheet.marks[mark][i] for i in at] if mark in sheet.marks else []
            values = [v for v in values if v == v]
            if values:
                row[mark] = sum(values) / len(values)
        rows.append(row | {"questions": len(at)})
    return rows
