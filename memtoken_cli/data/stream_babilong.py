"""BABILong: the facts of a short story scattered over a long text that has nothing to do with it, and a
question at the end (Kuratov et al., arXiv 2406.10149).

A row has n segments: `context question MARKER answer END`, of which the model is given all but END. The
context is made to measure: with what follows it exactly RESERVE tokens are left, or as many as question,
marker, answer and END need where that is more. The published mask covers the last answer + 2 positions of the
row, MARKER to END; the logits there predict answer and END, and those are what is scored.

Shape suffixes: B rows, T tokens of a row, K tokens of the background, S its sentences.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.data import babi, sentences
from memtoken_cli.data.babi import Story
from memtoken_cli.data.spelling import MARKER, Spelling, WordSpelling, spelling_of, split_words
from memtoken_cli.data.streams import IGNORE, PAD, Sequences, at_least_one, vocabulary
from memtoken_cli.data.task_config import TaskSection, Unit
from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVE = 20
LEAST = 10  # tokens of a background sentence
MADE = 10_000  # background sentences, where no file gives them
WORDS = 4_000  # of a background file that a model of whole words knows, the most frequent ones
HELD_OUT = 0.05  # the last share of a background file is for testing
TRIES = 64


class BabiLong:
    """The task; `held_out` is the same with facts and background that training never sees.

    Args:
        task: its facts, background, questions and segments.
        segment: tokens of a segment.
        seed: of the background where it is made.
        tokenizer: None: words of the facts and the background are the vocabulary of a new model.
        test: read bAbI's *_test files and the last HELD_OUT of the background (or make another one).

    Raises DataError: files not there, or not as they should be. UsageError: questions that need files.
    """

    unit: ClassVar[Unit] = "segments"
    final: ClassVar[int | None] = None

    def __init__(
        self,
        task: TaskSection,
        segment: int,
        seed: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        test: bool = False,
    ) -> None:
        self._task, self._segment, self._seed, self._tokenizer = task, segment, seed, tokenizer
        self._test = test
        self._kinds = task.questions or ("qa1",)
        self._files: dict[str, list[Story]] = {}
        if task.facts is None:
            babi.check_made(self._kinds)
        else:
            for kind in self._kinds:
                self._files[kind] = babi.read_stories(babi.find_file(task.facts, kind, test))
        self._spelling = spelling_of(tokenizer) if tokenizer is not None else WordSpelling(self._words())
        self._known: dict[str, list[int]] = {}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Of a model of whole words; empty where the tokenizer is another one."""
        return self._spelling.words

    def size(self) -> int:
        return self._task.segments or 1

    def tokens(self, n: int) -> int:
        return n * self._segment

    def held_out(self) -> BabiLong:
        """The test set's stream, spelt the same way. Raises as the constructor does."""
        return BabiLong(self._task, self._segment, self._seed, self._tokenizer, test=True)

    def draw(self, n: int, rows: int, generator: torch.Generator) -> Sequences:
        """Raises UsageError where not even a short story fits n segments."""
        return self.told(n, rows, generator)[0]

    def told(self, n: int, rows: int, generator: torch.Generator) -> tuple[Sequences, list[Story]]:
        """`draw`, and the story of each row."""
        at_least_one(n, self.unit)
        stories, inputs, answers = [], [], []
        for _ in range(rows):
            # a generator for every row: what one draws does not move the others
            rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
            story = self._story(self._kinds[rng.randrange(len(self._kinds))], n, rng)
            before, answer = self._row(story, n, rng)
            stories.append(story)
            inputs.append(before)
            answers.append(answer)
        return _sequences(inputs, answers), stories

    def text(self, ids: Sequence[int] | Tensor) -> str:
        """What ids say, without special tokens."""
        return self._spelling.decode(ids.tolist() if isinstance(ids, Tensor) else ids)

    def _row(self, story: Story, n: int, rng: random.Random) -> tuple[list[int], list[int]]:
        """(input without the answer, answer and END)."""
        facts = [self._ids(fact) for fact in story.facts]
        asked, answer = self._ids(story.question), self._ids(story.answer)
        room = self.tokens(n) - self._cost(story)
        noise_K, starts = self._noise.take(room, rng)
        row, done = list(self._spelling.first), 0
        for fact, gap in zip(facts, sorted(rng.randrange(len(starts)) for _ in facts), strict=True):
            row += [*noise_K[done : starts[gap]].tolist(), *fact]
            done = starts[gap]
        row += [*noise_K[done:].tolist(), *asked, *self._spelling.marker]
        return row, [*answer, self._spelling.last]

    def _cost(self, story: Story) -> int:
        """Tokens of a row that are not background, those left free included."""
        facts = sum(len(self._ids(fact)) for fact in story.facts)
        tail = len(self._ids(story.question)) + len(self._spelling.marker) + len(self._ids(story.answer)) + 1
        return len(self._spelling.first) + facts + max(RESERVE, tail)

    def _story(self, kind: str, n: int, rng: random.Random) -> Story:
        """A story that fits n segments: uniform over the files' that do, else made until one does."""
        if kind in self._files:
            costs, stories = self._by_cost[kind]
            fit = bisect_right(costs, self.tokens(n))
            if fit:
                return stories[rng.randrange(fit)]
            raise self._no_room(kind, n, costs[0])
        counts = babi.MADE[kind]
        least = 0
        for tried in range(TRIES):
            # towards the end only the shortest, so that what fits is found
            count = counts[rng.randrange(len(counts))] if tried < TRIES // 2 else counts[0]
            story = babi.made_story(kind, count, rng)
            if self._cost(story) <= self.tokens(n):
                return story
            least = min(least or self._cost(story), self._cost(story))
        raise self._no_room(kind, n, least)

    def _no_room(self, kind: str, n: int, least: int) -> UsageError:
        return UsageError(
            f"{self.tokens(n)} tokens ({n} x {self._segment}) have no room for a story of {kind}, "
            f"which takes {least}",
            hint=f"curriculum.start={-(-least // self._segment)} or more, or a larger rmt.segment",
        )

    def _ids(self, sentence: str) -> list[int]:
        found = self._known.get(sentence)
        if found is None:
            found = self._known[sentence] = self._spelling.encode([sentence])[0]
        return found

    @cached_property
    def _by_cost(self) -> dict[str, tuple[list[int], list[Story]]]:
        """Costs in rising order, and the stories that have them."""
        out = {}
        for kind, stories in self._files.items():
            costs = [self._cost(story) for story in stories]
            order = sorted(range(len(stories)), key=costs.__getitem__)
            out[kind] = ([costs[i] for i in order], [stories[i] for i in order])
        return out

    @cached_property
    def _noise(self) -> Noise:
        return Noise(self._sentences(), self._spelling)

    def _sentences(self) -> list[str]:
        if self._task.background is None:
            # an odd seed is never a training one
            return sentences.made_sentences(2 * self._seed + self._test, MADE)
        found = sentences.read_sentences(self._task.background)
        cut = len(found) - max(1, round(HELD_OUT * len(found))) if len(found) > 1 else 0
        return found[cut:] if self._test else found[:cut] or found

    def _words(self) -> tuple[str, ...]:
        """The words that facts of either split and the background can have, sorted."""
        words = {*babi.made_words(), *".?,", *sentences.made_words()}
        if self._task.facts is not None:
            for kind in self._kinds:
                for test in (False, True):
                    for story in babi.read_stories(babi.find_file(self._task.facts, kind, test)):
                        for text in (*story.facts, story.question, story.answer):
                            words.update(split_words(text))
        if self._task.background is not None:
            found = sentences.read_sentences(self._task.background)
            counts = Counter(word for sentence in found for word in split_words(sentence))
            words.update(sorted(counts, key=lambda word: (-counts[word], word))[:WORDS])
        return vocabulary(MARKER, *sorted(words))


