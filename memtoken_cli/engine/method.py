"""What a method is, in the engine's eyes: a Spec that is cheap to import, and one protocol a verb.

A method implements the protocols of the verbs its Spec lists and no others. No torch and no method here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from memtoken_cli.data.shots import Shots
    from memtoken_cli.engine.backbone import CausalLM
    from memtoken_cli.engine.memory import Memory
    from memtoken_cli.recipe.schema import Recipe

ENTRY_POINTS = "memtok.methods"


@dataclass(frozen=True)
class Spec:
    """What the runner may know about a method before it loads it.

    Args:
        name: the folder's name, the recipe's `method:` and the `--method` value.
        paper: where it was published, or "ours".
        line: one line of help.
        verbs: which of compress, segment, train, evaluate, generate, bench, bank it answers.
        port: how its tokens enter a backbone: prefix, layers, cross or vocab.
        sources: what a positional SOURCE may be: "shots", "series", "stream", ...
        default_for: the verbs whose default method it is.
        needs_model: whether its verbs read a language model; without one the backbone they get is None.
        sketches: whether it tells what training would take (`Sketches`); others need not be loaded for it.
        instead: for verbs that it does not answer, what to type.
    """

    name: str
    paper: str
    line: str
    verbs: frozenset[str]
    port: str
    sources: frozenset[str] = frozenset()
    default_for: frozenset[str] = frozenset()
    needs_model: bool = True
    sketches: bool = False
    instead: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Budget:
    """How many memory tokens per layer and head a prompt may keep: by ratio or by number, one of the two.

    Raises UsageError where neither or both are given, or one is below 1.
    """

    ratio: float | None = None
    slots: int | None = None

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.slots is None):
            raise UsageError(
                "a budget is a ratio or a number of slots", hint="give --ratio R or --slots M, not both"
            )
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio >= 1):
            raise UsageError(
                f"ratio {self.ratio:g} is below 1", hint="--ratio 4 keeps a quarter of the tokens"
            )
        if self.slots is not None and self.slots < 1:
            raise UsageError(f"{self.slots} slots leave no memory", hint="--slots takes 1 or more")

    def slots_for(self, t: int) -> int:
        """The number of memory tokens for a prompt of `t`: floor(t / ratio), or the stated slots.

        Raises DataError where that is below 1 or above t.
        """
        m = math.floor(t / self.ratio) if self.ratio is not None else int(self.slots or 0)
        if m < 1:
            raise DataError(
                f"a prompt of {t} tokens at ratio {self.ratio:g} keeps no token",
                hint=f"--ratio {max(t, 1)} or less",
            )
        if m > t:
            raise DataError(f"{m} slots are more than the prompt's {t} tokens", hint=f"--slots {t} or less")
        return m


@dataclass
class Made:
    """What compressing gives: the memory, the method's notes for the header, the report for the user."""

    memory: Memory
    about: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerateOptions:
    """How to answer queries; with `labels` the answer is the likeliest of them, otherwise text is decoded.

    own: a method's own GenerateKeys, where it has any. records, lines: the JSONL records that the queries
    came in and their line numbers, or nothing.
    """

    labels: tuple[str, ...] | None = None
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    beams: int = 1
    stop: tuple[str, ...] = ()
    batch: int = 32
    seed: int = 0
    calibrate: bool = True
    own: Any = None
    records: tuple[Mapping[str, Any], ...] = ()
    lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One query's answer; `scores` are log-probabilities a label, where labels were given. `trace`: how the
    answer came about, JSON-ready, where the method tells."""

    output: str
    scores: Mapping[str, float] | None = None
    trace: Mapping[str, Any] | None = None


class Run(Protocol):
    """Where a training run writes and how it ends early; the command makes it."""

    @property
    def out(self) -> Path: ...
    @property
    def fresh(self) -> bool: ...
    @property
    def device(self) -> str | None: ...
    def note(self, text: str) -> None: ...


class Method(Protocol):
    """What `load()` of a method's package returns."""

    @property
    def spec(self) -> Spec: ...


@runtime_checkable
class Compresses(Protocol):
    def compress(self, backbone: CausalLM, shots: Shots, budget: Budget, config: Any, seed: int) -> Made:
        """Write a prompt into memory tokens; `config` is the method's own Config."""
        ...


@runtime_checkable
class Generates(Protocol):
    def answer(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        queries: Sequence[str],
        options: GenerateOptions,
    ) -> Iterator[Answer]:
        """Answers in the order of the queries, as they come; `about` is the artifact header's."""
        ...


@runtime_checkable
class Speaks(Protocol):
    def speak(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        query: str,
        options: GenerateOptions,
    ) -> Iterator[str]:
        """One query's answer in pieces, as it is decoded: laid end to end they are `answer`'s output."""
        ...


@dataclass(frozen=True)
class BankCall:
    """One `memtok bank` command line.

    Args:
        action: list, show, add, remove, rename, merge, select, diff, verify or export.
        file: the bank. arguments: names, or further banks, in the user's order.
        out: where the result goes; in_place: to `file` itself. Verbs that write have one of the two.
        model: the language model, where it is not the header's. data: what to add.
        to: the format of an export. on_clash: of names in a merge. shared_blocks: what a merge takes of
            blocks that several banks hold. recouple: fit an export to a format that lacks the addresses.
        trust_remote_code: run the Python files of the model.
    """

    action: str
    file: str
    arguments: tuple[str, ...] = ()
    out: str | None = None
    in_place: bool = False
    model: str | None = None
    data: str | None = None
    to: str | None = None
    on_clash: str = "error"
    shared_blocks: str = "refuse"
    recouple: bool = False
    trust_remote_code: bool = False

    @property
    def target(self) -> str:
        """The file that a verb writes."""
        return self.file if self.in_place else str(self.out)


@runtime_checkable
class Banks(Protocol):
    def bank(self, call: BankCall, keys: Any, run: Run) -> Iterator[Mapping[str, Any]]:
        """What was found or done, one row each; `keys` is the config module's BankKeys (or Config).

        A verb that writes gives one row that has the result's `path`.
        """
        ...


@runtime_checkable
class Measures(Protocol):
    def measure(
        self,
        backbone: CausalLM,
        memory: Memory,
        about: Mapping[str, Any],
        data: str,
        keys: Any,
        run: Run,
    ) -> list[dict[str, Any]]:
        """Rows of figures of one artifact on `data`, where the engine's own measure does not fit; `keys` is
        the config module's EvaluateKeys."""
        ...


@runtime_checkable
class Examines(Protocol):
    def examine(
        self, path: str, kind: str, data: str | None, keys: Any, seed: int, run: Run
    ) -> list[dict[str, Any]]:
        """Rows of figures of one artifact, which the method opens by itself, on `data`; kind: the header's.
        `keys` is the config module's EvaluateKeys. data is None only where `keys` has a `path`, which then is
        what was given, or None too."""
        ...


@runtime_checkable
class Evaluates(Protocol):
    def evaluate(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        """Metrics of a trained run, JSON-ready."""
        ...


@runtime_checkable
class Benches(Protocol):
    def bench(self, recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
        """One row a method and setting, JSON-ready."""
        ...


@runtime_checkable
class Sketches(Protocol):
    def sketch(self, recipe: Recipe) -> dict[str, Any]:
        """What training would take, JSON-ready: for `memtok train --dry-run`."""
        ...


@runtime_checkable
class Trains(Protocol):
    def train(self, recipe: Recipe, run: Run) -> Path:
        """Fit what the recipe names and return the artifact's path; resumes by itself."""
        ...
