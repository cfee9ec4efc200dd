"""Procedures: named mappings from a query to a response, their samples, and how those are split.

Which files hold them is `procedure_files.py`'s; chains of several are `chains.py`'s. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memtoken_cli.io.errors import DataError, MemtokError, Problems, UsageError, nearest
from memtoken_cli.io.records import read_lines

Split = Literal["train", "val", "test"]
TEST, TRAIN, VAL = 50, 500, 10  # the published order and sizes of a task's parts
MIN_SAMPLES = 3
PARTS: tuple[Split, ...] = ("train", "val", "test")
NAME_CHARACTERS = 128


@dataclass(frozen=True)
class Sample:
    """One query and the responses that are right, the first of which is learned. where: file:line. allowed:
    JSON, what the arguments of a right tool call may be (`metrics.calls.allowed`), or nothing."""

    input: str
    outputs: tuple[str, ...]
    where: str
    id: str = ""
    split: Split | None = None
    allowed: str = ""

    @property
    def output(self) -> str:
        return self.outputs[0]

    @property
    def rank(self) -> int:
        """The published order: md5 of id, input and first output."""
        text = f"{self.id}||{self.input}||{self.output}"
        return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


@dataclass(frozen=True)
class Procedure:
    """A procedure and its samples, split.

    demonstrations: examples that came with the description. described: it has no samples; training takes its
    description as the one query. dropped: training samples left out because their input is a test's too.
    """

    name: str
    description: str = ""
    instruction: str = ""
    train: tuple[Sample, ...] = ()
    val: tuple[Sample, ...] = ()
    test: tuple[Sample, ...] = ()
    demonstrations: tuple[Sample, ...] = ()
    categories: tuple[str, ...] = ()
    described: bool = False
    dropped: int = 0


@dataclass(frozen=True)
class Caps:
    """At most so many samples of each part."""

    train: int = TRAIN
    val: int = VAL
    test: int = TEST


@dataclass
class Raw:
    """A procedure as its file has it, not yet split. problems: of its records, one each."""

    name: str
    where: str
    description: str = ""
    instruction: str = ""
    samples: list[Sample] = field(default_factory=list)
    demonstrations: list[Sample] = field(default_factory=list)
    categories: tuple[str, ...] = ()
    problems: list[DataError] = field(default_factory=list)

    @property
    def mean_input(self) -> float:
        """Characters of an input on average."""
        return sum(len(s.input) for s in self.samples) / max(1, len(self.samples))


def tool_of(name: str, where: str, description: str, parameters: Sequence[str]) -> Raw:
    """A tool without samples, and the instruction to call it."""
    slots = f" Parameters: {', '.join(parameters)}." if parameters else ""
    text = f"Call the tool {name} ({description}). Answer with its arguments as JSON."
    return Raw(name, where, description, text + slots)


@dataclass(frozen=True)
class Procedures:
    """What a folder holds. skipped: bad records that were left out, each with its place. others: how many
    procedures were not asked for."""

    items: tuple[Procedure, ...]
    skipped: tuple[str, ...] = ()
    others: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items)

    @property
    def dropped(self) -> int:
        return sum(item.dropped for item in self.items)


def read_procedures(
    path: str | Path,
    *,
    tasks: str | int | Sequence[str] | None = None,
    only: Collection[str] | None = None,
    caps: Caps | None = None,
    skip_bad: bool = False,
    described: bool = False,
    check: Callable[[str, Sample], str | None] | None = None,
) -> Procedures:
    """The procedures of a folder (or of one file), by name.

    Args:
        tasks: only these: a file of names, names, or the N with the shortest inputs, at most N/6 a category.
        only: names; procedures of others are left out, whatever is wrong with them, and there may be none.
        check: says what is wrong with a sample of a procedure (too long, say), or None.

    Raises DataError with every problem at its file:line; with `skip_bad` those of single records are left out
    and counted instead. Raises UsageError for names in `tasks` that are not there.
    """
    from memtoken_cli.data.procedure_files import read_folder

    problems = Problems()
    raws = read_folder(Path(path), problems)
    if tasks is not None:
        raws = shortest(raws, tasks) if isinstance(tasks, int) else _named(raws, tasks, problems)
    known = [raw for raw in raws if only is None or raw.name in only]
    others, raws = len(raws) - len(known), known
    skipped: list[str] = []
    items = []
    seen: dict[str, str] = {}
    for raw in raws:
        if check is not None:
            raw.samples = [s for s in raw.samples if _passes(raw, s, check)]
        for problem in raw.problems:
            if skip_bad:
                skipped.append(f"{problem.where}: {problem.message}")
            else:
                problems.add(problem)
        if fault := name_fault(raw.name):
            problems.add(DataError(f"the name {raw.name!r} {fault}", where=raw.where))
        elif raw.name in seen:
            problems.add(DataError(f"{raw.name} stands twice, first in {seen[raw.name]}", where=raw.where))
        seen.setdefault(raw.name, raw.where)
        try:
            items.append(divide(raw, caps or Caps(), described))
        except DataError as error:
            if not raw.problems or skip_bad:
                problems.add(error)
    problems.raise_any()
    if not items and not others:
        hint = "a folder of *.jsonl, task *.json or skill *.md files"
        raise DataError(f"no procedures in {path}", hint=hint)
    return Procedures(tuple(sorted(items, key=lambda item: item.name)), tuple(skipped), others)


def _passes(raw: Raw, sample: Sample, check: Callable[[str, Sample], str | None]) -> bool:
    if (fault := check(raw.instruction, sample)) is not None:
        raw.problems.append(DataError(fault, where=sample.where))
        return False
    return True


def name_fault(name: str) -> str | None:
    """What is wrong with a procedure's name, or None."""
    if not 1 <= len(name) <= NAME_CHARACTERS:
        return f"is not of 1 to {NAME_CHARACTERS} characters"
    if not name.isprintable():
        return "has characters that cannot be printed"
    return "begins with <|" if name.startswith("<|") else None


