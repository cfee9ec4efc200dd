"""Nats of held-out text by segment, against rows read one by one."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from memtoken_cli.data.stream_text import Text
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine.bytes_tokenizer import bytes_tokenizer
from memtoken_cli.engine.fresh import new_backbone
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.rmt import text_exam
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.controls import CONTROLS
from memtoken_cli.methods.rmt.diagonal import Diagonal
from memtoken_cli.methods.rmt.exam import Exam
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.recipe.sections import NewModel

S, N, LOGITS = 6, 3, text_exam.LOGITS
SIZE = NewModel(new="llama", layers=2, width=32, heads=4, context=64, tie=False)
TEXT = "".join(f"line {i}: añ{'xyz'[i % 3]}\n" for i in range(400))


@pytest.fixture
def stream(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return Text(TaskSection(name="text", segments=N, validation=0.2), S, 0, None, path)


@pytest.fixture
def exam(stream):
    backbone = new_backbone(SIZE, stream.vocabulary, 0, tokenizer=bytes_tokenizer(stream.vocabulary))
    config = Config(policy="rmt", slots=2, segment=S, mask="blocks", state_norm="final")
    return Exam.of(backbone, policy_for(backbone, config, 0), config, 4), backbone


@torch.no_grad()
@pytest.mark.parametrize("control", CONTROLS)
def test_nats_are_those_of_each_row_alone(stream, exam, control):
    exam, _ = exam
    rows = stream.validation_rows(N + 1, 3)
    found = text_exam.nats(exam, rows, control)
    assert found.shape == (3, N + 1)
    states = [exam.policy.start(1) for _ in range(3)]
    for t in range(N + 1):
        if t and control == "none":
            states = [exam.policy.start(1) for _ in range(3)]
        if t and control == "shuffled":
            states = [states[-1], *states[:-1]]
        for row in range(3):
            ids, target = (x[row : row + 1, t * S : (t + 1) * S] for x in (rows.ids_BT, rows.target_BT))
            logits, states[row] = exam.policy.segment(ids, torch.tensor([S]), states[row], torch.arange(S))
            expected = cross_entropy(logits[0].double(), target[0])
            assert float(found[row, t]) == pytest.approx(float(expected), rel=1e-4)


def test_batches_change_nothing(stream, exam):
    exam, _ = exam
    rows = stream.validation_rows(N, 7)
    whole = Exam(exam.policy, exam.config, exam.device, exam.vocabulary, 100)
    assert torch.allclose(text_exam.nats(exam, rows), text_exam.nats(whole, rows), atol=1e-5)


@pytest.mark.parametrize("held", [text_exam.LOGITS, 3 * 3 * S * 261])
@pytest.mark.parametrize("policy", ["prmt", "armt"])
@torch.no_grad()
def test_many_layers_at_once_change_nothing(stream, policy, held, monkeypatch):
    backbone = new_backbone(SIZE, stream.vocabulary, 0, tokenizer=bytes_tokenizer(stream.vocabulary))
    rows, found = stream.validation_rows(7, 3), []
    calls, logits = [], Diagonal.logits
    monkeypatch.setattr(Diagonal, "logits", lambda *args: calls.append(args[1].shape[1]) or logits(*args))
    monkeypatch.setattr(text_exam, "LOGITS", held)
    for mode in ("off", "on"):
        config = Config(policy=policy, slots=2, segment=S, d_mem=4, diagonal=mode)
        made = policy_for(backbone, config, 0)
        for name, p in made.parameters().items():
            if name.endswith(".v"):
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        found.append(text_exam.nats(Exam.of(backbone, made, config, 4), rows))
        assert (sum(calls) > 0) == (mode == "on")
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    blocks = calls[1:]  # the first compares
    assert blocks == ([7] if held == LOGITS else [3, 3, 1])
    text_exam.nats(Exam.of(backbone, made, config, 4), rows, "none")
    assert calls[1:] == blocks


def test_windows_are_as_long_as_the_text_allows(stream):
    assert text_exam.windows(stream, 2 * N, 5).ids_BT.shape == (5, 2 * N * S)
    longest = (stream.validation.longest() - 1) // S
    assert text_exam.windows(stream, 10_000, 5).ids_BT.shape[1] == longest * S


def test_a_text_too_short_for_one_segment_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a few words that are enough to train on, and nothing more")
    stream = Text(TaskSection(name="text", segments=2, validation=0.05), S, 0, None, path)
    with pytest.raises(DataError):
        text_exam.windows(stream, 4, 5)


def test_bytes_and_characters_a_token(stream, exam):
    _, backbone = exam
    rows = stream.validation_rows(N, 40)
    found = text_exam.spelled(rows, backbone)
    assert found.bytes == 1.0
    # each line has one character of two bytes; characters that an edge cuts count a little more
    share = len(TEXT) / len(TEXT.encode())
    assert found.characters == pytest.approx(share, abs=0.02)


def test_bits_and_perplexity():
    nats = {"own": torch.tensor([[math.log(2)], [3 * math.log(2)]]), "none": torch.tensor([[4.0], [4.0]])}
    (row,) = text_exam.table(nats, text_exam.Spelled(bytes=4.0, characters=2.0))
    assert row["nats"] == pytest.approx(2 * math.log(2))
    assert row["bits_per_byte"] == pytest.approx(0.5)
    assert row["bits_per_character"] == pytest.approx(1.0)
    assert row["perplexity"] == pytest.approx(4.0)
    assert row["no_memory"] == pytest.approx(4 / math.log(2) / 4)
    assert "shuffled" not in row


def test_summary_parts_first_trained_and_beyond():
    own = torch.tensor([[4.0, 1.0, 3.0, 2.0, 6.0]] * 2) * math.log(2)
    other = own + torch.tensor([0.0, 1.0, 1.0, 9.0, 9.0]) * math.log(2)
    found = text_exam.summary({"own": own, "shuffled": other}, text_exam.Spelled(1.0, 1.0), 3)
    assert (found["first"], found["bits_per_byte"], found["beyond"]) == pytest.approx((4, 2, 4))
    assert found["shuffled_loses"] == pytest.approx(1)
    assert found["shuffled_loses_low"] == pytest.approx(1)
    assert "no_memory_loses" not in found
    # a text too short for more than it was trained on says nothing of beyond
    assert "beyond" not in text_exam.summary({"own": own[:, :3]}, text_exam.Spelled(1.0, 1.0), 3)
