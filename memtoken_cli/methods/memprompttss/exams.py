"""Which exam a task is, for `memtok evaluate` and `memtok bench`. No torch at module level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memtoken_cli.engine.method import Run
from memtoken_cli.io.errors import UsageError, nearest
from memtoken_cli.methods.memprompttss.exam_config import (
    CLICK_ROWS,
    PROMPT_ROWS,
    SPEED_ROWS,
    TRANSFER_ROWS,
    UNSUP_ROWS,
    EvaluateKeys,
)

if TYPE_CHECKING:
    from memtoken_cli.methods.memprompttss.exam_data import Source
    from memtoken_cli.methods.memprompttss.subject import Subject

OPTIONAL = {"clap", "claspy"}  # slow packages: only where they are asked for by name
CURVES = ("clicks",)  # tasks that have a picture


def rows(task: str, source: Source, keys: EvaluateKeys, seed: int, run: Run) -> list[dict[str, Any]]:
    """One row a contestant and setting, JSON-ready. Raises UsageError for an unknown contestant or a picture
    that the task does not have, DataError for bad data."""
    exam = EXAMS[task]
    wanted = chosen(task, keys)
    if keys.plot is not None:
        from memtoken_cli.engine.compare_report import check_plot

        check_plot(keys.plot)
        if task not in CURVES:
            raise UsageError(f"task={task} has no curve to plot", hint=f"task={CURVES[0]}")
    return exam(source, wanted, keys, seed, run)


def chosen(task: str, keys: EvaluateKeys) -> tuple[str, ...]:
    """The contestants' names. Raises UsageError for one that the task has not."""
    known = KNOWN[task]
    for name in keys.contestants or ():
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"contestants: {', '.join(known)}"
            raise UsageError(f"task={task} has no contestant {name!r}", hint=hint)
    return keys.contestants or tuple(name for name in known if name not in OPTIONAL)


def subject(keys: EvaluateKeys, order: str = "off") -> Subject:
    """The model as a contestant. Raises UsageError, DataError."""
    from memtoken_cli.methods.memprompttss.model import load_model
    from memtoken_cli.methods.memprompttss.subject import Subject

    return Subject(load_model(keys.subject), order)


def _clicks(
    source: Source, wanted: Sequence[str], keys: EvaluateKeys, seed: int, run: Run
) -> list[dict[str, Any]]:
    from memtoken_cli.methods.memprompttss import click_exam

    found = click_exam.table(source.scenes(), lambda: subject(keys), wanted, keys, seed, run.note)
    if keys.plot is not None:
        click_exam.drawn(found, keys.plot)
        run.note(f"curves: {keys.plot}")
    return found


def _transfer(
    source: Source, wanted: Sequence[str], keys: EvaluateKeys, seed: int, run: Run
) -> list[dict[str, Any]]:
    from memtoken_cli.methods.memprompttss import transfer_exam

    ours = any(name.startswith("tss") for name in wanted)
    subjects = {order: subject(keys, order) for order in ("off", "auto")} if ours else {}
    return transfer_exam.table(source.pairs(), subjects, wanted, keys, seed, run.note)


def _unsup(
    source: Source, wanted: Sequence[str], keys: EvaluateKeys, seed: int, run: Run
) -> list[dict[str, Any]]:
    from memtoken_cli.methods.memprompttss import unsup_exam

    series = [scene.series for scene in source.scenes()]
    return unsup_exam.table(series, wanted, keys, seed, run.note)


def _prompts(
    source: Source, wanted: Sequence[str], keys: EvaluateKeys, seed: int, run: Run
) -> list[dict[str, Any]]:
    from memtoken_cli.methods.memprompttss import prompt_exam

    return prompt_exam.table(source.scenes(), subject(keys), wanted, keys, seed, run.note)


def _speed(
    source: Source, wanted: Sequence[str], keys: EvaluateKeys, seed: int, run: Run
) -> list[dict[str, Any]]:
    from memtoken_cli.methods.memprompttss import speed

    return speed.table(subject(keys).model, wanted, keys, seed, run.note)


Exam = Callable[["Source", Sequence[str], EvaluateKeys, int, Run], list[dict[str, Any]]]
EXAMS: dict[str, Exam] = {
    "clicks": _clicks,
    "transfer": _transfer,
    "unsup": _unsup,
    "prompts": _prompts,
    "speed": _speed,
}
KNOWN: dict[str, Sequence[str]] = {
    "clicks": CLICK_ROWS,
    "transfer": TRANSFER_ROWS,
    "unsup": UNSUP_ROWS,
    "prompts": PROMPT_ROWS,
    "speed": SPEED_ROWS,
}