class Noise:
    """A background: the sentences of LEAST tokens or more, one behind the other, the first behind the last.

    Raises DataError where there is none.
    """

    def __init__(self, texts: Sequence[str], spelling: Spelling) -> None:
        long = [ids for ids in spelling.encode(texts) if len(ids) >= LEAST]
        if not long:
            raise DataError(
                f"no sentence of {LEAST} tokens or more in the background",
                hint="task.background: any longer text, such as a book",
            )
        self._ids_K: NDArray[np.int32] = np.concatenate([np.asarray(ids, np.int32) for ids in long])
        self._start_S = np.cumsum([0, *(len(ids) for ids in long[:-1])])

    def take(self, length: int, rng: random.Random) -> tuple[NDArray[np.int32], list[int]]:
        """Exactly `length` tokens from the beginning of a random sentence on, the last sentence cut short;
        and the places where a sentence begins or the text ends."""
        total, first = len(self._ids_K), int(self._start_S[rng.randrange(len(self._start_S))])
        ids_K = self._ids_K.take(np.arange(first, first + length), mode="wrap")
        once_S = np.sort((self._start_S - first) % total)
        starts = (once_S[None] + total * np.arange(length // total + 1)[:, None]).ravel()
        return ids_K, [*starts[starts < length].tolist(), length]


def _sequences(inputs: list[list[int]], answers: list[list[int]]) -> Sequences:
    """Rows `input answer`, of whose last id the model sees nothing: it is only predicted."""
    whole = [[*before, *answer[:-1]] for before, answer in zip(inputs, answers, strict=True)]
    ids_BT = torch.full((len(whole), max(map(len, whole), default=0)), PAD)
    target_BT = torch.full_like(ids_BT, IGNORE)
    for b, (row, before, answer) in enumerate(zip(whole, inputs, answers, strict=True)):
        ids_BT[b, : len(row)] = torch.tensor(row)
        target_BT[b, len(before) - 1 : len(row)] = torch.tensor(answer)
    lengths, first = [len(row) for row in whole], [len(before) - 1 for before in inputs]
    return Sequences(ids_BT, torch.tensor(lengths), target_BT, torch.tensor(first))
