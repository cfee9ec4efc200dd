"""Accuracy of answers that a model writes itself: a cached, batched reader held against one that recomputes
everything for every token."""

from typing import get_args

import pytest
import torch
from tiny import tiny_gpt2, tiny_llama
from torch import Tensor

from memtoken_cli.data.streams import IGNORE, Sequences, stream_for
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.controls import CONTROLS
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.diagonal import Diagonal
from memtoken_cli.methods.rmt.exam import Exam, examples, marked
from memtoken_cli.methods.rmt.exam_config import Kind
from memtoken_cli.methods.rmt.policies import policy_for

IGNORED = [IGNORE] * 3


def sequences(shapes: list[tuple[int, int]], seed: int = 0) -> Sequences:
    """Rows of random ids: (length, first scored position) each; all from there on is scored."""
    g = torch.Generator().manual_seed(seed)
    T = max(length for length, _ in shapes)
    ids = torch.randint(2, 60, (len(shapes), T), generator=g)
    target = torch.randint(2, 60, (len(shapes), T), generator=g)
    for row, (length, answer) in enumerate(shapes):
        ids[row, length:] = 0
        target[row, :answer], target[row, length:] = IGNORE, IGNORE
    lengths, answers = zip(*shapes, strict=True)
    return Sequences(ids, torch.tensor(lengths), target, torch.tensor(answers))


def naive(exam: Exam, rows: Sequences, control: str, teacher: bool) -> Tensor:
    """One token after the other, each from the very beginning and without a cache."""
    made = torch.full_like(rows.target_BT, IGNORE)
    ids = rows.ids_BT.clone()
    policy, B = exam.policy, len(rows)
    cuts = cut(rows.length_B, exam.config.segment, exam.config.align)
    for position in range(int(rows.answer_B[0]), int(rows.length_B[0])):
        state = policy.start(B)
        for start, count in zip(cuts.start_NB[:, 0].tolist(), cuts.count_NB[:, 0].tolist(), strict=True):
            if start and control == "none":
                state = policy.start(B)
            if start and control == "shuffled":
                state = tuple(torch.cat([x[-1:], x[:-1]]) for x in state)
            stop = min(start + count, position + 1)
            column = torch.tensor([stop - start - 1])
            logits, state = policy.segment(ids[:, start:stop], torch.full((B,), stop - start), state, column)
            if stop == position + 1:
                made[:, position] = logits[:, 0].argmax(-1)
                break
        if not teacher and position + 1 < ids.shape[1]:
            ids[:, position + 1] = made[:, position]
    return made


def exam_of(policy: str, align: str = "left", family=tiny_llama, batch: int = 128, **own) -> Exam:
    backbone = family()
    config = Config(policy=policy, slots=3, segment=5, d_mem=4, align=align, **own)
    found = policy_for(backbone, config, 0)
    with torch.no_grad():
        for name, p in found.parameters().items():
            if name.endswith(".v"):  # armt's values start at zero: nothing would be read
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return Exam.of(backbone, found, config, batch)


@pytest.mark.parametrize("policy", get_args(Kind))
@torch.no_grad()
def test_answers_are_those_of_recomputing_everything(policy):
    # prompts that end inside a segment, with one, before one; answers over two boundaries
    shapes = {"left": ((13, 3), (14, 4), (5, 4)), "right": ((17, 9), (13, 6)), "center": ((11, 6), (12, 3))}
    for align, pairs in shapes.items():
        exam = exam_of(policy, align)
        for length, answer in pairs:
            rows = sequences([(length, answer)] * 3, seed=length)
            for teacher in (False, True):
                made, asked = exam.answers(rows, "own", teacher)
                assert asked.all()
                assert torch.equal(made, naive(exam, rows, "own", teacher)), (align, length, teacher)


@pytest.mark.parametrize("control", CONTROLS)
@torch.no_grad()
def test_controls_act_at_every_boundary_and_nowhere_else(control):
    exam = exam_of("rmt", mask="blocks")
    rows = sequences([(17, 6)] * 4)
    for teacher in (False, True):
        made, _ = exam.answers(rows, control, teacher)
        assert torch.equal(made, naive(exam, rows, control, teacher))


@torch.no_grad()
def test_controls_change_answers():
    exam = exam_of("rmt", family=tiny_gpt2)
    rows = sequences([(24, 5)] * 16)
    own, none, shuffled = (exam.answers(rows, control)[0] for control in CONTROLS)
    assert not torch.equal(own, none)
    assert not torch.equal(own, shuffled)


