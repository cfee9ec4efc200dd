"""What `memtoken_cli.compress` and `memtoken_cli.load` return: a memory with the model that reads it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import DynamicCache, PreTrainedModel

from . import methods
from .commands.artifacts import Opened, check_backbone, header_for, open_memory
from .data.shots import read_shots, shots_of
from .engine import models
from .engine.backbone import CausalLM
from .engine.memory import Layers, Memory
from .engine.method import Answer, Budget, Compresses, GenerateOptions, Generates, Made
from .io import artifact
from .io.errors import UsageError


@dataclass(frozen=True)
class PromptMemory:
    """A memory and the backbone it was made for."""

    backbone: CausalLM
    memory: Memory
    header: artifact.Header

    @property
    def next_position(self) -> int:
        """Where the text that reads the memory goes on."""
        return self._layers().next_position

    @contextmanager
    def attached(self, model: PreTrainedModel | None = None) -> Iterator[PreTrainedModel]:
        """The model reads the memory before its input inside the block, also in stock `generate`.

        Raises UsageError where `model` is not the backbone's.
        """
        with self._on(model).attached(self._layers()) as reading:
            yield reading

    def to_cache(self, model: PreTrainedModel | None = None) -> DynamicCache:
        """The memory as an ordinary cache of one row; feed the query at `next_position`.

        Raises UsageError where heads hold unequal numbers of tokens or a bias: use budget=uniform bias=none.
        """
        return self._on(model).to_cache(self._layers())

    def answer(self, queries: Sequence[str], options: GenerateOptions | None = None) -> list[Answer]:
        """What `memtok generate` prints, for each query."""
        method = cast(Generates, methods.load(self.header.method))
        chosen = options or GenerateOptions()
        return list(method.answer(self.backbone, self.memory, self.header.about, queries, chosen))

    def save(self, path: str | Path) -> Path:
        """Write the artifact, atomically."""
        artifact.write(str(path), self.memory.tensors(), self.header)
        return Path(path)

    def _layers(self) -> Layers:
        if not isinstance(self.memory, Layers):
            raise UsageError(f"a memory of the {self.memory.port} port has no cache to enter")
        return self.memory

    def _on(self, model: PreTrainedModel | None) -> CausalLM:
        if model is None or model is self.backbone.model:
            return self.backbone
        other = CausalLM(model, self.backbone.tokenizer, self.backbone.name)
        check_backbone(Opened("the memory", self.header, self.memory), other)
        return other


def compress(
    shots: str | Path | Iterable[Mapping[str, str]],
    model: str | CausalLM,
    ratio: float | None,
    slots: int | None,
    method: str | None,
    seed: int,
    options: dict[str, Any],
) -> PromptMemory:
    budget = Budget(ratio, slots)
    name = method or methods.default_for("compress")
    config = methods.config_module(name).Config(**options)
    read = read_shots(shots) if isinstance(shots, str | Path) else shots_of(shots)
    spec = methods.discover()[name]
    backbone = models.load(model) if isinstance(model, str) else model
    made: Made = cast(Compresses, methods.load(name)).compress(backbone, read, budget, config, seed)
    request = {"shots": read.sha256, "method": name, "config": config.model_dump(mode="json"), "seed": seed}
    return PromptMemory(backbone, made.memory, header_for(spec, made, backbone, read, budget, request))


def load(path: str | Path, model: str | CausalLM | None) -> PromptMemory:
    opened = open_memory(str(path))
    named = opened.header.model.name if opened.header.model else ""
    backbone = model if isinstance(model, CausalLM) else models.load(model or named)
    check_backbone(opened, backbone)
    return PromptMemory(backbone, opened.memory, opened.header)
