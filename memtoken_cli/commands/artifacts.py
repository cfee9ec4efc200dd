"""From what a method made to an artifact and back: the only place where headers meet memories and models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memtoken_cli.engine.method import Budget, Made, Spec
from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from memtoken_cli.commands.options import Common
    from memtoken_cli.data.shots import Shots
    from memtoken_cli.engine.backbone import CausalLM
    from memtoken_cli.engine.memory import Memory
    from memtoken_cli.io.artifact import Header

REQUEST, REPORT, NEXT_POSITION, NAMES = "request", "report", "next_position", "names"
SECONDS = "seconds"  # what a report says of time; it stays out of artifacts, whose bytes the request decides


@dataclass(frozen=True)
class Source:
    """An artifact's bytes and its header: what can be known without torch."""

    path: str
    data: bytes
    header: "Header"


@dataclass(frozen=True)
class Opened:
    """A memory as read from an artifact."""

    path: str
    header: "Header"
    memory: "Memory"


def backbone_for(spec: Spec, name: str, common: "Common") -> "CausalLM | None":
    """The language model, or None where the method needs none."""
    if not spec.needs_model:
        return None
    from memtoken_cli.engine import models

    return models.load(name, device=common.device, trust_remote_code=common.trust)


def header_for(
    spec: Spec,
    made: Made,
    backbone: "CausalLM | None",
    shots: "Shots",
    budget: Budget,
    request: Mapping[str, Any],
) -> "Header":
    """The header of a compressed prompt."""
    from memtoken_cli.engine.memory import Layers
    from memtoken_cli.io.artifact import Header, ModelRef

    memory = made.memory
    entry: dict[str, Any] = (
        {NEXT_POSITION: memory.next_position} if isinstance(memory, Layers) else {NAMES: list(memory.names)}
    )
    source = {"sha256": shots.sha256, "shots": len(shots.items), "kind": shots.kind}
    if "tokens" in made.report:
        source["tokens"] = made.report["tokens"]
    report = {key: value for key, value in made.report.items() if key != SECONDS}
    return Header(
        method=spec.name,
        kind="memory",
        port=memory.port,
        model=None if backbone is None else ModelRef.of(backbone),
        source=source,
        ratio=budget.ratio,
        slots=int(memory.slots),
        about={**made.about, **entry, REQUEST: dict(request), REPORT: report},
    )


def peek(path: str, data: bytes | None = None) -> Source:
    """One artifact's bytes (`data`, where they are read already) and header, no torch; "-" is standard input.
    Raises DataError where it holds no memory."""
    from memtoken_cli.io import artifact
    from memtoken_cli.io.records import source_name

    data = artifact.content(path) if data is None else data
    header = artifact.read_header(data, name=source_name(path))
    if header.kind != "memory" or header.port is None:
        raise DataError(
            f"{path} holds a {header.kind} of {header.method}, not a memory",
            hint="memtok compress --shots prompts.jsonl --ratio 4",
        )
    return Source(path, data, header)


def open_memory(source: str | Source) -> Opened:
    """Read and check one artifact; "-" is standard input. Raises DataError where it holds no memory."""
    from memtoken_cli.engine.memory import from_tensors
    from memtoken_cli.io import artifact
    from memtoken_cli.io.records import source_name

    if isinstance(source, str):
        source = peek(source)
    header, tensors = artifact.read(source.data, name=source_name(source.path))
    about = header.about
    memory = from_tensors(str(header.port), tensors, about.get(NEXT_POSITION, 0), about.get(NAMES, ()))
    return Opened(source.path, header, memory)


def check_alike(opened: Sequence[Opened | Source]) -> None:
    """Raise UsageError unless the memories may be read together: one method, one model."""
    first = opened[0]
    for other in opened[1:]:
        if other.header.method != first.header.method:
            raise UsageError(
                f"{first.path} is of {first.header.method}, {other.path} of {other.header.method}"
            )
        if other.header.model != first.header.model:
            raise UsageError(
                f"{first.path} and {other.path} are of different models: {_named(first)}, {_named(other)}",
                hint="compress both prompts with the same --model",
            )


def check_backbone(opened: Opened, backbone: "CausalLM | None") -> None:
    """Raise DataError where the loaded model is not the one the memory was made with."""
    made_with = opened.header.model
    if backbone is not None and made_with is not None:
        hint = f"--model {made_with.name}, or make it again with {backbone.name}"
        made_with.check(backbone, opened.path, hint=hint)


def _named(opened: Opened | Source) -> str:
    return opened.header.model.name if opened.header.model else "no model"
