"""From a recipe to the frozen target, the episodes that a compressor learns from, and held-out tasks.

Held-out means: other seeds of the synthetic stream (every task draws its words and labels anew), and for
labelled records the labels that training never sees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from memtoken_cli.data import icl
from memtoken_cli.data.icl import Stream
from memtoken_cli.data.pool import Draw, draw, read_pool
from memtoken_cli.data.render import Template
from memtoken_cli.data.shots import Query
from memtoken_cli.data.source import open_dataset
from memtoken_cli.engine import fresh, models, seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.dist import World
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.fresh import Lesson, Pretraining
from memtoken_cli.engine.method import Run
from memtoken_cli.engine.task import At
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memcom.config import Config, DataConfig, LessonSection
from memtoken_cli.methods.memcom.episodes import CorpusEpisodes, Episodes, Mixed, ShotEpisodes, StreamEpisodes
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NamedModel, NewModel, TrainSection

BACKBONE = "backbone"


def stream_of(data: DataConfig) -> Stream:
    """The recipe's synthetic stream. Raises UsageError where it has none, or one that cannot be."""
    if data.stream is None:
        raise UsageError(
            "a new model needs a task to learn", hint="data.stream.classes=4, or model.name=smollm2-135m"
        )
    return Stream(**data.stream.model_dump())


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
    path = folder / BACKBONE
    _pretrain(recipe, recipe.model, path, run, world)
    # what is small is exact: float32, whatever the hardware likes
    return models.load(str(path), device=run.device, dtype="float32")


def _pretrain(recipe: Recipe, size: NewModel, path: Path, run: Run, world: World) -> None:
    stream = stream_of(recipe.data)
    text = trained_by(recipe, ("seed", "model", "data"))
    with run_dir(path.with_name("pretrain"), text, fresh=run.fresh, world=world, warn=run.note) as rundir:
        if path.exists() and not run.fresh:
            return
        backbone = fresh.new_backbone(size, stream.vocabulary, recipe.seed)
        backbone.model.to(world.device)
        if size.pretrain is not None:
            task = Pretraining.of(backbone, Lessons(recipe.data, size.pretrain.batch), size.pretrain)
            fit(task, rundir, seed=recipe.seed, **_every(size.pretrain), world=world)
        if world.leader:
            fresh.save(backbone, path)
        world.gather(0)


def trained_by(recipe: Recipe, sections: Sequence[str]) -> str:
    """What a run belongs to, as YAML: these sections, without what only an exam reads."""
    said = {key: value for key, value in recipe.resolved().items() if key in sections}
    said["data"] = {key: value for key, value in said["data"].items() if key != "exam"}
    return dump(said)


def _every(train: TrainSection) -> dict[str, int]:
    return {"save_every": train.save_every, "log_every": train.log_every}


def lessons_of(data: DataConfig) -> list[tuple[float, Stream, tuple[int, ...]]]:
    """(share, tasks, numbers of shots) of each lesson; without lessons, the stream itself."""
    stream, found = stream_of(data), []
    for lesson in data.lessons or (LessonSection(share=1.0),):
        said = lesson.model_dump(include={"pool", "content", "filler", "noise"}, exclude_none=True)
        counts = data.counts if lesson.shots is None else (lesson.shots,)
        found.append((lesson.share, replace(stream, **said), counts))
    return found


class Lessons:
    """Batches of a new backbone's first training: each of one lesson, drawn by its share, all of about as
    many tokens. The wanted tokens are the right labels of all shots."""

    def __init__(self, data: DataConfig, rows: int) -> None:
        self.lessons = lessons_of(data)
        self.shares = torch.tensor([share for share, _, _ in self.lessons])
        self.tokens = rows * max(data.counts) * stream_of(data).shot_tokens

    def __call__(self, at: At, generator: torch.Generator) -> Lesson:
        _, stream, counts = self.lessons[int(torch.multinomial(self.shares, 1, generator=generator))]
        shots = max(counts)
        rows = max(1, self.tokens // (shots * stream.shot_tokens))
        drawn = stream.draw(rows, shots, generator)
        wanted = torch.arange(1, shots + 1) * stream.shot_tokens - 1  # the last word of each shot
        return Lesson(drawn.ids_BT, wanted, drawn.label_BS)


def episodes(recipe: Recipe, backbone: CausalLM) -> Episodes:
    """What the compressor learns from. Raises DataError where the data is too small for one task."""
    data: DataConfig = recipe.data
    if data.stream is not None:
        lessons = lessons_of(data)
        each = [StreamEpisodes(stream, counts, data.queries) for _, stream, counts in lessons]
        return Mixed(each, [share for share, _, _ in lessons])
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
    for number in range(data.exam.tasks):
        seed = recipe.seed + number
        if data.stream is not None:
            generator = seeds.generator(recipe.seed, "exam", number)
            shots, queries = stream_of(data).task(max(data.counts), data.exam.queries, generator)
            yield Draw(shots, queries, seed)
        elif data.shots is not None:
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
