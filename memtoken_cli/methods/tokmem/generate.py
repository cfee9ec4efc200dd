"""`memtok generate` of a bank: queries to Answers with their traces. All of it is `api.TokMem`'s doing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.memory import Memory, Rows
from memtoken_cli.engine.method import Answer, GenerateOptions
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.tokmem.adapter import wear_as
from memtoken_cli.methods.tokmem.api import TokMem
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.events import Result, TextEvent
from memtoken_cli.methods.tokmem.keys import DEFAULT, GenerateKeys, Options, row_options
from memtoken_cli.methods.tokmem.prompt import Prompt


class Answering:
    """Keeps the last bank ready, for the command asks batch by batch: addresses are solved once."""

    def __init__(self) -> None:
        self._ready: tuple[CausalLM, Memory, TokMem] | None = None

    def answer(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        queries: Sequence[str],
        options: GenerateOptions,
    ) -> Iterator[Answer]:
        """One Answer a query, in order, given out as batches finish; `options.own` is a GenerateKeys.

        Raises DataError for a query that does not fit, or what is no bank; UsageError for an unknown name.
        """
        own = options.own if isinstance(options.own, GenerateKeys) else keys_of(options)
        ready = self.ready(backbone, memory, about, own.adapter)
        names = ready.bank.names
        shared = own.decoding(names, options.seed)
        records = options.records or ({},) * len(queries)
        each = [row_options(shared, record, names) for record in records]
        for result in ready.results(queries, each, options.lines or None, batch=own.batch):
            yield Answer(result.text, trace=result.document())

    def speak(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        query: str,
        options: GenerateOptions,
    ) -> Iterator[str]:
        """The pieces of one query's answer as they come; raises as `answer`."""
        own = options.own if isinstance(options.own, GenerateKeys) else keys_of(options)
        ready = self.ready(backbone, memory, about, own.adapter)
        for event in ready.events([query], [own.decoding(ready.bank.names, options.seed)]):
            if isinstance(event, TextEvent):
                yield event.text

    def ready(
        self, backbone: CausalLM, memory: Memory, about: Mapping[str, Any], adapter: str | None = None
    ) -> TokMem:
        """The bank of an artifact with its backbone, which wears what it was made under. Raises DataError
        where the memory is no bank."""
        if not isinstance(memory, Rows):
            raise DataError(f"a bank is a memory of the vocab port, this one is of the {memory.port} port")
        kept = self._ready
        if kept is None or kept[0] is not backbone or kept[1] is not memory:
            bank = Bank.of(memory, about)
            wear_as(bank.meta, backbone, adapter, "the bank")
            kept = self._ready = (backbone, memory, TokMem(backbone, bank))
        return kept[2]


def keys_of(options: GenerateOptions) -> GenerateKeys:
    """The keys that plain options stand for."""
    return GenerateKeys(
        max_new_tokens=options.max_new_tokens, temperature=options.temperature, batch=options.batch
    )


def generate(
    backbone: CausalLM,
    bank: Bank,
    prompts: Sequence[str | Prompt],
    options: Options | Sequence[Options] = DEFAULT,
    *,
    batch: int = 8,
) -> Iterator[Result]:
    """One Result a prompt, in order. Raises UsageError for an unknown name, DataError for a prompt that does
    not fit."""
    return TokMem(backbone, bank).results(prompts, options, batch=batch)
