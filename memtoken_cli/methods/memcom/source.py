"""From a recipe to the frozen target, the episodes that a compressor learns from, and held-out tasks.

Held-out means: other seeds of the synthetic stream (every task draws its words and labels anew), and for
labelled records the labels that training never sees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from memtoken_cli.data import icl
from memtoken_cli.data.course import Course
from memtoken_cli.data.pool import Draw, draw, read_pool
from memtoken_cli.data.render import Template
from memtoken_cli.data.shots import Query
from memtoken_cli.data.source import open_dataset
from memtoken_cli.engine import models, seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.dist import World
from memtoken_cli.engine.method import Run
from memtoken_cli.engine.pretrain import exams, trained
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memcom.config import Config, DataConfig
from memtoken_cli.methods.memcom.episodes import CorpusEpisodes, Episodes, Mixed, ShotEpisodes, StreamEpisodes
from memtoken_cli.recipe.canonical import part
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NamedModel


def course_of(data: DataConfig) -> Course:
    """The recipe's synthetic tasks. Raises UsageError where it has none, or ones that cannot be."""
    if data.stream is None:
        raise UsageError(
            "a new model needs a task to learn", hint="data.stream.classes=4, or model.name=smollm2-135m"
        )
    return Course.of(data.stream, data.lessons, data.counts)


def template_of(recipe: Recipe) -> Template:
    """How shots are written while the compressor is trained."""
    config: Config = recipe.config
    if config.template:
        return Template(config.template)
    return Template(icl.TEMPLATE) if recipe.data.stream is not None else Template()


def target(recipe: Recipe, folder: Path, run: Run, world: World) -> CausalLM:
    """The recipe's model, loaded; a new one is trained first and kept in `folder`/backbone."""
    if isinstance(recipe.model, NamedModel):
        return models.load(recipe.model.name, device=run.device)
    text = part(recipe, ("seed", "model"), ("stream", "lessons", "counts"))
    course = course_of(recipe.data)
    return trained(recipe.model, course, folder, text, seed=recipe.seed, run=run, world=world)


def trained_by(recipe: Recipe, sections: Sequence[str]) -> str:
    """What a run belongs to, as YAML: these sections, and of the data what is not only read by an exam."""
    return part(recipe, sections, [key for key in DataConfig.model_fields if key != "exam"])


def episodes(recipe: Recipe, backbone: CausalLM) -> Episodes:
    """What the compressor learns from. Raises DataError where the data is too small for one task."""
    data: DataConfig = recipe.data
    if data.stream is not None:
        topics = course_of(data).topics
        each = [StreamEpisodes(topic.stream, topic.counts, data.queries) for topic in topics]
        return Mixed(each, [topic.share for topic in topics])
    kinds: list[Episodes] = []
    if data.shots is not None:
        seen, _ = split(read_pool(data.shots), data.heldout, recipe.seed)
        longest = backbone.dims.context
        kinds.append(
            ShotEpisodes(
                seen,
                template_of(recipe),
                backbone.tokenizer,
                data.classes,
                data.counts,
                data.queries,
                longest,
            )
        )
    if data.corpus is not None:
        texts = [
            str(r["text"]) for r, _ in zip(_texts(data.corpus), range(data.limit or 2**62), strict=False)
        ]
        kinds.append(CorpusEpisodes.of(texts, backbone.tokenizer, data.source, data.continuation))
    return Mixed(kinds, [data.share, 1 - data.share][: len(kinds)])


def _texts(path: str) -> Iterator[dict[str, object]]:
    for record in open_dataset(path):
        if not isinstance(record.get("text"), str):
            raise DataError('a record of the corpus without "text"', where=path)
        yield record


def split(records: list[Query], heldout: float, seed: int) -> tuple[list[Query], list[Query]]:
    """(records of the labels that training sees, records of the others)."""
    labels = sorted({record.output or "" for record in records})
    kept = random.Random(seeds.derive(seed, "heldout")).sample(labels, round(heldout * len(labels)))
    return [r for r in records if r.output not in kept], [r for r in records if r.output in kept]


def tasks(recipe: Recipe, heldout: bool = True) -> Iterator[Draw]:
    """The exam's tasks; with `heldout` off, of the kind that training saw. Raises DataError."""
    data: DataConfig = recipe.data
    if data.stream is not None:
        yield from exams(course_of(data), data.exam.tasks, data.exam.queries, recipe.seed)
        return
    for number in range(data.exam.tasks):
        seed = recipe.seed + number
        if data.shots is not None:
            parts = split(read_pool(data.shots), data.heldout, recipe.seed)
            records = parts[1] if heldout else parts[0]
            labels = {record.output for record in records}
            classes = min(data.classes, len(labels))
            if classes < 2:
                raise DataError("fewer than two labels are held out", hint="data.heldout=0.3, or more labels")
            each = max(1, max(data.counts) // classes)
            yield draw(records, classes=classes, per_class=each, queries=data.exam.queries, seed=seed)
        else:
            raise UsageError("an exam needs labelled tasks", hint="data.shots=FILE beside the corpus")
