"""A bank as a contestant: its routes of questions, and its replies under any choice of procedures.

The grammar and the addresses are `api.TokMem`'s; marks are `exam.py`'s.

Shape suffixes: B questions, P procedures.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.tokmem.api import TokMem
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import FINAL, Feature
from memtoken_cli.methods.tokmem.exam import Choice, Question, Reply, choices
from memtoken_cli.methods.tokmem.features import Prefix
from memtoken_cli.methods.tokmem.keys import AUTO, NONE, Options
from memtoken_cli.methods.tokmem.prompt import Prompt
from memtoken_cli.methods.tokmem.routing import first_site, read_grouped

Memo = dict[tuple[tuple[Feature, ...], tuple[int, ...]], Prefix]  # prompts that were read, by features
Names = tuple[str, ...] | None  # a forced chain (empty: no procedure), or what the bank itself chooses


class Examined:
    """A bank on its backbone. Replies of forced procedures are made once, whoever asks for them."""

    def __init__(self, backbone: CausalLM, bank: Bank, batch: int = 16, memo: Memo | None = None) -> None:
        self.ready, self.batch = TokMem(backbone, bank), batch
        self.memo: Memo = {} if memo is None else memo
        self.made: dict[tuple[tuple[int, ...], Names, int], Reply] = {}

    @property
    def bank(self) -> Bank:
        return self.ready.bank

    def prompts(self, asked: Sequence[Question]) -> list[Prompt]:
        return [self.ready.prompts.render(q.query, q.instruction) for q in asked]

    def routes(self, asked: Sequence[Question]) -> list[Choice]:
        """The first decision of every question. Raises DataError where the bank cannot route."""
        return choices(self.log_probs(asked), self.bank.names, asked)

    def log_probs(self, asked: Sequence[Question]) -> Tensor:
        """float64 [B,P], or [B,P+1] where the bank can tell that no procedure is asked for."""
        prompts, features = self.prompts(asked), self.bank.meta.features
        keys = [(features, prompt.ids) for prompt in prompts]
        router = self.ready.decoder.router
        new = [
            i
            for i, key in enumerate(keys)
            if key not in self.memo or (router.splits and not self.memo[key].user)
        ]
        groups = [asked[i].instruction or "" for i in new]
        read = read_grouped(self.ready.frozen, [prompts[i] for i in new], groups, router.splits)
        for i, prefix in zip(new, read, strict=True):
            self.memo[keys[i]] = prefix
            # what the head reads comes with any other state
            self.memo[(FINAL,), prompts[i].ids] = final_of(prefix)
        return first_site(router, [self.memo[key] for key in keys])

    def replies(self, asked: Sequence[Question], chosen: Sequence[Names], new: int) -> list[Reply]:
        """Greedy replies of at most `new` tokens a segment, each under its own choice."""
        prompts = self.prompts(asked)
        keys = [(prompt.ids, names, new) for prompt, names in zip(prompts, chosen, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self.made]
        # rows of like length together: none waits long for another
        missing.sort(key=lambda i: len(prompts[i].ids))
        options = [_options(chosen[i], new) for i in missing]
        results = self.ready.results([prompts[i] for i in missing], options, batch=self.batch)
        for i, result in zip(missing, results, strict=True):
            named = [s for s in result.segments if s.procedure is not None]
            self.made[keys[i]] = Reply(
                tuple(s.text.strip() for s in (named or result.segments)),
                tuple(str(s.procedure) for s in named),
                result.prompt_tokens,
                result.memory_tokens,
            )
        return [self.made[key] for key in keys]

    def own(self, routed: Sequence[Choice]) -> list[Names]:
        """What the bank does with its routes: one procedure can be forced, a chain is its own to make."""
        if self.bank.meta.max_procedures > 1:
            return [None] * len(routed)
        return [(choice.ranked[0],) if choice.ranked[0] else () for choice in routed]


def final_of(prefix: Prefix) -> Prefix:
    """A prompt as a bank sees it that looks at the final state alone."""
    return Prefix(prefix.prompt, prefix.kept, (prefix.h_E,), prefix.h_E)


def gold(asked: Sequence[Question]) -> list[Names]:
    """The oracle's choice."""
    return [question.gold for question in asked]


def _options(names: Names, new: int) -> Options:
    if names is None:
        return Options(procedures=AUTO, max_new_tokens=new)
    return Options(procedures=names or NONE, max_new_tokens=new)
