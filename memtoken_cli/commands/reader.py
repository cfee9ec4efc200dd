"""One or more memories with the method and the model that read them, for the commands that ask queries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from memtoken_cli import methods
from memtoken_cli.commands.artifacts import backbone_for, check_alike, check_backbone, open_memory
from memtoken_cli.commands.choose import method_for
from memtoken_cli.commands.keys import GenerateKeys
from memtoken_cli.commands.options import Common
from memtoken_cli.engine.method import Answer, Generates
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.sink import Sink


@dataclass
class Reader:
    """The memory with its method and model: artifacts are checked at once, the model waits for `load`."""

    paths: Sequence[str]
    model: str | None
    common: Common
    asked: GenerateKeys
    sink: Sink

    def __post_init__(self) -> None:
        self.opened = [open_memory(path) for path in self.paths]
        check_alike(self.opened)
        header = self.opened[0].header
        self.spec = method_for("generate", header.method)
        self.about = header.about if len(self.opened) == 1 else self._joined_about()
        self.options = self.asked.options(self.about, self.common.seed)
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
            raise UsageError("only memories of the layers port can be joined", hint="give --memory once")
        self.sink.warn("joined memories are approximate: none of them has read the others")
        return join(layers)

    def _joined_about(self) -> dict[str, Any]:
        """The first memory's notes; labels of all, and no calibration: it was fitted to one of them alone."""
        notes = [opened.header.about for opened in self.opened]
        if any(note.get("template") != notes[0].get("template") for note in notes):
            raise UsageError(
                "the memories were made with different templates", hint="compress both with one template="
            )
        labels = sorted({label for note in notes for label in note.get("labels") or ()})
        return {**notes[0], "labels": labels or None, "calibration": None}

    def answers(self, queries: Sequence[str]) -> Iterator[Answer]:
        return self.method.answer(self.backbone, self.memory, self.about, queries, self.options)

    def load(self) -> None:
        """The model, once; raises where it is not the memories' own."""
        if self.loaded:
            return
        made_with = self.opened[0].header.model
        name = self.model or (made_with.name if made_with else "")
        self.backbone = backbone_for(self.spec, name, self.common)
        for opened in self.opened:
            check_backbone(opened, self.backbone)
        self.loaded = True
