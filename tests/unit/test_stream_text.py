"""Text as a task: windows, documents, readers in order, and the part that is held out."""

from itertools import islice, pairwise

import pytest
import torch
from transformers import AutoTokenizer

from memtoken_cli.data.byte_words import BYTE_WORDS
from memtoken_cli.data.pieces import cut
from memtoken_cli.data.stream_text import Text
from memtoken_cli.data.streams import IGNORE, PAD, Sequences, stream_for, vocabulary
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine import models
from memtoken_cli.engine.bytes_tokenizer import bytes_tokenizer
from memtoken_cli.engine.fresh import word_tokenizer
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt.run import built
from memtoken_cli.methods.rmt.sketch import sketch
from memtoken_cli.recipe.schema import parse

# every three characters in a row say where they are
PLACED = "".join(f"{i:03d} " for i in range(1000))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text_of(path, segment: int = 5, tokenizer=None, **task) -> Text:
    task = {"segments": 4, "validation": 0.1} | task
    return Text(TaskSection(name="text", **task), segment, 0, tokenizer, path)


def written(tmp_path, text: str):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    return path


def windows(batch: Sequences) -> list[str]:
    """Each row with the token behind it, as text; what a row is otherwise is checked."""
    out = []
    for b in range(len(batch)):
        length = int(batch.length_B[b])
        ids, target = batch.ids_BT[b], batch.target_BT[b]
        assert torch.equal(ids[1:length], target[: length - 1])
        assert (ids[length:] == PAD).all()
        assert (target[length:] == IGNORE).all()
        out.append(bytes([int(ids[0]) - 2, *(target[:length] - 2).tolist()]).decode())
    assert (batch.answer_B == 0).all()
    return out


def test_random_windows_of_the_training_part(tmp_path):
    task = text_of(written(tmp_path, PLACED))
    assert (task.size(), task.tokens(3), task.vocabulary) == (4, 15, BYTE_WORDS)
    batch = task.draw(4, 3000, seeded())
    found = windows(batch)
    assert batch.ids_BT.shape == (3000, 20)
    places = {PLACED.index(window) for window in found}
    assert all(len(window) == 21 for window in found)
    assert min(places) < 10
    assert 3600 - 21 - 10 < max(places) <= 3600 - 21, "the last tenth is not for training"
    assert len(places) > 1500
    assert windows(task.draw(1, 2, seeded())) != windows(task.draw(1, 2, seeded(1)))
    assert windows(task.draw(2, 50, seeded(5))) == windows(task.draw(2, 50, seeded(5)))


def test_a_window_ends_at_the_border(tmp_path):
    task = text_of(written(tmp_path, PLACED[:30]), segment=25, segments=1)
    assert set(windows(task.draw(1, 50, seeded()))) == {PLACED[0:26], PLACED[1:27]}


def test_windows_keep_to_documents(tmp_path):
    documents = ["a" * 200, "b" * 100, "", "c" * 6, *"xyz" * 300, "d" * 300]
    task = text_of(written(tmp_path, "\n==\n".join(documents)), document_break="\n==\n", validation=1e-6)
    counts = dict.fromkeys("abcd", 0)
    for window in windows(task.draw(4, 3000, seeded())):
        assert len(set(window)) == 1
        assert len(window) == (6 if window[0] == "c" else 21)
        counts[window[0]] += 1
    shares = {name: count / 3000 for name, count in counts.items()}
    assert shares == pytest.approx({"a": 199 / 602, "b": 99 / 602, "c": 5 / 602, "d": 299 / 602}, abs=0.04)