def divide(raw: Raw, caps: Caps, described: bool = False) -> Procedure:
    """Split by each sample's own `split`, or by rank: test first, then training, then validation.

    A small file's parts shrink in proportion, at least 1 each. Raises DataError: no samples, or too few.
    """
    if not raw.samples:
        return _description(raw, described)
    ranked = sorted(raw.samples, key=lambda s: s.rank)
    if any(s.split for s in ranked):
        parts = {part: [s for s in raw.samples if (s.split or "train") == part] for part in PARTS}
        if not parts["train"]:
            raise DataError(f"{raw.name} has no training sample", where=raw.where)
    else:
        if len(ranked) < MIN_SAMPLES:
            raise DataError(
                f"{raw.name} has {len(ranked)} samples, which cannot be split",
                hint=f'{MIN_SAMPLES} samples or more, or "split" in each',
                where=raw.where,
            )
        a, b = bounds(len(ranked))
        parts = {"test": ranked[:a], "train": ranked[a:b], "val": ranked[b : b + VAL]}
    asked = {s.input for s in parts["test"]}
    train = [s for s in parts["train"] if s.input not in asked]
    return Procedure(
        raw.name,
        raw.description,
        raw.instruction,
        tuple(train[: caps.train]),
        tuple(parts["val"][: caps.val]),
        tuple(parts["test"][: caps.test]),
        tuple(raw.demonstrations),
        raw.categories,
        dropped=len(parts["train"]) - len(train),
    )


def bounds(n: int) -> tuple[int, int]:
    """Where the test part ends, and the training part."""
    whole = TEST + TRAIN + VAL
    if n >= whole:
        return TEST, TEST + TRAIN
    test = max(1, n * TEST // whole)
    val = max(1, n * VAL // whole)
    return test, n - val


def _description(raw: Raw, described: bool) -> Procedure:
    if not described or not raw.description:
        raise DataError(
            f"{raw.name} has no sample",
            hint="add examples, or take its description alone: data.described=true",
            where=raw.where,
        )
    return Procedure(raw.name, raw.description, raw.instruction, categories=raw.categories, described=True)


def _named(raws: list[Raw], tasks: str | Sequence[str], problems: Problems) -> list[Raw]:
    names = [line.strip() for _, line in read_lines(tasks)] if isinstance(tasks, str) else list(tasks)
    wanted = [name for name in names if name]
    known = {raw.name for raw in raws}
    for name in wanted:
        if name not in known:
            close = nearest(name, known)
            problem: MemtokError = UsageError(
                f"there is no procedure {name}", hint=f"did you mean {close}?" if close else None
            )
            problems.add(problem)
    return [raw for raw in raws if raw.name in set(wanted)]


def shortest(raws: Sequence[Raw], count: int) -> list[Raw]:
    """The `count` procedures with the shortest inputs, at most a sixth of them from one category."""
    most = max(1, count // 6)
    taken: list[Raw] = []
    used: dict[str, int] = {}
    for raw in sorted(raws, key=lambda raw: (raw.mean_input, raw.name)):
        category = raw.categories[0] if raw.categories else ""
        if len(taken) < count and (not category or used.get(category, 0) < most):
            taken.append(raw)
            used[category] = used.get(category, 0) + 1
    return taken
