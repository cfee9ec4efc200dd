"""Contestants that write without routing: prompts of any kind, and LoRA. Marks are `exam.py`'s."""

from __future__ import annotations

import json
from collections.abc import Sequence

from memtoken_cli.data.chains import Chain
from memtoken_cli.data.procedures import Procedure, Sample
from memtoken_cli.io import atomic
from memtoken_cli.methods.tokmem.cost import metered
from memtoken_cli.methods.tokmem.exam import call_line, mark_replies
from memtoken_cli.methods.tokmem.exam_config import RowName
from memtoken_cli.methods.tokmem.rivals_icl import Answers, Prompting, base, icl, instructed
from memtoken_cli.methods.tokmem.rivals_lora import Lesson, Pair, Plan, adapted
from memtoken_cli.methods.tokmem.rivals_rag import Corpus, rag
from memtoken_cli.methods.tokmem.setting import Done, Setting, Sit
from memtoken_cli.methods.tokmem.sheets import Sheet

EPOCHS = 3  # LoRA's, where neither the bench nor the recipe says


def prompting(name: RowName) -> Sit:
    """A contestant that is only a prompt."""

    def sit(setting: Setting, seed: int, wanted: frozenset[str]) -> Done:
        backbone, library = setting.backbone, setting.library
        held = 0
        if name in ("base", "base-instructed", "icl"):
            prompt = {
                "base": lambda: base(backbone),
                "base-instructed": lambda: instructed(backbone, library),
                "icl": lambda: icl(backbone, library),
            }[name]()
            found = None
        else:
            corpus: Corpus = name.removeprefix("rag-")  # type: ignore[assignment]
            retrieval = rag(backbone, library, setting.encoder, corpus)
            setting.encoder.encode([q.query for q in setting.asked])  # together, ahead of one by one
            prompt, found = retrieval.prompt, retrieval.found
            held = retrieval.index.known_ND.nbytes + sum(len(t.encode()) for t in retrieval.index.texts)
        answers = Prompting(backbone, prompt, setting.bench.batch)
        sheet = _written(setting, name, seed, answers)
        if found is not None:
            # what was retrieved is a route of a kind, without a probability
            hits = [found(q.query) == q.gold[0] if q.gold else False for q in setting.asked]
            sheet.marks["top1"] = [float(hit) for hit in hits]
        sheet.cost |= {"memory_bytes": held}
        return Done([sheet])

    return sit


def lora(row: RowName, rank: int, blocks: bool = False, replayed: float = 0.0) -> Sit:
    """The model fine-tuned on query and response; of chains, the calls one a line, with their names."""

    def sit(setting: Setting, seed: int, wanted: frozenset[str]) -> Done:
        parts = setting.blocks() if blocks else [setting.found]
        lessons = [
            Lesson(
                _pairs(setting, part.procedures, part.chains),
                [pair for p in part.procedures for pair in _samples(setting, p.name, p.val)],
            )
            for part in parts
        ]
        train = setting.recipe.train
        epochs = setting.bench.epochs or train.epochs or EPOCHS
        tried = setting.place_of(row, rank, replayed, epochs, train.batch, len(parts), *setting.bench.rates)
        rates = setting.bench.rates if all(lesson.val for lesson in lessons) else setting.bench.rates[:1]
        if tried.exists():
            # under another seed: the rate is a property of the data
            losses = json.loads(tried.read_text())
            rates = (float(min(losses, key=lambda rate: losses[rate])),)
        plan = Plan(rank, epochs, train.batch, rates, replayed)
        with (
            metered(setting.backbone.device) as cost,
            adapted(setting.backbone, lessons, plan, seed) as fitted,
        ):
            answers = Prompting(setting.backbone, base(setting.backbone), setting.bench.batch)
            sheet = _written(setting, row, seed, answers)
        if fitted.losses:
            tried.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(tried, json.dumps(fitted.losses) + "\n")
        sheet.cost |= {
            "parameters": fitted.parameters,
            "memory_bytes": 4 * fitted.parameters,
            "lr": fitted.rate,
            "steps": fitted.steps,
            "train_seconds": fitted.seconds,
            "peak_bytes": cost.peak_bytes,
        }
        return Done([sheet])

    return sit


def _pairs(setting: Setting, procedures: Sequence[Procedure], chains: Sequence[Chain]) -> list[Pair]:
    single = [pair for p in procedures for pair in _samples(setting, p.name, p.train)]
    calls = setting.library.calls
    several = [
        Pair(
            chain.query,
            "\n".join(call_line(c.procedure, c.output) if calls else c.output for c in chain.calls),
        )
        for chain in chains
    ]
    return single + several


def _samples(setting: Setting, name: str, samples: Sequence[Sample]) -> list[Pair]:
    calls = setting.library.calls
    return [Pair(s.input, call_line(name, s.output) if calls else s.output) for s in samples]


def _written(setting: Setting, name: str, seed: int, answers: Answers) -> Sheet:
    """Marks and latency of a contestant that only writes."""
    sheet = Sheet(name, seed)
    with metered(setting.backbone.device) as cost:
        replies = answers(setting.asked, setting.bench.max_new_tokens)
    mark_replies(sheet, setting.asked, replies)
    sheet.cost = {
        "first_token_seconds": setting.latency(answers),
        "peak_bytes": cost.peak_bytes,
        "parameters": 0,
    }
    return sheet
