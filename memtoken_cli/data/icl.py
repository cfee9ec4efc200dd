"""A seeded stream of in-context classification tasks: nothing in it can be known without reading the shots.

Every task draws anew which content words belong to which class and what the classes are called. A shot is a
few words, some of its class and some fillers that mean nothing, then a label: with few shots most of a query's
words were never seen. `draw` gives token ids for training; `task` gives the same tasks as text, for tokenizers.

Shape suffixes: B tasks, S shots, W words of a shot, C classes, P words of a class, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memtoken_cli.data.shots import Query, Shot, Shots
from memtoken_cli.io.errors import UsageError

TEMPLATE = "{input} : {output} ; "
SPECIAL = ("<pad>", "<unk>", "</s>", ":", ";")
COLON, SEMICOLON = SPECIAL.index(":"), SPECIAL.index(";")


@dataclass(frozen=True)
class Tasks:
    """Token ids [B,T] of whole shots, T = S times `Stream.shot_tokens`; label_BS: each shot's label token;
    labels_BC: the label tokens of the task's classes."""

    ids_BT: Tensor
    label_BS: Tensor
    labels_BC: Tensor


@dataclass(frozen=True)
class Stream:
    """A family of tasks. classes, pool: classes of a task and content words of each; content, filler: words of
    a shot of either kind; words, fillers, labels: how many the vocabulary has. Raises UsageError."""

    classes: int = 8
    pool: int = 6
    content: int = 2
    filler: int = 3
    words: int = 96
    fillers: int = 16
    labels: int = 16

    def __post_init__(self) -> None:
        if self.classes * self.pool > self.words:
            raise UsageError(f"{self.classes} classes of {self.pool} words need more than {self.words} words")
        if self.classes > self.labels:
            raise UsageError(f"{self.classes} classes need more than {self.labels} labels")
        if self.content > self.pool:
            raise UsageError(f"a shot of {self.content} content words needs a pool of as many")

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token by its id."""
        parts = (("label", self.labels), ("the", self.fillers), ("word", self.words))
        return (*SPECIAL, *(f"{kind}{i}" for kind, count in parts for i in range(count)))

    @property
    def width(self) -> int:
        """W: the words of a shot."""
        return self.content + self.filler

    @property
    def shot_tokens(self) -> int:
        return self.width + 3

    def draw(self, rows: int, shots: int, generator: torch.Generator) -> Tasks:
        """`rows` tasks of `shots` shots; classes come in turn, each turn in an order of its own."""
        C, P, g = self.classes, self.pool, generator
        first_filler = len(SPECIAL) + self.labels
        first_word = first_filler + self.fillers
        word_BCP = torch.rand(rows, self.words, generator=g).argsort(1)[:, : C * P].view(rows, C, P) + first_word
        labels_BC = torch.rand(rows, self.labels, generator=g).argsort(1)[:, :C] + len(SPECIAL)
        turns = torch.rand(rows, -(-shots // C), C, generator=g).argsort(2)
        class_BS = turns.flatten(1)[:, :shots]
        pick_BSW = torch.rand(rows, shots, P, generator=g).argsort(2)[..., : self.content]
        row_B11 = torch.arange(rows)[:, None, None]
        content_BSW = word_BCP[row_B11, class_BS[:, :, None], pick_BSW]
        filler_BSW = torch.randint(self.fillers, (rows, shots, self.filler), generator=g) + first_filler
        words_BSW = torch.cat([content_BSW, filler_BSW], 2)
        order_BSW = torch.rand(words_BSW.shape, generator=g).argsort(2)
        label_BS = labels_BC.gather(1, class_BS)
        marks = words_BSW.new_tensor([COLON, SEMICOLON]).expand(rows, shots, 2)
        shot = [words_BSW.gather(2, order_BSW), marks[..., :1], label_BS[..., None], marks[..., 1:]]
        return Tasks(torch.cat(shot, 2).flatten(1), label_BS, labels_BC)

    def task(self, shots: int, queries: int, generator: torch.Generator) -> tuple[Shots, list[Query]]:
        """One task as text: what `draw(1, shots + queries, ...)` gives, the last `queries` of it to be asked."""
        drawn = self.draw(1, shots + queries, generator)
        text = self.text(drawn.ids_BT[0].view(-1, self.shot_tokens))
        items = [Shot(line, label, i + 1) for i, (line, label) in enumerate(text)]
        asked = [Query(s.input, s.output, s.line) for s in items[shots:]]
        return Shots(items[:shots], "pairs", "<stream>", ""), asked

    def text(self, ids_SW: Tensor) -> list[tuple[str, str]]:
        """(input, label) of each shot."""
        words = [[self.vocabulary[i] for i in row] for row in ids_SW.tolist()]
        return [(" ".join(row[: self.width]), row[self.width + 1]) for row in words]
