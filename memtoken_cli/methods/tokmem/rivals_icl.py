"""Baselines that only prompt: the query as it is, and in-context learning with the gold task told.

What each shows is text; retrieval is `rivals_rag.py`'s, decoding that of a bank without procedures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memtoken_cli.data.chains import Chain
from memtoken_cli.data.procedures import Procedure
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.tokmem.adapter import worn
from memtoken_cli.methods.tokmem.api import TokMem
from memtoken_cli.methods.tokmem.bank import Bank, Meta
from memtoken_cli.methods.tokmem.exam import Question, Reply, call_line
from memtoken_cli.methods.tokmem.keys import NONE, Options
from memtoken_cli.methods.tokmem.prompt import Prompt
from memtoken_cli.methods.tokmem.turns import Shown, turns

DEMONSTRATIONS = 2
ASK = "Answer with one line a call: the tool's name, then its arguments as JSON."


class Answers(Protocol):
    """A contestant, ready: replies in the order of the questions."""

    def __call__(self, asked: Sequence[Question], new: int) -> list[Reply]: ...


@dataclass(frozen=True)
class Prompting:
    """A contestant that is nothing but a prompt of the question."""

    backbone: CausalLM
    prompt: Callable[[Question], tuple[int, ...]]
    batch: int = 16

    def __call__(self, asked: Sequence[Question], new: int) -> list[Reply]:
        """Greedy replies of at most `new` tokens. Raises DataError for a prompt beyond the context.

        What the prompts of a batch begin with is read once: questions of one procedure stand together.
        """
        meta = Meta(adapter=worn(self.backbone))  # what the model wears, it wears without a bank too
        bare = TokMem(self.backbone, Bank.empty(meta, self.backbone.dims.width))
        rows = [self.prompt(question) for question in asked]
        # no feature is looked at: where the user's text stands does not matter
        prompts = [Prompt(row, (0, len(row))) for row in rows]
        results = bare.results(prompts, Options(procedures=NONE, max_new_tokens=new), batch=self.batch)
        return [Reply((one.text.strip(),), None, len(row)) for one, row in zip(results, rows, strict=True)]


@dataclass(frozen=True)
class Library:
    """What rivals may show. chains: of the training; calls: outputs are tool calls, which rivals name."""

    procedures: tuple[Procedure, ...]
    chains: tuple[Chain, ...] = ()
    calls: bool = False

    def __getitem__(self, name: str) -> Procedure:
        return next(p for p in self.procedures if p.name == name)

    def demonstrations(self, name: str) -> list[Shown]:
        """Those that come with a procedure, or else its first training samples."""
        p = self[name]
        return [self.shown(name, s.input, s.output) for s in (p.demonstrations or p.train)[:DEMONSTRATIONS]]

    def shown(self, name: str, query: str, output: str) -> Shown:
        return Shown(query, call_line(name, output) if self.calls else output)

    def chained(self) -> list[Shown]:
        return [
            Shown(chain.query, "\n".join(call_line(c.procedure, c.output) for c in chain.calls))
            for chain in self.chains[:DEMONSTRATIONS]
        ]

    def tools(self, names: Sequence[str]) -> str:
        """The tools of these names, told one a line, and how to call them."""
        return "\n".join(["Tools:", *(describe(self[name]) for name in names), ASK])


def describe(procedure: Procedure) -> str:
    return f"- {procedure.name}: {procedure.instruction or procedure.description}"


def base(backbone: CausalLM) -> Callable[[Question], tuple[int, ...]]:
    """The query, after its instruction where the question has one."""
    return lambda question: turns(backbone.tokenizer, question.query, (), question.instruction or "")


def instructed(backbone: CausalLM, library: Library) -> Callable[[Question], tuple[int, ...]]:
    """The query after the gold procedure's instruction: what a user without memory would paste."""

    def prompt(question: Question) -> tuple[int, ...]:
        text = library[question.gold[0]].instruction if question.gold else ""
        return turns(backbone.tokenizer, question.query, (), text)

    return prompt


def icl(backbone: CausalLM, library: Library) -> Callable[[Question], tuple[int, ...]]:
    """The gold task's definition and two demonstrations; of tools, all descriptions and two chains."""

    def prompt(question: Question) -> tuple[int, ...]:
        if library.calls:
            every = [p.name for p in library.procedures]
            shown = library.chained() or [
                s for name in every[:DEMONSTRATIONS] for s in library.demonstrations(name)[:1]
            ]
            return turns(backbone.tokenizer, question.query, shown, library.tools(every))
        if not question.gold:
            return turns(backbone.tokenizer, question.query)
        name = question.gold[0]
        return turns(
            backbone.tokenizer, question.query, library.demonstrations(name), library[name].instruction
        )

    return prompt
