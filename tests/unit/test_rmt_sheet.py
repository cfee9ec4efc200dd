"""Rows of figures of one model: sizes, controls, labels of stories, and which tasks a model can be asked."""

import pytest
import torch
from torch import Tensor

from memtoken_cli.data.stream_babilong import BabiLong
from memtoken_cli.data.stream_text import Text
from memtoken_cli.data.streams import IGNORE, Sequences, Stream, stream_for
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine.fresh import new_backbone
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.exam import Exam
from memtoken_cli.methods.rmt.exam_config import ExamKeys
from memtoken_cli.methods.rmt.model_file import Model
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.sheet import measured
from memtoken_cli.methods.rmt.subject import Subject, check_words, subject, task_of
from memtoken_cli.recipe.sections import NewModel

SIZE = NewModel(new="llama", layers=1, width=16, heads=2, context=256, tie=False)
STORY = TaskSection(name="babilong", segments=2)
COPY = TaskSection(name="copy", length=6, symbols=4)


def subject_of(stream: Stream, policy: str = "rmt", segment: int = 48) -> Subject:
    backbone = new_backbone(SIZE, stream.vocabulary, 0)
    config = Config(policy=policy, slots=2, segment=segment, state_norm="final")
    return Subject(Exam.of(backbone, policy_for(backbone, config, 0), config, 8), backbone, stream, 0)


def answered(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Every model now answers with the targets, changed; without memory with nothing."""

    def answers(self: Exam, rows: Sequences, control: str = "own", teacher: bool = False):
        made = change(rows.target_BT) if control == "own" else torch.full_like(rows.target_BT, IGNORE)
        return made, torch.ones(len(rows), dtype=torch.bool)

    monkeypatch.setattr(Exam, "answers", answers)


def test_labels_of_stories(monkeypatch):
    stream = stream_for(STORY, 48, 0)
    assert isinstance(stream, BabiLong)
    found = subject_of(stream)
    keys = ExamKeys(tests=30)
    answered(monkeypatch, lambda target: target)
    (row,) = measured(found, keys).rows
    assert (row["accuracy"], row["exact"], row["labels"]) == (1, 1, 1)
    assert (row["no_memory"], row["shuffled"]) == (0, 0)

    def no_end(target_BT: Tensor) -> Tensor:
        """The answer is right and goes on where it should end."""
        made = target_BT.clone()
        made[target_BT == stream._spelling.last] = stream._spelling.encode(["the"])[0][0]
        return made

    answered(monkeypatch, no_end)
    (row,) = measured(found, keys).rows
    assert (row["exact"], row["labels"]) == (0, 1)
    other = stream._spelling.encode(["garden"])[0][0]
    answered(monkeypatch, lambda target: torch.where(target == IGNORE, IGNORE, other))
    (row,) = measured(found, keys).rows
    assert 0 < row["labels"] < 0.5


def test_stories_of_a_test_are_held_out(monkeypatch):
    stream = stream_for(STORY, 48, 0)
    seen: list[bool] = []
    told = BabiLong.told

    def spied(self: BabiLong, *given):
        seen.append(self._test)
        return told(self, *given)

    monkeypatch.setattr(BabiLong, "told", spied)
    measured(subject_of(stream), ExamKeys(tests=4))
    assert seen == [True]


def test_the_tasks_own_size_stands_for_the_model(monkeypatch):
    found = subject_of(stream_for(COPY, 6, 0), segment=6)
    answered(monkeypatch, lambda target: target)
    result = measured(found, ExamKeys(tests=4, sizes=(3, 6, 9)))
    assert [row["size"] for row in result.rows] == [3, 6, 9]
    assert [row["segments"] for row in result.rows] == [2, 3, 5]
    assert result.main == 6
    assert result.figures["accuracy_at_9"] == 1.0
    assert result.shares[6].tolist() == [1.0] * 4
    assert measured(found, ExamKeys(tests=4, sizes=(3, 9))).main == 3
    assert measured(found, ExamKeys(tests=4)).main == 6


def test_a_model_without_a_state_has_no_controls():
    for policy in ("none", "static"):
        (row,) = measured(subject_of(stream_for(COPY, 6, 0), policy, 6), ExamKeys(tests=4)).rows
        assert not {"no_memory", "shuffled"} & row.keys()


def test_words_must_be_those_that_were_trained():
    backbone = new_backbone(SIZE, stream_for(COPY, 6, 0).vocabulary, 0)
    check_words(stream_for(TaskSection(name="reverse", symbols=4), 6, 0), "reverse", backbone)
    # fewer symbols are the same ids; more, or other words, are not
    check_words(stream_for(TaskSection(name="copy", symbols=3), 6, 0), "copy", backbone)
    for other in (TaskSection(name="copy", symbols=5), TaskSection(name="retrieval")):
        with pytest.raises(UsageError, match="not trained on the words"):
            check_words(stream_for(other, 6, 0), other.name, backbone)


def test_keys_change_the_trained_task():
    trained = COPY.model_dump(mode="json", exclude_none=True)
    assert task_of(trained, {"length": 9}) == TaskSection(name="copy", length=9, symbols=4)
    assert task_of(trained, {"name": "reverse"}) == TaskSection(name="reverse")
    with pytest.raises(UsageError, match="lenth"):
        task_of(trained, {"lenth": 9})
    with pytest.raises(UsageError, match="no pairs"):
        task_of(trained, {"pairs": 2})


def test_another_text_is_spelled_with_the_words_that_were_counted_in_training(tmp_path):
    texts = []
    for name, text in (("own", "red green red blue " * 300), ("other", "blue violet red " * 300)):
        texts.append(tmp_path / name)
        texts[-1].write_text(text)
    task = TaskSection(name="text", segments=2, words=3)
    trained = stream_for(task, 8, 0, None, texts[0])
    backbone = new_backbone(SIZE, trained.vocabulary, 0)
    config = Config(policy="rmt", slots=2, segment=8, state_norm="final")
    about = {"new": {}, "task": task.model_dump()}
    model = Model(backbone, policy_for(backbone, config, 0), config, about, "")
    found = subject(model, task, str(texts[1]), 0, 8)
    assert isinstance(found.stream, Text)
    words = backbone.tokenizer.convert_ids_to_tokens(found.stream.validation.ids_K[:6].tolist())
    assert sorted(set(words)) == ["<unk>", "blue", "red"]
    assert measured(found, ExamKeys(tests=4)).figures["bits_per_byte"] > 0
