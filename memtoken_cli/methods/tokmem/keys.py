"""What `memtok generate` is asked of a bank: the KEY=VALUE arguments, the fields of a JSONL record, Options.

Everything here is checked against the names of a header, before torch is imported. `config.py` re-exports
GenerateKeys, where the command looks for it. How options are obeyed is `decode.py`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from memtoken_cli.engine.method import GenerateOptions
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem.names import unknown

AUTO, INSIST, NONE, ALL = "auto", "auto!", "none", "all"
MODES = (AUTO, INSIST, NONE)
Constrain = Literal["grammar", "none"]


@dataclass(frozen=True)
class Options:
    """How to decode.

    Attributes:
        procedures: "auto" routes, "auto!" routes and forbids plain text, "none" is the bare backbone; names
            are a forced chain in one sequence.
        pipe: names, each reading the answer of the one before; excludes `procedures`.
        allow, deny: names that routing may, may not choose; an empty `allow` is all, ("all",) is every name.
        max_procedures: segments a row may have; None: the bank's own.
        min_prob: a less probable first procedure is none at all (plain text).
        top_k: alternatives that a route reports.
        max_new_tokens: of each segment; with constrain="none" of the row, memory tokens included.
        constrain: "grammar", or the paper's free softmax over vocabulary and memory ("none").
        temperature: 0 is greedy; routing in the grammar is always the likeliest.
        seed: of sampling; a row's draws do not depend on its batch.
        logprobs: keep the log-probability of every chosen vocabulary token.
    """

    procedures: str | tuple[str, ...] = AUTO
    pipe: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    max_procedures: int | None = None
    min_prob: float = 0.0
    top_k: int = 3
    max_new_tokens: int = 256
    constrain: Constrain = "grammar"
    temperature: float = 0.0
    seed: int = 0
    logprobs: bool = False

    @property
    def forced(self) -> tuple[str, ...]:
        """The chain of names, or none where the model routes."""
        return () if isinstance(self.procedures, str) else self.procedures

    def check(self, names: Sequence[str]) -> Options:
        """These options, if a bank of `names` can obey them. Raises UsageError (nearest name in the hint)."""
        for key, asked in (
            ("procedures", self.forced),
            ("pipe", self.pipe),
            ("allow", self.allow),
            ("deny", self.deny),
        ):
            for name in asked:
                if name not in names and not (key in ("allow", "deny") and name == ALL):
                    raise unknown(name, names, key)
        if isinstance(self.procedures, str) and self.procedures not in MODES:
            raise unknown(self.procedures, names, "procedures")
        if self.pipe and self.procedures != AUTO:
            raise UsageError("pipe= and procedures= exclude each other", hint="pipe=A,B or procedures=A,B")
        for name in (*self.forced, *self.pipe):
            if name not in self.allowed(names):
                raise UsageError(
                    f"procedure {name!r} is asked for, but not allowed", hint="see allow=, deny="
                )
        most = self.max_procedures
        if most is not None and len(self.forced) > most:
            raise UsageError(
                f"{len(self.forced)} procedures are asked for, max_procedures is {most}",
                hint=f"max_procedures={len(self.forced)}",
            )
        if self.procedures == INSIST and not self.allowed(names):
            raise UsageError("procedures=auto! with no procedure allowed", hint="see allow=, deny=")
        return self

    def allowed(self, names: Sequence[str]) -> tuple[str, ...]:
        """What routing may choose among, in the bank's order."""
        allow = set(names) if not self.allow or _all(self.allow, names) else set(self.allow)
        deny = set(names) if _all(self.deny, names) else set(self.deny)
        return tuple(name for name in names if name in allow - deny)


DEFAULT = Options()