@pytest.mark.parametrize("mark", [None, "|"])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 1), (2, 2), (4, 3)])
def test_readers_in_order_see_every_token_once(tmp_path, mark, rows, n):
    text = PLACED[:500] + "|" + PLACED[600:607] + "|" + "x" + "||" + PLACED[800:1010]
    task = text_of(written(tmp_path, text), document_break=mark, segments=1)
    border = round(0.9 * len(text.replace("|", "") if mark else text))
    width = 5 * n
    expected = []
    left = border
    for document in text.split("|") if mark else [text]:
        document, left = document[:left], max(left - len(document), 0)
        for start in range(0, len(document) - 1, width):
            expected.append((document[start : start + width + 1], start == 0))
    share = [len(expected) * r // rows for r in range(rows + 1)]
    steps = 2 * max(b - a for a, b in pairwise(share)) + 1
    found = list(islice(task.ordered(rows, n), steps))
    for step, one in enumerate(found):
        for r, window in enumerate(windows(one.sequences)):
            size = share[r + 1] - share[r]
            text_there, first = expected[share[r] + step % size]
            assert window == text_there
            assert bool(one.fresh_B[r]) == (first or step % size == 0)
    resumed = task.ordered(rows, n, start=steps - 2)
    for one, again in zip(found[-2:], resumed, strict=False):
        assert torch.equal(again.sequences.ids_BT, one.sequences.ids_BT)
        assert torch.equal(again.fresh_B, one.fresh_B)


def test_validation_windows_are_even_and_held_out(tmp_path):
    task = text_of(written(tmp_path, PLACED))
    first = task.validation_rows(4, 8)
    places = [PLACED.index(window) for window in windows(first)]
    assert all(len(window) == 21 for window in windows(first))
    free = 400 - 20
    assert places == [3600 + (2 * i + 1) * free // 16 for i in range(8)]
    assert torch.equal(first.ids_BT, task.validation_rows(4, 8).ids_BT)
    assert len(set(windows(task.validation_rows(79, 100)))) == 5, "as many as there are places"
    with pytest.raises(DataError, match="validation part has 400 tokens, and 80 segments of 5 take 401"):
        task.validation_rows(80, 1)


def test_validation_windows_keep_to_documents(tmp_path):
    text = "a" * 1000 + "|" + "b" * 30 + "|" + "c" * 10 + "|" + "d" * 60
    task = text_of(written(tmp_path, text), document_break="|")
    found = windows(task.validation_rows(4, 100))
    assert [len(window) for window in found] == [21] * 50
    assert sorted(found) == found
    assert [w[0] for w in found] == ["b"] * 10 + ["d"] * 40


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name, text in (("b.txt", "2" * 40), ("a/z.py", "1" * 40), (".git/config", "9" * 40), ("c", "3" * 40)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    joined = text_of(tmp_path, validation=0.01)
    assert bytes((joined.training.ids_K - 2).astype("uint8")).decode() == "1" * 40 + "2" * 40 + "3" * 40
    assert len(joined.training.start_D) == 1
    parted = text_of(tmp_path, validation=0.01, document_break="|")
    assert (parted.training.stop_D - parted.training.start_D).tolist() == [40, 40, 39]
    assert len(parted.validation) == 1


def test_ids_are_those_of_pieces(tmp_path):
    text = ("Some words and 12 numbers, " * 70 + "\n\n  indented\ttext " * 30) * 3
    path = written(tmp_path, text)
    toy = AutoTokenizer.from_pretrained(models.starter("tokmem-toy"))
    task = stream_for(TaskSection(name="text", segments=2), 4, 0, toy, path)
    expected = [i for piece in cut([text]) for i in toy(piece, add_special_tokens=False).input_ids]
    assert [*task.training.ids_K, *task.validation.ids_K][: len(expected)] == expected
    assert task.vocabulary == ()
    as_bytes = text_of(path, tokenizer=bytes_tokenizer(BYTE_WORDS))
    assert (as_bytes.training.ids_K == text_of(path).training.ids_K).all()


def test_the_vocabulary_is_the_most_frequent_words_of_the_training_part(tmp_path):
    text = " b <unk> a a\n\nc b a c d <s> " + "z " * 9
    task = text_of(written(tmp_path, text), segment=2, segments=1, validation=0.45, words=3)
    assert len(task.validation) == 9
    assert task.vocabulary == vocabulary("a", "b", "c"), "b and c are as frequent; d is one too many"
    words = [task.vocabulary[i] for i in task.training.ids_K]
    assert " ".join(words) == "b <unk> a a c b a c <unk> <s>" + " <unk>" * 9
    assert task.training.ids_K is task.validation.ids_K
    few = text_of(written(tmp_path, text), segment=2, segments=1, validation=0.45, words=99)
    assert few.vocabulary == vocabulary("a", "b", "c", "d"), "what only the validation part has is not known"


@pytest.mark.parametrize("mark", [None, "|"])
@pytest.mark.parametrize("words", [3, 40, 1000])
def test_ids_of_words_are_those_of_the_models_tokenizer(tmp_path, words, mark):
    odd = "a\x1cb x<unk>y <unk>, <pad> </s>\x85e\u3000f\xa0g\u200bh\u2029i\tj\r\nk\x0cl . | "
    lines = (f"{i % 7} {'xyz'[i % 3]} {odd * (i % 20 == 0)} w{i}\n" for i in range(400))
    path = written(tmp_path, "".join(lines))
    task = text_of(path, document_break=mark, words=words)
    tokenizer = word_tokenizer(task.vocabulary)
    again = text_of(path, tokenizer=tokenizer, document_break=mark, words=words)
    assert again.vocabulary == ()
    for own, other in ((task.training, again.training), (task.validation, again.validation)):
        assert own.ids_K.dtype == other.ids_K.dtype
        for one, two in zip(vars(own).values(), vars(other).values(), strict=True):
            assert one.tolist() == two.tolist()
    if mark is None:
        whole = tokenizer(path.read_bytes().decode(), split_special_tokens=True).input_ids
        assert whole[0] == task.vocabulary.index("<s>")
        assert task.training.ids_K.tolist() == whole[1:]


RECIPE = b"""
method: rmt
model: {new: llama, layers: 1, width: 32, heads: 4, context: 64}
task: {name: text, segments: 2, words: 50}
rmt: {slots: 2, segment: 8}
"""


def test_a_new_model_has_the_words(tmp_path):
    path = written(tmp_path, "".join(f"w{i % 60} " for i in range(1000)))
    bench = built(parse(RECIPE, overrides=[f"data.path={path}"]), "cpu")
    words = bench.stream.vocabulary
    assert len(words) == 54
    assert bench.backbone.tokenizer.convert_ids_to_tokens(list(range(54))) == list(words)
    assert bench.backbone.tokenizer("w1 no").input_ids == [words.index(w) for w in ("<s>", "w1", "<unk>")]
    assert bench.backbone.dims.vocab == 54


def test_a_dry_run_without_a_text_counts_all_words():
    few, more = (sketch(parse(RECIPE, overrides=[f"task.words={n}"]))["parameters"] for n in (50, 51))
    assert more["backbone"] - few["backbone"] == 32


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="needs a text"):
        text_of(None)
    with pytest.raises(DataError, match="no such file"):
        text_of(tmp_path / "none")
    with pytest.raises(DataError, match="no file in"):
        text_of(tmp_path)
    (tmp_path / "bad").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 3 of"):
        text_of(tmp_path)
    (tmp_path / "bad").write_bytes(b"")
    with pytest.raises(DataError, match="training part has 0 tokens"):
        text_of(tmp_path)
    task = text_of(written(tmp_path, PLACED[:40]), segment=7)
    with pytest.raises(DataError, match="has 36 tokens, and 6 segments of 7 take 43") as found:
        task.draw(6, 1, seeded())
    assert "fewer segments" in found.value.hint
    with pytest.raises(DataError, match="5 windows of 7 tokens for 6 readers"):
        next(task.ordered(6))
    with pytest.raises(UsageError, match="at least 1"):
        task.draw(0, 1, seeded())
