"""Stories with a question each, as in bAbI (Weston et al. 2015): a reader of its files, and stories of the
same kind made from a seed. No torch here.

Made: qa1, where an actor is; qa2, where a thing is that actors take along and put down.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.io.records import read_lines

ACTORS = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
_GO = ("moved to", "went to", "travelled to", "journeyed to", "went back to")
_TAKE = ("took", "got", "grabbed", "picked up")
_DROP = ("dropped", "left", "discarded", "put down")
# how many facts a story may have: as bAbI's qa1, and the shorter ones of its qa2
MADE = {"qa1": (2, 4, 6, 8, 10), "qa2": tuple(range(2, 17))}


@dataclass(frozen=True)
class Story:
    """Facts in order, one question about them, its answer. labels: all answers that its kind has."""

    facts: tuple[str, ...]
    question: str
    answer: str
    labels: tuple[str, ...]


def made_story(kind: str, count: int, rng: random.Random) -> Story:
    """A story of `count` facts, two or more, that answer its question. kind: a key of MADE."""
    where = dict.fromkeys(ACTORS, "")
    facts: list[str] = []
    if kind == "qa1":
        while len(facts) < count:
            facts.append(_move(where, rng))
        actor = _pick([a for a in ACTORS if where[a]], rng)
        return Story(tuple(facts), f"Where is {actor}?", where[actor], PLACES)
    held: dict[str, str] = {}  # thing -> who has it
    lying: dict[str, str] = {}  # thing -> where it was put down
    while len(facts) < count:
        last = len(facts) == count - 1 and not held and not lying
        facts.append(_take_or_drop(where, held, lying, last, rng) or _move(where, rng))
    thing = _pick(sorted({*held, *lying}), rng)
    place = where[held[thing]] if thing in held else lying[thing]
    return Story(tuple(facts), f"Where is the {thing}?", place, PLACES)


def _pick(options: list[str] | tuple[str, ...], rng: random.Random) -> str:
    return options[rng.randrange(len(options))]


def _move(where: dict[str, str], rng: random.Random) -> str:
    actor = _pick(ACTORS, rng)
    where[actor] = _pick([p for p in PLACES if p != where[actor]], rng)
    return f"{actor} {_pick(_GO, rng)} the {where[actor]}."


def _take_or_drop(
    where: dict[str, str], held: dict[str, str], lying: dict[str, str], must: bool, rng: random.Random
) -> str | None:
    """Now and then, and always if it `must`: what an actor does with a thing. None: a move instead."""
    known = [a for a in ACTORS if where[a]]
    if not known or (rng.random() < 0.6 and not must):
        return None
    actor = _pick(known, rng)
    own = [t for t in THINGS if held.get(t) == actor]
    there = _pick(("", " there"), rng)
    if own and rng.random() < 0.5:
        thing = _pick(own, rng)
        del held[thing]
        lying[thing] = where[actor]
        return f"{actor} {_pick(_DROP, rng)} the {thing}{there}."
    # what nobody has spoken of yet lies wherever it is found
    free = [t for t in THINGS if t not in held and lying.get(t, where[actor]) == where[actor]]
    if not free:
        return None
    thing = _pick(free, rng)
    lying.pop(thing, None)
    held[thing] = actor
    return f"{actor} {_pick(_TAKE, rng)} the {thing}{there}."


def made_words() -> set[str]:
    """Every word that a made story can have, without marks."""
    phrases = (*ACTORS, *PLACES, *THINGS, *_GO, *_TAKE, *_DROP, "the there Where is")
    return {word for phrase in phrases for word in phrase.split()}


def check_made(kinds: tuple[str, ...]) -> None:
    """Raises UsageError where stories of a kind cannot be made."""
    for kind in kinds:
        if kind not in MADE:
            raise UsageError(
                f"stories of {kind} cannot be made, only {' and '.join(MADE)}",
                hint="task.facts=DIR, a folder with bAbI's files, such as tasks_1-20_v1-2/en-10k",
            )


def find_file(folder: str | Path, kind: str, test: bool = False) -> Path:
    """The file of `kind` in a folder of bAbI files or in its en-10k: `kind`_*test.txt; or `kind`_*train.txt,
    and where that is not there `kind`_*valid*.txt.

    Raises DataError where there is none, or no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"no such folder: {folder}", hint="task.facts: a folder with bAbI's files")
    patterns = ("test.txt",) if test else ("train.txt", "valid*.txt")
    for pattern in patterns:
        for place in (root, root / "en-10k"):
            if found := sorted(place.glob(f"{kind}_*{pattern}")):
                return found[0]
    wanted = f"{kind}_*_test.txt" if test else f"{kind}_*_train.txt"
    there = sorted({p.name.split("_")[0] for p in (*root.glob("qa*.txt"), *root.glob("en-10k/qa*.txt"))})
    hint = f"there are files of {', '.join(there)}" if there else "give the folder that holds qa1_*_train.txt"
    raise DataError(f"no {wanted} in {folder}", hint=hint)


def read_stories(path: str | Path) -> list[Story]:
    """One story for each question of a bAbI file, with all facts of its text before it.

    Lines: `number sentence`, or `number question<TAB>answer<TAB>supporting lines`; number 1 begins a text.

    Raises DataError at file:line; also where there is no question.
    """
    stories: list[Story] = []
    facts: list[str] = []
    before = 0
    for number, fields, where in _lines(path):
        if number == 1:
            facts = []
        elif number != before + 1:
            raise DataError(f"line number {number} follows {before}", where=where)
        before = number
        if len(fields) == 1:
            facts.append(fields[0])
        elif facts:
            stories.append(Story(tuple(facts), fields[0], fields[1], ()))
        else:
            raise DataError("a question before any fact", where=where)
    if not stories:
        raise DataError(f"no question in {path}", hint="is it a file of bAbI, such as qa1_*_train.txt?")
    labels = tuple(sorted({story.answer for story in stories}))
    return [replace(story, labels=labels) for story in stories]


def _lines(path: str | Path) -> Iterator[tuple[int, list[str], str]]:
    """(number, [fact] or [question, answer], file:line) of the lines that are not blank."""
    for place, line in read_lines(path):
        where = f"{path}:{place}"
        if not line.strip():
            continue
        match = re.fullmatch(r"(\d+) ([^\t]*\S[^\t]*)(?:\t([^\t]*\S[^\t]*)(?:\t.*)?)?", line)
        if match is None:
            hint = "such as `1 Mary moved to the bathroom.` or `3 Where is Mary?<TAB>bathroom<TAB>1`"
            raise DataError("neither a fact nor a question of bAbI", hint=hint, where=where)
        yield int(match[1]), [text.strip() for text in match.groups()[1:] if text is not None], where
