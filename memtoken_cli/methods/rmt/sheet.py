"""Figures of one trained model on its task: a row a size, or a segment of a text; and what recipes expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memtoken_cli.data.babi import Story
from memtoken_cli.data.stream_babilong import BabiLong
from memtoken_cli.data.stream_text import Text
from memtoken_cli.data.streams import IGNORE, Sequences
from memtoken_cli.engine import seeds
from memtoken_cli.methods.rmt import text_exam
from memtoken_cli.methods.rmt.exam import TEST, examples, marked
from memtoken_cli.methods.rmt.exam_config import ExamKeys
from memtoken_cli.methods.rmt.subject import Subject
from memtoken_cli.metrics import intervals
from memtoken_cli.metrics.answers import only_label

LABELS = {"none": "no_memory", "shuffled": "shuffled"}  # a control's column


@dataclass(frozen=True)
class Result:
    """rows: of the table. figures: the numbers that matter most. Of a task also main, the size that they are
    of, and shares: by size, each test row's share of right tokens."""

    rows: list[dict[str, Any]]
    figures: dict[str, float]
    main: int | None
    shares: dict[int, NDArray[np.float64]]


def measured(found: Subject, keys: ExamKeys, note: Callable[[str], None] = lambda text: None) -> Result:
    """Test a model. Raises UsageError, DataError for sizes that the task does not have."""
    if isinstance(found.stream, Text):
        return _text(found, found.stream, keys)
    rows, shares = [], {}
    for n in found.sizes(keys.sizes):
        note(f"{found.policy}: {found.stream.unit} {n}")
        row, shares[n] = _size(found, n, keys)
        rows.append(row)
    # what stands for the model: the task's own size, or the first that was tested
    main = next((row for row in rows if row["size"] == found.stream.size()), rows[0])
    figures = {name: value for name, value in main.items() if isinstance(value, float)}
    figures |= {f"accuracy_at_{row['size']}": row["accuracy"] for row in rows if len(rows) > 1}
    return Result(rows, figures, main["size"], shares)


def _size(found: Subject, n: int, keys: ExamKeys) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """A row: the share of right tokens with a 95 % interval, of whole answers (`exact`), of right labels in
    tasks that have them, and of right tokens under the controls; and each test's share."""
    stories: list[Story] = []
    if isinstance(found.stream, BabiLong):
        generator = seeds.generator(found.seed, TEST, n)
        asked, stories = found.stream.held_out().told(n, keys.tests, generator)
    else:
        asked = examples(found.stream, n, keys.tests, found.seed)
    made_BT, _ = found.exam.answers(asked, "own", keys.teacher)
    own = marked(made_BT, asked.target_BT, found.stream.final)
    share_B = own.share_B.numpy()
    interval = intervals.mean(share_B)
    row: dict[str, Any] = {
        "size": n,
        "segments": -(-int(asked.length_B.max()) // found.exam.config.segment),
        "accuracy": interval.value,
        "low": interval.low,
        "high": interval.high,
        "exact": float(own.whole_B.double().mean()),
    }
    if isinstance(found.stream, BabiLong):
        row["labels"] = _labels(found.stream, stories, asked, made_BT)
    for control in found.controls[1:]:
        marks = found.exam.marks(asked, found.stream.final, control, keys.teacher)
        if len(marks.share_B):
            row[LABELS[control]] = float(marks.share_B.mean())
    return row | {"tests": len(asked)}, share_B


def _labels(stream: BabiLong, stories: list[Story], asked: Sequences, made_BT: torch.Tensor) -> float:
    """The share of answers that name the right label and no other."""
    right = 0
    for story, target_T, made_T in zip(stories, asked.target_BT, made_BT, strict=True):
        said = stream.text(made_T[target_T != IGNORE])
        right += only_label(said, story.question, story.answer, story.labels)
    return right / len(stories)


def _text(found: Subject, stream: Text, keys: ExamKeys) -> Result:
    rows = text_exam.windows(stream, max(keys.sizes, default=2 * stream.size()), keys.tests)
    nats = {control: text_exam.nats(found.exam, rows, control) for control in found.controls}
    spelled = text_exam.spelled(rows, found.backbone)
    figures = text_exam.summary(nats, spelled, stream.size())
    return Result(text_exam.table(nats, spelled), figures, None, {})
