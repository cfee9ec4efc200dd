"""KEY=VALUE arguments that belong to no recipe: a method's own options, and how queries are answered."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field

from memtoken_cli import methods
from memtoken_cli.engine.method import GenerateOptions
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.io.records import read_lines
from memtoken_cli.recipe.overrides import flat
from memtoken_cli.recipe.sections import DEFAULT_MODEL

FROM_MEMORY = "memory"
_DEFAULT = GenerateOptions()


class Asked(Protocol):
    """What the command asks of any method's keys. A config module's GenerateKeys, where it has one, is a
    pydantic model of this protocol and stands in the place of the one below.

    texts: the keys that a record's query may have. input: a file of queries. trace: tell `told` on standard
    error.
    """

    texts: ClassVar[tuple[str, ...]]

    @property
    def batch(self) -> int: ...
    @property
    def errors(self) -> str: ...
    @property
    def input(self) -> str | None: ...
    @property
    def trace(self) -> bool: ...
    def options(self, about: Mapping[str, Any], seed: int | None) -> GenerateOptions:
        """The engine's options. Raises UsageError for what the header `about` rules out."""
        ...

    def check(self, record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Raises DataError for a record's own options that the header rules out."""
        ...

    def told(self, trace: Mapping[str, Any]) -> list[str]:
        """An answer's trace as lines."""
        ...


class GenerateKeys(BaseModel):
    """The keys of `memtok generate` and of `memtok evaluate ARTIFACT`; defaults are the engine's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    texts: ClassVar[tuple[str, ...]] = ("input",)
    input: ClassVar[str | None] = None
    trace: ClassVar[bool] = False

    labels: str | None = None
    max_new_tokens: int = Field(default=_DEFAULT.max_new_tokens, ge=1)
    temperature: float = Field(default=_DEFAULT.temperature, ge=0)
    top_k: int | None = Field(default=_DEFAULT.top_k, ge=1)
    top_p: float | None = Field(default=_DEFAULT.top_p, gt=0, le=1)
    beams: int = Field(default=_DEFAULT.beams, ge=1)
    stop: str | list[str] = Field(default_factory=list)
    batch: int = Field(default=_DEFAULT.batch, ge=1)
    calibrate: bool = _DEFAULT.calibrate
    errors: Literal["stop", "skip"] = "stop"

    def options(self, about: Mapping[str, Any], seed: int | None) -> GenerateOptions:
        """The engine's options; `labels` come from the file or from `about`, a header's own notes."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        options = GenerateOptions(
            **self.model_dump(exclude={"labels", "stop", "errors"}), stop=tuple(map(_unescaped, stops))
        )
        return replace(options, labels=self._labels(about), seed=seed or 0)

    def check(self, record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Records have no options of their own."""

    def told(self, trace: Mapping[str, Any]) -> list[str]:
        return []

    def _labels(self, about: Mapping[str, Any]) -> tuple[str, ...] | None:
        if self.labels is None:
            return None
        if self.labels == FROM_MEMORY:
            known = about.get("labels")
            if not known:
                raise UsageError(
                    "the memory's shots have no closed set of labels", hint="labels=FILE, one label a line"
                )
            return tuple(known)
        return read_labels(self.labels)


def generate_keys(method: str) -> type[BaseModel]:
    """The model of the keys that `memtok generate` takes for a memory of `method`: its own, or the one
    above."""
    own = vars(methods.config_module(method)).get("GenerateKeys", GenerateKeys)
    return cast(type[BaseModel], own)


def read_labels(path: str) -> tuple[str, ...]:
    """One label a line, in the file's order. Raises DataError where one stands twice or there are none."""
    seen: dict[str, int] = {}
    for number, text in read_lines(path):
        label = text.strip()
        if label in seen:
            raise DataError(
                f"label {label!r} stands twice (first on line {seen[label]})", where=f"{path}:{number}"
            )
        if label:
            seen[label] = number
    if not seen:
        raise DataError("no labels: the file is empty", hint="one label a line", where=path)
    return tuple(seen)


def configure(method: str, overrides: list[str]) -> Any:
    """The method's own Config from KEY=VALUE. Raises UsageError with every problem."""
    return flat(overrides, methods.config_module(method).Config)


def model_name(given: str | None) -> str:
    """--model, or the default language model."""
    if given is not None and not given.strip():
        raise UsageError("--model is empty", hint=f"--model {DEFAULT_MODEL}")
    return given or DEFAULT_MODEL


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")
