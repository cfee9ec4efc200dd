"""Toy procedures: seeded operations on strings of letters, which a starter model is trained on and a bank
for it learns. No torch here.

Grammar: `input => word [word] output`, chains `in1 & in2 => word out1 ; word out2 ;`. Letters and words are
tokens, written with blanks between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memtoken_cli.data.chains import Call, Chain
from memtoken_cli.data.procedures import Procedure, Sample

Letters = tuple[str, ...]
ALPHABET: Letters = tuple("abcdefghijklmnop")
SEPARATOR, AND, SEGMENT_END = "=>", "&", ";"
SHORTEST, LONGEST = 4, 8


def _moved(x: Letters, by: int) -> Letters:
    return tuple(ALPHABET[(ALPHABET.index(c) + by) % len(ALPHABET)] for c in x)


def _swapped(x: Letters) -> Letters:
    pairs = [x[i : i + 2][::-1] for i in range(0, len(x), 2)]
    return tuple(c for pair in pairs for c in pair)


OPERATIONS: dict[str, Callable[[Letters], Letters]] = {
    "REVERSE": lambda x: x[::-1],
    "SORT": lambda x: tuple(sorted(x)),
    "DESCEND": lambda x: tuple(sorted(x, reverse=True)),
    "ROTATE": lambda x: x[1:] + x[:1],
    "BACK": lambda x: x[-1:] + x[:-1],
    "SWAP": _swapped,
    "NEXT": lambda x: _moved(x, 1),
    "PREVIOUS": lambda x: _moved(x, -1),
    "UNIQUE": lambda x: tuple(dict.fromkeys(x)),
    "REST": lambda x: x[1:],
    "FRONT": lambda x: x[:-1],
    "ODDS": lambda x: x[::2],
    "EVENS": lambda x: x[1::2],
    "ENDS": lambda x: x[-1:] + x[1:-1] + x[:1],
    "HALVES": lambda x: x[len(x) // 2 :] + x[: len(x) // 2],
    "REPEAT": lambda x: x[:1] + x,
}
PRIMITIVES = ("REVERSE", "NEXT", "ROTATE", "BACK", "FRONT", "ENDS")
HELD_OUT = (("REVERSE", "NEXT"), ("ROTATE", "PREVIOUS"))  # pairs that the starter never sees together
VOCABULARY = ("<pad>", "<unk>", "<s>", "</s>", SEPARATOR, AND, SEGMENT_END, *ALPHABET, *OPERATIONS)


def apply(words: Sequence[str], x: Letters) -> Letters:
    """The words' operations, one after the other."""
    for word in words:
        x = OPERATIONS[word](x)
    return x


def pairs() -> list[tuple[str, str]]:
    """Every two words that the starter may see together."""
    return [(a, b) for a in OPERATIONS for b in OPERATIONS if (a, b) not in HELD_OUT]


def draw(
    rng: random.Random, letters: Letters = ALPHABET, lengths: tuple[int, int] = (SHORTEST, LONGEST)
) -> Letters:
    """A string of letters."""
    return tuple(rng.choice(letters) for _ in range(rng.randint(*lengths)))


@dataclass(frozen=True)
class Habit:
    """Where a procedure's inputs come from, so that routing can be learned."""

    letters: Letters
    lengths: tuple[int, int]


def habit(number: int) -> Habit:
    """Of procedure `number`: a quarter of the alphabet, and lengths that no other of these letters has."""
    quarter = len(ALPHABET) // 4
    start = number % 4 * quarter
    lengths = ((4, 5), (7, 8), (6, 6))[number // 4 % 3]
    return Habit(ALPHABET[start : start + quarter], lengths)


def toy(count: int, train: int, val: int, test: int, seed: int) -> list[Procedure]:
    """`count` procedures: primitives (a word the starter knows would do), with the held-out pairs third and
    fourth, since those are hard enough on short inputs; then further words.

    No input comes twice in a procedure.
    """
    known: list[tuple[str, ...]] = [(word,) for word in PRIMITIVES]
    chosen = [*known[:2], *HELD_OUT, *known[2:]]
    chosen += [(word,) for word in OPERATIONS if word not in PRIMITIVES]
    return [_procedure(i, words, train, val, test, seed) for i, words in enumerate(chosen[:count])]


def _procedure(number: int, words: tuple[str, ...], train: int, val: int, test: int, seed: int) -> Procedure:
    name = "-".join(word.lower() for word in words)
    rng, own = random.Random(f"{seed} toy {name}"), habit(number)
    inputs: dict[Letters, None] = {}
    while len(inputs) < train + val + test:
        inputs[draw(rng, own.letters, own.lengths)] = None
    samples = [
        Sample(" ".join(x), (" ".join(apply(words, x)),), f"toy {name}:{i}", str(i))
        for i, x in enumerate(inputs, 1)
    ]
    b = train + val
    parts = (tuple(samples[:train]), tuple(samples[train:b]), tuple(samples[b:]))
    return Procedure(name, name.replace("-", " then "), "", *parts)


def join(parts: Sequence[tuple[str, Sample]], rng: random.Random) -> Chain:
    """A toy's chain: inputs with & between."""
    query = f" {AND} ".join(sample.input for _, sample in parts)
    return Chain(query, tuple(Call(name, sample.output) for name, sample in parts))


def lesson(rng: random.Random) -> tuple[list[str], list[str]]:
    """(what is given, what is to be said) of one of the starter's lines, without its start and end tokens."""
    kind = rng.random()
    some = rng.sample(ALPHABET, 6) if rng.random() < 0.5 else ALPHABET
    if kind < 0.8:
        words = (rng.choice(list(OPERATIONS)),) if kind < 0.5 else rng.choice(pairs())
        x = draw(rng, tuple(some))
        return [*x, SEPARATOR, *words], [*apply(words, x)]
    first, second = draw(rng, tuple(some)), draw(rng, tuple(some))
    a, b = rng.choice(list(OPERATIONS)), rng.choice(list(OPERATIONS))
    given = [*first, AND, *second, SEPARATOR, a]
    return given, [*apply((a,), first), SEGMENT_END, b, *apply((b,), second), SEGMENT_END]
