"""One runner for all contestants: the same prompt, budget, queries and scoring for each, over many draws.

A contestant (see `contest.py`) is a name and

    make(context: Context, slots: int) -> Made(memory, about, report)

`context` has the backbone, the shots, the rendered prompt and every token of it prefilled (`context.full`),
so that `compress_seconds` is what compressing costs beyond the prefill. The memory keeps at most `slots`
tokens a layer and head on average, and is a `Layers`. A method enters with one line, such as

    Contestant("compact", lambda ctx, slots: compress_prefilled(ctx.backbone, ctx.full, ..., slots))

Where `Made.about["calibration"]` is given it calibrates that memory; otherwise the runner's own does.
Tables, JSON and plots of the rows are `compare_report.py`'s.

Shape suffixes: R queries, K labels, S shots.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data.pool import Draw
from ..data.render import Template, query_ids
from ..data.shots import Query
from ..io.errors import DataError
from ..io.progress import bar
from ..metrics.choice import accuracy, agreement, interval
from ..metrics.divergence import mean_kl
from .answer import Scoring, bias_of, label_trees
from .backbone import CausalLM
from .calibrate import calibrate
from .contest import Contestant, Context, context, subset
from .leave_one_out import loo_scores
from .memory import Layers
from .method import Made
from .rivals import RIVALS
from .trie import Scored, Trie, score


@dataclass(frozen=True)
class Row:
    """One contestant at one ratio (None: no budget), over `draws` draws. Seconds, bytes and slots (tokens
    kept per layer and head) are means; low and high bound the accuracy over all queries at 95 %; KL in
    nats."""

    method: str
    ratio: float | None
    accuracy: float
    low: float
    high: float
    accuracy_over_full: float
    agreement: float
    kl_first: float
    kl_answer: float
    accuracy_calibrated: float | None
    tokens: float
    slots: float
    bytes: float
    compress_seconds: float
    compress_over_prefill: float
    query_seconds: float
    queries: int
    draws: int = 1

    def record(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Exam:
    """The queries of one draw and how they are marked: the same for every contestant."""

    rows: list[list[int]]
    gold: list[int]
    trees: list[Trie]
    batch_tokens: int
    calibrated: bool


def exam(
    backbone: CausalLM,
    template: Template,
    labels: Sequence[str],
    queries: Sequence[Query],
    *,
    scoring: Scoring = "whole",
    batch_tokens: int = 4096,
    calibrated: bool = True,
) -> Exam:
    """Raises DataError for a query without a label, or with one that is not among `labels`."""
    index = {label: k for k, label in enumerate(labels)}
    for query in queries:
        if query.output not in index:
            raise DataError(
                "a query without a label"
                if query.output is None
                else f"no shot has the label {query.output!r}",
                where=f"line {query.line}",
            )
    rows = [query_ids(template, backbone.tokenizer, query.input) for query in queries]
    gold = [index[query.output or ""] for query in queries]
    return Exam(rows, gold, label_trees(backbone, template, labels, scoring), batch_tokens, calibrated)


def compare(
    backbone: CausalLM,
    draws: Iterable[Draw],
    template: Template,
    contestants: Sequence[Contestant],
    ratios: Sequence[float],
    *,
    instruction: str = "",
    scoring: Scoring = "whole",
    calibrated: bool = True,
    batch_tokens: int = 4096,
) -> Iterator[list[Row]]:
    """The rows of every draw, as they are done: `full`, then the contestants as given, each at rising ratios.

    Contestants that are `whole` run once a draw. Raises DataError where a prompt does not fit the backbone
    or a ratio leaves no token.
    """
    for drawn in draws:
        ctx = context(backbone, drawn.shots, template, instruction, drawn.seed)
        test = exam(
            backbone,
            template,
            ctx.labels,
            drawn.queries,
            scoring=scoring,
            batch_tokens=batch_tokens,
            calibrated=calibrated,
        )
        sitting = Sitting(ctx, test)
        tasks = [(c, ratio) for c in contestants for ratio in ([None] if c.whole else sorted(ratios))]
        rows = [sitting.full]
        for contestant, ratio in bar(tasks, f"draw {drawn.seed}", total=len(tasks)):
            rows.append(sitting.sit(contestant, ratio))
        yield rows


@dataclass(frozen=True)
class Sitting:
    """One draw's exam; what all contestants are held against is computed once."""

    ctx: Context
    test: Exam

    @cached_property
    def reference(self) -> tuple[Scored, float]:
        """The whole prompt's answers, and its seconds a query."""
        return self._scored(self.ctx.full)

    @cached_property
    def full(self) -> Row:
        """The whole prompt's own row."""
        return self.sit(RIVALS["full"], None)

    @cached_property
    def prompt_bias_K(self) -> Tensor:
        """What the whole prompt's leave-one-out scores calibrate to: every eviction has them at hand."""
        return self._fit(self.ctx)

    def sit(self, contestant: Contestant, ratio: float | None) -> Row:
        """One contestant at one ratio of the prompt's tokens (None: no budget). Raises DataError."""
        ctx = self.ctx
        slots = ctx.tokens if ratio is None else int(ctx.tokens / ratio)
        if slots < 1:
            raise DataError(f"ratio {ratio:g} leaves none of the prompt's {ctx.tokens} tokens")
        start = time.perf_counter()
        made = contestant.make(ctx, slots)
        again = self.ctx.prefill_seconds if contestant.prefills else 0.0
        seconds = max(0.0, time.perf_counter() - start - again)
        memory = made.memory
        if not isinstance(memory, Layers):
            raise DataError(f"{contestant.name} made a memory of the {memory.port} port, not of layers")
        scored, query_seconds = self.reference if memory is ctx.full else self._scored(memory)
        gold, trusted = self.test.gold, self.reference[0]
        chosen, trusted_chosen = scored.scores_RK.argmax(1).tolist(), trusted.scores_RK.argmax(1).tolist()
        marks, full_marks = accuracy(chosen, gold), accuracy(trusted_chosen, gold)
        first, whole = mean_kl(trusted.watched, scored.watched)
        bias_K = self.bias(contestant, made) if self.test.calibrated else None
        calibrated = (
            None if bias_K is None else accuracy((scored.scores_RK + bias_K).argmax(1).tolist(), gold).value
        )
        return Row(
            method=contestant.name,
            ratio=ratio,
            accuracy=marks.value,
            low=marks.low,
            high=marks.high,
            accuracy_over_full=marks.value / full_marks.value if full_marks.value else float("nan"),
            agreement=agreement(chosen, trusted_chosen),
            kl_first=first,
            kl_answer=whole,
            accuracy_calibrated=calibrated,
            tokens=float(ctx.tokens),
            slots=memory.slots,
            bytes=float(memory.nbytes),
            compress_seconds=seconds,
            compress_over_prefill=seconds / ctx.prefill_seconds,
            query_seconds=query_seconds,
            queries=len(gold),
        )

    def bias(self, contestant: Contestant, made: Made) -> Tensor | None:
        """float64 [K]: what calibrates this memory; None where it has no shots to learn it from."""
        if contestant.calibrated_by == "nobody":
            return None
        if made.about.get("calibration"):
            return bias_of(made.about, self.ctx.labels)
        if contestant.calibrated_by == "prompt":
            return self.prompt_bias_K
        chosen = made.about["shots"]
        if not chosen:
            return None
        some = subset(self.ctx.shots, chosen)
        return self._fit(context(self.ctx.backbone, some, self.ctx.template, self.ctx.instruction))

    def _fit(self, ctx: Context) -> Tensor:
        """Zeros where cross-validation found no bias better than none."""
        loo = loo_scores(
            ctx.backbone,
            ctx.full,
            ctx.rendered,
            ctx.shots.items,
            self.ctx.labels,
            self.test.trees,
            batch_tokens=self.test.batch_tokens,
        )
        fitted = calibrate(loo.scores_SK, loo.label_S)
        return torch.zeros(len(self.ctx.labels), dtype=torch.float64) if fitted is None else fitted.bias_K

    def _scored(self, memory: Layers) -> tuple[Scored, float]:
        test = self.test
        start = time.perf_counter()
        scored = score(
            self.ctx.backbone,
            memory,
            test.rows,
            test.trees,
            batch_tokens=test.batch_tokens,
            watch=True,
            gold=test.gold,
        )
        return scored, (time.perf_counter() - start) / len(test.rows)


def average(draws: Sequence[Sequence[Row]]) -> list[Row]:
    """Each contestant and ratio over the draws: means of every figure, the interval over all queries
    together."""
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for rows in draws:
        for row in rows:
            groups.setdefault((row.method, row.ratio), []).append(row)
    return [_mean(group) for group in groups.values()]


def _mean(group: Sequence[Row]) -> Row:
    count = sum(row.queries for row in group)
    pooled = interval(round(sum(row.accuracy * row.queries for row in group)), count)
    figures: dict[str, float | None] = {}
    for name, value in asdict(group[0]).items():
        if isinstance(value, float) and name != "ratio":
            values = [getattr(row, name) for row in group]
            figures[name] = None if any(v is None for v in values) else sum(values) / len(values)
    whole = {"low": pooled.low, "high": pooled.high, "queries": count, "draws": len(group)}
    return Row(**(asdict(group[0]) | figures | whole))