@torch.no_grad()
def test_rows_of_several_shapes_are_answered_as_each_alone():
    shapes = [(13, 3), (17, 9), (13, 3), (17, 3), (17, 9), (6, 2), (13, 3)]
    exam = exam_of("rmt", "right", batch=2)
    rows = sequences(shapes)
    made, _ = exam.answers(rows)
    for row, (length, _) in enumerate(shapes):
        alone = rows[row : row + 1]
        cropped = Sequences(
            alone.ids_BT[:, :length], alone.length_B, alone.target_BT[:, :length], alone.answer_B
        )
        assert torch.equal(made[row, :length], naive(exam, cropped, "own", False)[0])
        assert (made[row, length:] == IGNORE).all()


@torch.no_grad()
def test_a_row_without_another_of_its_shape_is_not_shuffled():
    exam = exam_of("rmt")
    rows = sequences([(13, 3), (17, 9), (13, 3)])
    assert exam.answers(rows, "shuffled")[1].tolist() == [True, False, True]
    assert len(exam.marks(rows, control="shuffled").share_B) == 2
    assert len(exam.marks(rows).share_B) == 3


@torch.no_grad()
def test_batches_are_never_of_one_row_by_accident():
    exam = exam_of("rmt", batch=2)
    rows = sequences([(13, 7)] * 3)
    # 3 rows at 2 at once: 2 and 1, of which the last would keep its own memory
    sizes: list[int] = []
    segment = exam.policy.segment

    def spied(ids, *rest):
        sizes.append(len(ids))
        return segment(ids, *rest)

    exam.policy.segment = spied
    exam.answers(rows, "shuffled")
    assert min(sizes) > 1


@pytest.mark.parametrize("policy", ["prmt", "armt"])
@torch.no_grad()
def test_whole_segments_in_front_are_read_many_layers_at_once(policy, monkeypatch):
    read, read_at_once = [], Diagonal.read

    def spied(self, ids_BNS, state):
        read.append(tuple(ids_BNS.shape))
        return read_at_once(self, ids_BNS, state)

    monkeypatch.setattr(Diagonal, "read", spied)
    rows = {
        # (length, answer): the segments of 5 that end before the first scored position's logits
        (34, 27): [(3, 5, 5)],
        (34, 25): [(3, 5, 5)],
        (34, 24): [(3, 4, 5)],
        (34, 9): [],
    }
    for shape, expected in rows.items():
        asked = sequences([shape] * 3, seed=shape[1])
        one, many = (exam_of(policy, diagonal=mode) for mode in ("off", "on"))
        for teacher in (False, True):
            made, _ = one.answers(asked, "own", teacher)
            assert not read
            assert torch.equal(many.answers(asked, "own", teacher)[0], made)
            assert read == expected
            read.clear()
    short_head = exam_of(policy, "right", diagonal="on")
    assert torch.equal(
        short_head.answers(asked)[0], exam_of(policy, "right", diagonal="off").answers(asked)[0]
    )
    for control in CONTROLS[1:]:
        assert torch.equal(many.answers(asked, control)[0], one.answers(asked, control)[0])
    assert not read


@torch.no_grad()
def test_auto_reads_at_once_where_its_rule_says_so(monkeypatch):
    read, read_at_once = [], Diagonal.read
    monkeypatch.setattr(Diagonal, "read", lambda *args: read.append(0) or read_at_once(*args))
    exam = exam_of("prmt")  # 11 columns a row: up to 11 rows are at most 128
    for rows, times in ((11, 1), (12, 0)):
        exam.answers(sequences([(34, 27)] * rows))
        assert len(read) == times
        read.clear()


def test_marks_count_tokens_and_whole_answers():
    target = torch.tensor([[*IGNORED, 5, 6, 7], [IGNORE, IGNORE, 5, 6, 7, IGNORE], [*IGNORED, 9, 9, 9]])
    made = torch.tensor([[*IGNORED, 5, 0, 7], [IGNORE, IGNORE, 0, 6, 7, IGNORE], [*IGNORED, 9, 9, 9]])
    found = marked(made, target, None)
    assert found.share_B.tolist() == pytest.approx([2 / 3, 2 / 3, 1])
    assert found.whole_B.tolist() == [False, False, True]
    assert marked(made, target, 1).whole_B.tolist() == [True, True, True]
    assert marked(made, target, 2).whole_B.tolist() == [False, True, True]


def test_a_test_set_is_the_seeds():
    stream = stream_for(TaskSection(name="copy", length=6), 5, 0)
    one, again, other = (examples(stream, 6, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.ids_BT, again.ids_BT)
    assert not torch.equal(one.ids_BT, other.ids_BT)
    assert examples(stream, 4, 8, 0).length_B.tolist() == [12] * 8
