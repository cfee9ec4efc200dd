"""A seeded stream of in-context classification tasks: nothing in it can be known without reading the shots.

Every task draws anew which content words belong to which class and what the classes are called. A shot is
a few words, some of its class and some fillers that mean nothing, then a label, now and then a wrong one: few
shots name too few words, and mislead. `draw` gives token ids for training, `task` the same tasks as text.

Shape suffixes: B tasks, S shots, W words of a shot, C classes, P words of a class, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memtoken_cli.data.shots import Query, Shot, Shots
from memtoken_cli.io.errors import UsageError

TEMPLATE = "{input} {output}\n"
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
START = SPECIAL.index("<s>")


@dataclass(frozen=True)
class Tasks:
    """Token ids [B,T] of whole shots behind one `<s>`, T = 1 + S times `Stream.shot_tokens`, and each shot's
    right label."""

    ids_BT: Tensor
    label_BS: Tensor


@dataclass(frozen=True)
class Stream:
    """A family of tasks. Raises UsageError where the vocabulary has no room for one.

    classes, pool: classes of a task, and content words of each. content, filler: words of a shot of either
    kind. words, fillers, labels: how many the vocabulary has. noise: the chance that a shot's label is drawn
    from all of the task's.
    """

    classes: int = 4
    pool: int = 1
    content: int = 1
    filler: int = 2
    words: int = 16
    fillers: int = 8
    labels: int = 4
    noise: float = 0.4

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
        parts = (("label", self.labels), ("filler", self.fillers), ("word", self.words))
        return (*SPECIAL, *(f"{kind}{i}" for kind, count in parts for i in range(count)))

    @property
    def width(self) -> int:
        """W: the words of a shot."""
        return self.content + self.filler

    @property
    def shot_tokens(self) -> int:
        return self.width + 1

    def draw(self, rows: int, shots: int, generator: torch.Generator) -> Tasks:
        """`rows` tasks of `shots` shots. Classes are drawn independently: were they balanced, the label
        that is still due would give itself away."""
        C, P, g = self.classes, self.pool, generator
        first_filler = len(SPECIAL) + self.labels
        first_word = first_filler + self.fillers
        order_BX = torch.rand(rows, self.words, generator=g).argsort(1)[:, : C * P]
        word_BCP = order_BX.view(rows, C, P) + first_word
        label_BC = torch.rand(rows, self.labels, generator=g).argsort(1)[:, :C] + len(SPECIAL)
        class_BS = torch.randint(C, (rows, shots), generator=g)
        pick_BSW = torch.rand(rows, shots, P, generator=g).argsort(2)[..., : self.content]
        content_BSW = word_BCP[torch.arange(rows)[:, None, None], class_BS[:, :, None], pick_BSW]
        filler_BSW = torch.randint(self.fillers, (rows, shots, self.filler), generator=g) + first_filler
        words_BSW = torch.cat([content_BSW, filler_BSW], 2)
        words_BSW = words_BSW.gather(2, torch.rand(words_BSW.shape, generator=g).argsort(2))
        label_BS = label_BC.gather(1, class_BS)
        wrong_BS = torch.rand(rows, shots, generator=g) < self.noise
        any_BS = label_BC.gather(1, torch.randint(C, (rows, shots), generator=g))
        said_BS1 = torch.where(wrong_BS, any_BS, label_BS)[..., None]
        start_B1 = torch.full((rows, 1), START)
        return Tasks(torch.cat([start_B1, torch.cat([words_BSW, said_BS1], 2).flatten(1)], 1), label_BS)

    def task(self, shots: int, queries: int, generator: torch.Generator) -> tuple[Shots, tuple[Query, ...]]:
        """One task as text: what `draw` gives for one row of shots + queries, the last ones to be asked.

        Queries have their right labels; those whose label no shot has are left out.
        """
        drawn = self.draw(1, shots + queries, generator)
        rows = drawn.ids_BT[0, 1:].view(-1, self.shot_tokens).tolist()
        words = [[self.vocabulary[i] for i in row] for row in rows]
        items = [Shot(" ".join(w[:-1]), w[-1], i + 1) for i, w in enumerate(words[:shots])]
        known = {shot.output for shot in items}
        right = [self.vocabulary[i] for i in drawn.label_BS[0].tolist()]
        asked = [Query(" ".join(words[i][:-1]), right[i], i + 1) for i in range(shots, shots + queries)]
        return Shots(items, "pairs", "<stream>", ""), tuple(q for q in asked if q.output in known)
