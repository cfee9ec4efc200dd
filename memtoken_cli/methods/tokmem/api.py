"""The Python front door: a backbone and a bank that route and answer. The command line goes through it too.

    backbone = engine.models.load("smollm2-135m"); bank = Bank.load("bank.safetensors")
    for event in TokMem(backbone, bank).generate(["punishable"]): ...

Shape suffixes as in `decode.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from memtoken_cli.engine import seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.tokmem import adapter, taught
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.decode import Decoder
from memtoken_cli.methods.tokmem.events import EndEvent, Event, Result, RouteEvent, TextEvent
from memtoken_cli.methods.tokmem.features import Frozen
from memtoken_cli.methods.tokmem.grammar import Plan
from memtoken_cli.methods.tokmem.keys import DEFAULT, Constrain, Options
from memtoken_cli.methods.tokmem.prompt import Prompt, Prompts
from memtoken_cli.methods.tokmem.route import Route
from memtoken_cli.methods.tokmem.statistics import Kind, Statistics
from memtoken_cli.methods.tokmem.taught import Taught

__all__ = ["Bank", "EndEvent", "Options", "Result", "Route", "RouteEvent", "Taught", "TextEvent", "TokMem"]

BATCH = 8


class TokMem:
    """Raises DataError where the bank was made for another width, another chat template or under another
    adapter (`adapter.wear`)."""

    def __init__(self, backbone: CausalLM, bank: Bank) -> None:
        self.backbone, self.bank = backbone, bank
        if bank.width != backbone.dims.width:
            raise DataError(
                f"the bank's rows are {bank.width} wide, {backbone.name} is {backbone.dims.width}",
                hint="use the model that the bank was made for",
            )
        self.prompts = Prompts(backbone.tokenizer)
        if bank.meta.prompt and bank.meta.prompt != self.prompts.digest:
            raise DataError(
                f"the bank was made with another chat template than that of {backbone.name} "
                f"(expected {bank.meta.prompt[:12]}, found {self.prompts.digest[:12]})",
                hint="use the model and tokenizer that the bank was made for",
            )
        adapter.check(bank.meta, backbone)
        self.frozen = Frozen(backbone, bank.meta.features)
        self.decoder = Decoder(backbone, bank)

    def route(
        self,
        prompts: Sequence[str],
        top_k: int = 3,
        *,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        min_prob: float = 0.0,
        plain: bool = True,
        batch: int = BATCH,
    ) -> list[Route]:
        """What each prompt would be answered by; `plain`: text may win. Raises UsageError, DataError."""
        found: list[Route] = []
        for at in range(0, len(prompts), batch):
            states = self.frozen.read([self.prompts.render(text) for text in prompts[at : at + batch]])
            found += self.decoder.router.route(states, allow, deny, top_k, plain=plain, min_prob=min_prob)
        return found

    def generate(
        self,
        prompts: Sequence[str],
        procedures: str | Sequence[str] = "auto",
        *,
        pipe: Sequence[str] = (),
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        max_procedures: int | None = None,
        min_prob: float = 0.0,
        top_k: int = 3,
        max_new_tokens: int = 256,
        constrain: Constrain = "grammar",
        temperature: float = 0.0,
        seed: int = 0,
        batch: int = BATCH,
    ) -> Iterator[Event]:
        """Events of all prompts, batch by batch; `event.row` counts the prompts. A name in `procedures` is a
        chain of one. Raises UsageError, DataError.
        """
        named = procedures if isinstance(procedures, str) else tuple(procedures)
        if isinstance(named, str) and named in self.bank.names:
            named = (named,)
        options = Options(
            named, tuple(pipe), tuple(allow), tuple(deny), max_procedures, min_prob, top_k, max_new_tokens,
            constrain, temperature, seed,
        )  # fmt: skip
        yield from self.events(prompts, [options] * len(prompts), batch=batch)

    def events(
        self,
        prompts: Sequence[str | Prompt],
        options: Sequence[Options],
        numbers: Sequence[int] | None = None,
        *,
        batch: int = BATCH,
        aloud: bool = True,
    ) -> Iterator[Event]:
        """`generate` with options of each prompt's own. numbers: what seeds a row's draws with its seed; left
        out: its place. A prompt may be rendered already. aloud: with the texts as they come."""
        for each in options:
            each.check(self.bank.names)
        places = range(len(prompts)) if numbers is None else numbers
        for at in range(0, len(prompts), batch):
            chosen = range(at, min(at + batch, len(prompts)))
            yield from self._batch(
                [prompts[i] for i in chosen],
                [options[i] for i in chosen],
                [places[i] for i in chosen],
                at,
                aloud,
            )

    def results(
        self,
        prompts: Sequence[str | Prompt],
        options: Options | Sequence[Options] = DEFAULT,
        numbers: Sequence[int] | None = None,
        *,
        batch: int = BATCH,
    ) -> Iterator[Result]:
        """The end of every prompt, in order, given out as batches finish."""
        each = [options] * len(prompts) if isinstance(options, Options) else options
        done: dict[int, Result] = {}
        following = 0
        for event in self.events(prompts, each, numbers, batch=batch, aloud=False):
            if isinstance(event, EndEvent):
                done[event.row] = event.result
                while following in done:
                    yield done.pop(following)
                    following += 1

    def loss(self, batch: Sequence[Taught]) -> Tensor:
        """The training loss of examples under the bank as it is (eq. 3), a scalar; see `taught.loss`."""
        return taught.loss(self.backbone, self.bank, self.frozen, batch)

    def collect(self, batch: Sequence[Taught]) -> dict[Kind, Statistics]:
        """The statistics of examples, by site, for `Statistics.merge`; see `taught.statistics`."""
        return taught.statistics(self.backbone, self.bank, self.frozen, batch)

    def _batch(
        self,
        prompts: Sequence[str | Prompt],
        options: Sequence[Options],
        numbers: Sequence[int],
        first: int,
        aloud: bool,
    ) -> Iterator[Event]:
        """One batch; rows that pipe go through it again with their answer as the prompt, the last answer
        alone being text."""
        texts: dict[int, str | Prompt] = dict(enumerate(prompts))
        before: dict[int, Result] = {}
        stage = 0
        while texts:
            rows = list(texts)
            staged = [_stage(options[i], stage) for i in rows]
            seeded = [seeds.derive(options[i].seed, numbers[i], stage) for i in rows]
            piped: dict[int, str | Prompt] = {}
            for event in self._decoded([texts[i] for i in rows], staged, seeded, aloud):
                i = rows[event.row]
                if not isinstance(event, EndEvent):
                    if isinstance(event, RouteEvent) or stage + 1 >= len(options[i].pipe):
                        yield replace(event, row=first + i)
                    continue
                result = _joined(before[i], event.result) if i in before else event.result
                if stage + 1 < len(options[i].pipe):
                    before[i], piped[i] = result, event.result.text
                else:
                    yield EndEvent(first + i, result)
            texts, stage = piped, stage + 1

    def _decoded(
        self, prompts: Sequence[str | Prompt], options: Sequence[Options], seeded: Sequence[int], aloud: bool
    ) -> Iterator[Event]:
        rendered = [self._rendered(prompt) for prompt in prompts]
        most = self.bank.meta.max_procedures
        rows = [
            self.decoder.row(Plan.of(each, self.bank.names, most, seed), len(prompt.ids))
            for each, seed, prompt in zip(options, seeded, rendered, strict=True)
        ]
        yield from self.decoder.run(self.frozen.read(rendered), rows, aloud)

    def _rendered(self, prompt: str | Prompt) -> Prompt:
        if isinstance(prompt, Prompt):
            return prompt
        if not prompt.strip():
            raise DataError("there is nothing to read: the prompt, or the answer that is piped on, is empty")
        return self.prompts.render(prompt)


def _stage(options: Options, stage: int) -> Options:
    """The options of one stage of a pipe."""
    if not options.pipe:
        return options
    return replace(options, procedures=(options.pipe[stage],), pipe=())


def _joined(before: Result, after: Result) -> Result:
    """The report of two stages; the answer is the last one's."""
    return Result(
        after.text,
        before.segments + after.segments,
        before.routes + after.routes,
        before.prompt_tokens + after.prompt_tokens,
        before.memory_tokens + after.memory_tokens,
        before.seconds + after.seconds,
        after.ids,
        before.logprobs + after.logprobs,
    )
