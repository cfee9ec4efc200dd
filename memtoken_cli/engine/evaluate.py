"""Measuring one artifact on labelled queries, beside the baselines that its original shots allow.

Without the shots only the memory and `none` can be measured; with them the whole prompt, fewer shots at the
same budget and agreement with the whole prompt too. Labels are the prompt's closed set where it has one;
otherwise answers are decoded and must match exactly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.render import Template
from ..data.shots import Query, Shots
from ..io.errors import DataError
from ..metrics.choice import accuracy
from .answer import Scoring, answer, bias_of
from .backbone import CausalLM
from .compare import Sitting, exam
from .contest import Contestant, context
from .memory import Layers, Memory
from .method import GenerateOptions, Made
from .rivals import RIVALS
from .trie import empty_memory, score


def evaluate(
    backbone: CausalLM,
    memory: Memory,
    about: Mapping[str, Any],
    queries: Sequence[Query],
    *,
    shots: Shots | None = None,
    method: str = "memory",
    scoring: Scoring = "whole",
    calibrated: bool = True,
    batch_tokens: int = 4096,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One JSON-ready record a contestant: method, accuracy, low, high (95 %), queries, and what else was
    measured.

    about: the artifact header's ("template", "labels", "calibration", "instruction"). Raises DataError for a
    query without a label or with one that the prompt does not know, and for shots that are not the
    artifact's.
    """
    if not isinstance(memory, Layers):
        raise DataError(f"queries read a memory of the layers port, this one is of the {memory.port} port")
    if any(query.output is None for query in queries):
        line = next(query.line for query in queries if query.output is None)
        raise DataError("a query without a label", hint='add "output" to every record', where=f"line {line}")
    labels = tuple(about.get("labels") or ())
    if not labels:
        return [_by_text(backbone, memory, about, queries, method, seed)]
    if shots is None:
        return _by_labels(backbone, memory, about, queries, labels, method, scoring, calibrated, batch_tokens)
    template = Template(str(about["template"]))
    ctx = context(backbone, shots, template, str(about.get("instruction") or ""), seed)
    if ctx.labels != labels:
        hint = "shots=FILE names the file that was given to compress"
        raise DataError("these shots are not the ones that the memory was made of", hint=hint)
    test = exam(
        backbone, template, labels, queries, scoring=scoring, batch_tokens=batch_tokens, calibrated=calibrated
    )
    sitting = Sitting(ctx, test)
    ratio = ctx.tokens / max(1, int(memory.slots))
    ours = Contestant(method, lambda _ctx, _slots: Made(memory, dict(about)))
    others = [(ours, ratio), (RIVALS["fewer"], ratio), (RIVALS["none"], None)]
    rows = [sitting.full, *(sitting.sit(*other) for other in others)]
    # the memory was made before: what making it cost is in its own report
    cost = ("compress_seconds", "compress_over_prefill")
    return [{key: value for key, value in row.record().items() if key not in cost} for row in rows]


def _by_labels(
    backbone: CausalLM,
    memory: Layers,
    about: Mapping[str, Any],
    queries: Sequence[Query],
    labels: tuple[str, ...],
    method: str,
    scoring: Scoring,
    calibrated: bool,
    batch_tokens: int,
) -> list[dict[str, Any]]:
    test = exam(
        backbone,
        Template(str(about["template"])),
        labels,
        queries,
        scoring=scoring,
        batch_tokens=batch_tokens,
    )
    records = []
    for name, held in ((method, memory), ("none", empty_memory(backbone))):
        scores_RK = score(backbone, held, test.rows, test.trees, batch_tokens=batch_tokens).scores_RK
        record = _marks(name, scores_RK.argmax(1).tolist(), test.gold)
        if held is memory and calibrated and about.get("calibration"):
            chosen = (scores_RK + bias_of(about, labels)).argmax(1).tolist()
            record["accuracy_calibrated"] = accuracy(chosen, test.gold).value
        records.append(record)
    return records


def _by_text(
    backbone: CausalLM,
    memory: Layers,
    about: Mapping[str, Any],
    queries: Sequence[Query],
    method: str,
    seed: int,
) -> dict[str, Any]:
    options = GenerateOptions(max_new_tokens=64, seed=seed)
    answers = answer(backbone, memory, about, [query.input for query in queries], options)
    return _marks(method, [a.output for a in answers], [(query.output or "").strip() for query in queries])


def _marks(method: str, chosen: Sequence[object], right: Sequence[object]) -> dict[str, Any]:
    found = accuracy(chosen, right)
    return {
        "method": method,
        "accuracy": found.value,
        "low": found.low,
        "high": found.high,
        "queries": found.count,
    }
