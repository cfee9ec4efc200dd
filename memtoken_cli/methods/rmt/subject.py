"""A trained model together with the task that it is tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from memtoken_cli.data.streams import TAIL, Stream, stream_for
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import Problems, UsageError
from memtoken_cli.methods.rmt.config import UNCHANGED
from memtoken_cli.methods.rmt.controls import CONTROLS, Control
from memtoken_cli.methods.rmt.exam import Exam
from memtoken_cli.methods.rmt.model_file import Model
from memtoken_cli.recipe import strict_yaml
from memtoken_cli.recipe.explain import explain

IN_WORDS = ("babilong", "text")  # tasks that use all of their vocabulary


@dataclass(frozen=True)
class Subject:
    """seed: of the test set."""

    exam: Exam
    backbone: CausalLM
    stream: Stream
    seed: int

    @property
    def policy(self) -> str:
        return self.exam.config.policy

    @property
    def controls(self) -> tuple[Control, ...]:
        """Only the model itself where there is no state to lose."""
        return ("own",) if self.policy in UNCHANGED else CONTROLS

    def sizes(self, asked: Sequence[int]) -> tuple[int, ...]:
        """Those asked for, or the task's own."""
        return tuple(asked) or (self.stream.size(),)


def subject(model: Model, task: TaskSection, path: str | None, seed: int, batch: int) -> Subject:
    """Raises UsageError where the model does not know the task's words, DataError for bad files."""
    new = model.about["new"] is not None
    # words of a text were counted once, in training: another text is spelled with them
    counted = task.name == "text" and model.about["task"].get("words") is not None
    own = None if new and not counted else model.backbone.tokenizer
    stream = stream_for(task, model.config.segment, seed, own, path)
    if own is None:
        check_words(stream, task.name, model.backbone)
    return Subject(Exam.of(model.backbone, model.policy, model.config, batch), model.backbone, stream, seed)


def check_words(stream: Stream, name: str, backbone: CausalLM) -> None:
    """Raises UsageError unless the model knows every word that the task uses by the task's id."""
    words = list(stream.vocabulary)
    wanted = words if name in IN_WORDS else words[: -len(TAIL)]
    inside = min(len(wanted), len(backbone.tokenizer))
    known = backbone.tokenizer.convert_ids_to_tokens(list(range(inside)))
    strange = [word for word, own in zip(wanted, known, strict=False) if word != own] + wanted[inside:]
    if strange:
        raise UsageError(
            f"the model was not trained on the words of this task {name}, such as {strange[0]!r}",
            hint="evaluate the trained task, or one with its vocabulary, as reverse has copy's",
        )


def task_of(trained: Mapping[str, Any], given: Mapping[str, Any]) -> TaskSection:
    """The trained task with other keys, or another task. Raises UsageError with every wrong key."""
    same = given.get("name", trained["name"]) == trained["name"]
    value = {**trained, **given} if same else dict(given)
    problems = Problems()
    try:
        return TaskSection.model_validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        document = strict_yaml.Document(value, "the arguments")
        for problem in explain(error, document, TaskSection):
            problems.add(problem)
    problems.raise_any()
    raise AssertionError("a failed validation has been explained")
