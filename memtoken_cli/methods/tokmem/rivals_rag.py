"""Retrieval baselines: MiniLM finds what the prompt shows before the query.

`paper`: positive examples "input output", the nearest one as a chat turn. `demonstrations`, `strong`: the
nearest training input names the task, whose two nearest samples (strong: and definition) are shown. Of
tools: the five whose descriptions are nearest.

Shape suffixes: N retrieved texts, B queries, D encoder width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.tokmem.exam import Question
from memtoken_cli.methods.tokmem.rivals_icl import DEMONSTRATIONS, Library
from memtoken_cli.methods.tokmem.routers import Encodes
from memtoken_cli.methods.tokmem.turns import Shown, turns

Corpus = Literal["paper", "demonstrations", "strong"]
TOOLS = 5


@dataclass
class Index:
    """Texts of procedures, to be found by nearness. owners: the procedure of each."""

    encoder: Encodes
    texts: tuple[str, ...]
    owners: tuple[str, ...]
    known_ND: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.known_ND = self.encoder.encode(self.texts)

    def nearest(self, query: str) -> list[int]:
        """Indices from the nearest text on."""
        near_N = self.known_ND @ self.encoder.encode([query])[0]
        order: list[int] = near_N.argsort(descending=True, stable=True).tolist()
        return order


@dataclass(frozen=True)
class Retrieval:
    """prompt(question), and the procedure that was found for it."""

    prompt: Callable[[Question], tuple[int, ...]]
    found: Callable[[str], str]
    index: Index


def rag(backbone: CausalLM, library: Library, encoder: Encodes, corpus: Corpus) -> Retrieval:
    """A retrieval baseline. Raises ValueError where there is nothing to retrieve."""
    if library.calls:
        return _tools(backbone, library, encoder)
    entries: list[tuple[str, str, Shown]] = []
    for p in library.procedures:
        if corpus == "paper":
            shown = library.demonstrations(p.name)
            entries += [(p.name, f"{one.query} {one.response}", one) for one in shown]
        else:
            entries += [(p.name, s.input, Shown(s.input, s.output)) for s in p.train]
    index = Index(encoder, tuple(e[1] for e in entries), tuple(e[0] for e in entries))

    def found(query: str) -> str:
        return index.owners[index.nearest(query)[0]]

    def prompt(question: Question) -> tuple[int, ...]:
        order = index.nearest(question.query)
        owner = index.owners[order[0]]
        if corpus == "paper":
            return turns(backbone.tokenizer, question.query, [entries[order[0]][2]])
        chosen = [i for i in order if index.owners[i] == owner][:DEMONSTRATIONS]
        # the nearest stands last, next to the query
        shown = [entries[i][2] for i in reversed(chosen)]
        text = library[owner].instruction if corpus == "strong" else ""
        return turns(backbone.tokenizer, question.query, shown, text)

    return Retrieval(prompt, found, index)


def _tools(backbone: CausalLM, library: Library, encoder: Encodes) -> Retrieval:
    texts = tuple(f"{p.name} {p.instruction or p.description}" for p in library.procedures)
    index = Index(encoder, texts, tuple(p.name for p in library.procedures))

    def prompt(question: Question) -> tuple[int, ...]:
        names = [index.owners[i] for i in index.nearest(question.query)[:TOOLS]]
        shown = library.chained() or library.demonstrations(names[0])[:1]
        return turns(backbone.tokenizer, question.query, shown, library.tools(names))

    return Retrieval(prompt, lambda query: index.owners[index.nearest(query)[0]], index)
