"""What a task is to a trainer: batches of whole streams with the tokens that are to be predicted in them.

The tasks have a file each (stream_*.py); `stream_for` chooses. Nothing here knows of segments' memory.

Shape suffixes: B rows, T tokens of a stream, K of a pool drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from memtoken_cli.data.task_config import TaskSection, Unit
from memtoken_cli.io.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
PAD, START = 0, 1
HEAD, TAIL = ("<pad>", "<s>"), ("</s>", "<unk>")
FIRST = len(HEAD)  # the id of a vocabulary's first own word


def vocabulary(*words: str) -> tuple[str, ...]:
    """A task's own words, ids FIRST on, between the special ones."""
    return (*HEAD, *words, *TAIL)


@dataclass(frozen=True)
class Sequences:
    """A batch of whole streams.

    Attributes:
        ids_BT: int64, right-padded with PAD.
        length_B: int64, the real tokens of each row.
        target_BT: int64, the token that position j must predict, IGNORE where nothing is scored. What a row
        scores is one run of positions.
        answer_B: int64, the first position whose target is scored: a model that runs freely is given
        ids[:answer + 1] and makes the rest itself.
    """

    ids_BT: Tensor
    length_B: Tensor
    target_BT: Tensor
    answer_B: Tensor

    def __len__(self) -> int:
        return len(self.ids_BT)

    def __getitem__(self, rows: slice | Tensor) -> Sequences:
        """The rows of a slice, an index tensor or a mask; the width stays."""
        return Sequences(self.ids_BT[rows], self.length_B[rows], self.target_BT[rows], self.answer_B[rows])


class Stream(Protocol):
    """A task. Rows are drawn from the given generator alone, so a seed is a data set.

    Attributes:
        unit: what `n`, the size of a stream, counts.
        vocabulary: words in id order, HEAD first, TAIL last.
        final: how many of a row's last scored tokens make its answer; None: all.
    """

    @property
    def unit(self) -> Unit: ...

    @property
    def vocabulary(self) -> tuple[str, ...]: ...

    @property
    def final(self) -> int | None: ...

    def size(self) -> int:
        """The recipe's n, the hardest."""
        ...

    def tokens(self, n: int) -> int:
        """T of a stream of size n; of the longest row, where they differ."""
        ...

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        """`rows` streams of size n. Raises UsageError where n is none this task has."""
        ...


def scored(ids_BT: Tensor, target_BT: Tensor, start: int, stop: int) -> Sequences:
    """Rows of equal length that score positions start..stop-1 of `target_BT`."""
    B, T = ids_BT.shape
    target_BT = target_BT.clone()
    target_BT[:, :start] = IGNORE
    target_BT[:, stop:] = IGNORE
    return Sequences(ids_BT, torch.full((B,), T), target_BT, torch.full((B,), start))


def distinct(rows: int, count: int, pool: int, generator: torch.Generator) -> Tensor:
    """int64 [rows,count]: numbers below `pool` in random order, no two of a row the same.

    Floyd's sampling (Bentley and Floyd 1987), all rows at once: the cost does not grow with the pool.
    """
    first = pool - count
    below = torch.arange(first, pool, dtype=torch.float64) + 1
    draw_BC = (torch.rand(rows, count, generator=generator, dtype=torch.float64) * below).long()
    for i in range(1, count):
        taken_B = (draw_BC[:, :i] == draw_BC[:, i : i + 1]).any(1)
        draw_BC[taken_B, i] = first + i
    order_BC = torch.rand(rows, count, generator=generator, dtype=torch.float64).argsort(1)
    return draw_BC.gather(1, order_BC)


def at_least_one(n: int, unit: Unit) -> None:
    if n < 1:
        raise UsageError(f"a stream of {n} {unit}", hint="give at least 1")


def stream_for(
    task: TaskSection,
    segment: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    path: str | Path | None = None,
) -> Stream:
    """The task that a recipe names, for segments of `segment` tokens.

    Args:
        seed: of what a task makes before any row is drawn.
        tokenizer, path: of the tasks whose streams are text, and the text file.

    Raises UsageError where the task does not fit the segment; DataError for a bad file.
    """
    if task.name in ("copy", "reverse"):
        from memtoken_cli.data.stream_copy import Copy

        return Copy(task.name == "reverse", task.length, task.symbols)
    if task.name == "retrieval":
        from memtoken_cli.data.stream_pairs import Retrieval

        return Retrieval(task.pairs)
    if task.name in ("remember", "rewrite"):
        from memtoken_cli.data.stream_pairs import Remember

        rewrite = task.name == "rewrite"
        return Remember(rewrite, segment, task.pairs, task.key_size, task.value_size, task.symbols)
    if task.name == "recall":
        from memtoken_cli.data.stream_recall import Recall

        return Recall(segment, task.count, task.keys, task.values, task.noise, task.segments)
    if task.name == "quadratic":
        from memtoken_cli.data.stream_quadratic import Quadratic

        return Quadratic(task.bound, task.scale, task.no_root)
    if task.name == "babilong":
        from memtoken_cli.data.stream_babilong import BabiLong

        return BabiLong(task, segment, seed, tokenizer)
    from memtoken_cli.data.stream_text import Text

    return Text(task, segment, seed, tokenizer, path)
