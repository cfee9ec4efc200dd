"""A recipe's new model, taught on a synthetic course and kept as a plain model directory; and exams of it.

    OUT/backbone/   the model · OUT/pretrain/   its run: lock, events, checkpoints

What a new model is, and its loss, is `fresh.py`'s; what is taught is `data/course.py`'s.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from ..data.course import Course
from ..data.pool import Draw
from . import fresh, models, seeds
from .backbone import CausalLM
from .checkpoint import run_dir
from .dist import World
from .fit import fit
from .fresh import Lesson, Pretraining, Schedule, Size
from .method import Run
from .task import At

BACKBONE, PRETRAIN = "backbone", "pretrain"


class Plan(Schedule, Protocol):
    """A recipe's `model.pretrain`."""

    @property
    def batch(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def log_every(self) -> int: ...


class NewModel(Size, Protocol):
    """A recipe's `model: {new: ...}`."""

    @property
    def pretrain(self) -> Plan | None: ...


class Lessons:
    """Batches of a new backbone's first training: each of one topic, drawn by its share, all of about as
    many tokens. The wanted tokens are the right labels of all shots."""

    def __init__(self, course: Course, rows: int) -> None:
        self.topics = course.topics
        self.shares = torch.tensor([topic.share for topic in course.topics])
        self.tokens = rows * max(course.counts) * course.stream.shot_tokens

    def __call__(self, at: At, generator: torch.Generator) -> Lesson:
        topic = self.topics[int(torch.multinomial(self.shares, 1, generator=generator))]
        shots, each = max(topic.counts), topic.stream.shot_tokens
        drawn = topic.stream.draw(max(1, self.tokens // (shots * each)), shots, generator)
        wanted = torch.arange(1, shots + 1) * each - 1  # the last word of each shot
        return Lesson(drawn.ids_BT, wanted, drawn.label_BS)


def trained(
    size: NewModel, course: Course, folder: Path, text: str, *, seed: int, run: Run, world: World
) -> CausalLM:
    """The model of `folder`/backbone, trained first where it is not there yet.

    text: what the training belongs to, as YAML; another text in the folder is refused (UsageError) unless
    `run.fresh`. float32, whatever the hardware likes: what is small is exact.
    """
    path = folder / BACKBONE
    with run_dir(folder / PRETRAIN, text, fresh=run.fresh, world=world, warn=run.note) as rundir:
        if run.fresh or not path.exists():
            backbone = fresh.new_backbone(size, course.stream.vocabulary, seed)
            backbone.model.to(world.device)
            if size.pretrain is not None:
                plan = size.pretrain
                task = Pretraining.of(backbone, Lessons(course, plan.batch), plan)
                every = {"save_every": plan.save_every, "log_every": plan.log_every}
                fit(task, rundir, seed=seed, **every, world=world)
            if world.leader:
                fresh.save(backbone, path)
            world.gather(0)
    return models.load(str(path), device=run.device, dtype="float32")


def exams(course: Course, tasks: int, queries: int, seed: int) -> Iterator[Draw]:
    """Tasks of the course's stream that no training has drawn: the seeds are their own."""
    for number in range(tasks):
        generator = seeds.generator(seed, "exam", number)
        shots, asked = course.stream.task(max(course.counts), queries, generator)
        yield Draw(shots, asked, seed + number)