def _all(asked: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the word `all` stands for every name: not where a procedure is called so."""
    return ALL in asked and ALL not in names


def parse_names(given: str | Sequence[str], names: Sequence[str], *, modes: bool = False) -> Any:
    """A mode's word or a name as it stands, otherwise names separated by commas; a list is a list of
    names."""
    if not isinstance(given, str):
        return tuple(given)
    if modes and given in MODES:
        return given
    if given in names:
        return (given,)
    return tuple(part.strip() for part in given.split(",") if part.strip())


class GenerateKeys(BaseModel):
    """The keys of `memtok generate` for a bank; see `Options`. `trace`: routes on standard error. `input`: a
    JSONL file of {"prompt", "procedures"?, "allow"?}. `batch`: rows decoded together. `adapter`: the folder
    of the adapter that the bank was made under, where it is elsewhere now."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    procedures: str | list[str] = AUTO
    pipe: str | list[str] = Field(default_factory=list)
    allow: str | list[str] = Field(default_factory=list)
    deny: str | list[str] = Field(default_factory=list)
    max_procedures: int | None = Field(default=None, ge=1)
    min_prob: float = Field(default=0.0, ge=0, le=1)
    top_k: int = Field(default=3, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)
    constrain: Constrain = "grammar"
    temperature: float = Field(default=0.0, ge=0)
    trace: bool = False
    input: str | None = None
    adapter: str | None = None
    batch: int = Field(default=8, ge=1)
    errors: Literal["stop", "skip"] = "stop"

    texts: ClassVar[tuple[str, ...]] = ("prompt", "input")

    def decoding(self, names: Sequence[str], seed: int = 0) -> Options:
        """As `Options`, checked. Raises UsageError."""
        return Options(
            procedures=parse_names(self.procedures, names, modes=True),
            pipe=parse_names(self.pipe, names),
            allow=parse_names(self.allow, names),
            deny=parse_names(self.deny, names),
            max_procedures=self.max_procedures,
            min_prob=self.min_prob,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            constrain=self.constrain,
            temperature=self.temperature,
            seed=seed,
        ).check(names)

    def options(self, about: Mapping[str, Any], seed: int | None) -> GenerateOptions:
        """The engine's options, these keys inside as `own`. Raises UsageError, also for an unknown name."""
        self.decoding(about.get("names") or (), seed or 0)
        return GenerateOptions(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            batch=self.batch,
            seed=seed or 0,
            own=self,
        )

    def check(self, record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Raises DataError for a record whose own `procedures` or `allow` the bank cannot obey."""
        names = about.get("names") or ()
        row_options(self.decoding(names), record, names)

    def told(self, trace: Mapping[str, Any]) -> list[str]:
        """One line a route, for standard error."""
        return [_line(number, route) for number, route in enumerate(trace.get("routes", ()), 1)]


def row_options(options: Options, record: Mapping[str, Any], names: Sequence[str]) -> Options:
    """The options of one record: its own `procedures` and `allow` before the command's.

    Raises DataError where they are of the wrong type or name no procedure.
    """
    asked = {key: record[key] for key in ("procedures", "allow") if record.get(key) is not None}
    for key, value in asked.items():
        fine = isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(name, str) for name in value)
        )
        if not fine:
            raise DataError(f'"{key}" must be a name or a list of names', hint=f'such as "{key}": ["NAME"]')
    if not asked:
        return options
    new = {key: parse_names(value, names, modes=key == "procedures") for key, value in asked.items()}
    try:
        return replace(options, **new).check(names)
    except UsageError as error:
        raise DataError(error.message, hint=error.hint) from error


def _line(number: int, route: Mapping[str, Any]) -> str:
    name = route["procedure"] or ("end" if route["site"] == "boundary" else "text")
    said = f"route {number}  {name}  "
    said += "forced" if route["forced"] else f"p={route['p']:.2f}"
    following = [f"{other['procedure']} {other['p']:.2f}" for other in route["alternatives"]]
    if following:
        said += "   next: " + ", ".join(following)
    for key, word in (("p_text", "text"), ("p_end", "end")):
        if route.get(key) is not None:
            said += f"   {word} {route[key]:.2f}"
    return said
