"""One or more memories with the method and the model that read them, for the commands that ask queries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from memtoken_cli import methods
from memtoken_cli.commands.artifacts import (
    NAMES,
    Source,
    backbone_for,
    check_alike,
    check_backbone,
    open_memory,
    peek,
)
from memtoken_cli.commands.choose import method_for
from memtoken_cli.commands.keys import Asked
from memtoken_cli.commands.options import Common
from memtoken_cli.data.shots import Query
from memtoken_cli.engine.method import Answer, Generates, Speaks
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.sink import Sink


@dataclass
class Reader:
    """The memory with its method and model: artifacts and keys are checked at once, the model waits for
    `load`."""

    paths: Sequence[str | Source]
    model: str | None
    common: Common
    asked: Asked
    sink: Sink

    def __post_init__(self) -> None:
        sources = [path if isinstance(path, Source) else peek(path) for path in self.paths]
        check_alike(sources)
        header = sources[0].header
        self.spec = method_for("generate", header.method)
        self.about = header.about if len(sources) == 1 else _joined_about(sources)
        self.options = self.asked.options(self.about, self.common.seed)
        self.opened = [open_memory(source) for source in sources]  # torch from here on
        self.method = cast(Generates, methods.load(self.spec.name))
        self.memory = self._joined()
        self.backbone: Any = None
        self.loaded = False

    def _joined(self) -> Any:
        if len(self.opened) == 1:
            return self.opened[0].memory
        from memtoken_cli.engine.memory import Layers, join

        layers = [opened.memory for opened in self.opened if isinstance(opened.memory, Layers)]
        if len(layers) != len(self.opened):
            hint = "give --memory once" + ("; memtok bank merge" if NAMES in self.about else "")
            raise UsageError("only memories of the layers port can be joined", hint=hint)
        self.sink.warn("joined memories are approximate: none of them has read the others")
        return join(layers)

    def answers(self, queries: Sequence[str], rows: Sequence[Query] = ()) -> Iterator[Answer]:
        """In the order of the queries; `rows` are what they came in, where a method reads more of it."""
        options = self.options
        if rows:
            records, lines = tuple(row.record for row in rows), tuple(row.line for row in rows)
            options = replace(options, records=records, lines=lines)
        return self.method.answer(self.backbone, self.memory, self.about, queries, options)

    def spoken(self, query: str) -> Iterator[str]:
        """One answer in pieces as they come, or as a whole where the method does not speak."""
        if isinstance(self.method, Speaks):
            return self.method.speak(self.backbone, self.memory, self.about, query, self.options)
        return (answer.output for answer in self.answers([query]))

    def load(self) -> None:
        """The model, once; raises where it is not the memories' own."""
        if self.loaded:
            return
        made_with = self.opened[0].header.model
        name = self.model or (made_with.name if made_with else "")
        self.backbone = backbone_for(self.spec, name, self.common)
        for opened in self.opened:
            check_backbone(opened, self.backbone)
        if len(self.opened) > 1:
            from memtoken_cli.engine.turn import in_a_row

            self.memory = in_a_row(self.backbone, [cast(Any, opened.memory) for opened in self.opened])
        made_in = self.about.get("dtype")
        here = None if self.backbone is None else str(self.backbone.dtype).removeprefix("torch.")
        if made_in is not None and here is not None and made_in != here:
            self.sink.warn(
                f"the memory was made in {made_in}, the model is in {here}: close calls may differ"
            )
        self.loaded = True


def _joined_about(sources: Sequence[Source]) -> dict[str, Any]:
    """The first memory's notes; labels of all, and no calibration: it was fitted to one of them alone."""
    notes = [source.header.about for source in sources]
    if any(note.get("template") != notes[0].get("template") for note in notes):
        raise UsageError(
            "the memories were made with different templates", hint="compress both with one template="
        )
    labels = sorted({label for note in notes for label in note.get("labels") or ()})
    return {**notes[0], "labels": labels or None, "calibration": None}
