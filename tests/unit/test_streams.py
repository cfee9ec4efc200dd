"""The tasks made from a seed: what a draw looks like, and every answer found again by a naive reader."""

import hashlib
from collections import Counter

import pytest
import torch

from memtoken_cli.data.streams import IGNORE, PAD, distinct, stream_for
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine.seeds import generator
from memtoken_cli.io.errors import UsageError

CASES = {
    "copy": ({"name": "copy"}, 12, 24),
    "reverse": ({"name": "reverse", "length": 9, "symbols": 3}, 12, 9),
    "retrieval": ({"name": "retrieval"}, 2, 4),
    "remember": ({"name": "remember", "key_size": 2, "value_size": 3, "symbols": 4, "pairs": 16}, 7, 16),
    "rewrite": ({"name": "rewrite", "symbols": 5, "pairs": 12}, 4, 12),
    "recall": ({"name": "recall"}, 8, 6),
    "quadratic": ({"name": "quadratic"}, 30, 1),
}
GOLDEN = {
    "copy": "139effd6c9fb7148",
    "reverse": "4618a723623c6862",
    "retrieval": "8d2befa33280dbd3",
    "remember": "93f4afc48cb7dc71",
    "rewrite": "b719fa27ab85e0bc",
    "recall": "9c4bf07877fd736a",
    "quadratic": "3a826569bff14774",
}


def stream(name):
    keys, segment, _ = CASES[name]
    return stream_for(TaskSection(**keys), segment, seed=0)


def drawn(name, n=None, rows=16, seed=0):
    return stream(name).draw(CASES[name][2] if n is None else n, rows, generator(seed, "data"))


def words(name, ids):
    vocabulary = stream(name).vocabulary
    return [vocabulary[i] for i in ids.tolist()]


def said(name, batch):
    """Each row's words, and the words of its scored targets."""
    for row in range(len(batch)):
        target = batch.target_BT[row]
        yield words(name, batch.ids_BT[row, : batch.length_B[row]]), words(name, target[target != IGNORE])


def digest(batch):
    tensors = (batch.ids_BT, batch.length_B, batch.target_BT, batch.answer_B)
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()[:16]


@pytest.mark.parametrize("name", CASES)
def test_a_seed_is_a_data_set(name):
    torch.manual_seed(1)
    assert digest(drawn(name)) == GOLDEN[name]
    assert digest(drawn(name, seed=1)) != GOLDEN[name]


@pytest.mark.parametrize("name", CASES)
def test_every_draw_keeps_the_contract(name):
    task, size = stream(name), CASES[name][2]
    assert task.size() == size
    assert task.vocabulary[:2] == ("<pad>", "<s>") and task.vocabulary[-2:] == ("</s>", "<unk>")
    assert len(set(task.vocabulary)) == len(task.vocabulary)
    for n in {1, size, 2 * size if name in ("copy", "reverse", "recall") else size}:
        batch = drawn(name, n, rows=40)
        ids, target = batch.ids_BT, batch.target_BT
        assert ids.shape == target.shape == (40, task.tokens(n)) and len(batch) == 40
        assert {t.dtype for t in (ids, target, batch.length_B, batch.answer_B)} == {torch.int64}
        assert batch.length_B.max() == task.tokens(n)
        place = torch.arange(task.tokens(n))
        real = place < batch.length_B[:, None]
        assert ((ids != PAD) == real).all() and ids.max() < len(task.vocabulary) - 2
        scored = target != IGNORE
        assert (scored <= real).all() and (target[scored] > 1).all()
        runs = scored.int().diff(dim=1).clamp(min=0).sum(1) + scored[:, 0]
        assert (runs == 1).all() and (scored.int().argmax(1) == batch.answer_B).all()
        # what is to be predicted is what comes next, wherever something does
        inside = scored[:, :-1] & real[:, 1:]
        assert (target[:, :-1][inside] == ids[:, 1:][inside]).all()


@pytest.mark.parametrize("name", CASES)
def test_rows_can_be_sliced(name):
    batch = drawn(name)
    part, picked = batch[2:5], batch[torch.tensor([7, 3])]
    assert len(part) == 3 and len(picked) == 2
    for field in ("ids_BT", "length_B", "target_BT", "answer_B"):
        assert (getattr(part, field) == getattr(batch, field)[2:5]).all()
        assert (getattr(picked, field)[1] == getattr(batch, field)[3]).all()


@pytest.mark.parametrize("n", [1, 5, 24, 40])
def test_copy_says_it_twice(n):
    for row, answer in said("copy", drawn("copy", n)):
        assert row[n] == "<s>" and answer == row[:n] * 2
        assert row[n + 1 :] == answer[:-1]


@pytest.mark.parametrize("n", [1, 5, 9])
def test_reverse_says_it_backwards(n):
    for row, answer in said("reverse", drawn("reverse", n)):
        assert row[n] == "<s>" and answer == row[:n][::-1]


def test_symbols_are_uniform():
    batch = drawn("copy", rows=500)
    counts = Counter(words("copy", batch.ids_BT[:, :24].flatten()))
    assert set(counts) == {str(i) for i in range(10)}
    assert all(count == pytest.approx(1200, rel=0.12) for count in counts.values())


def test_retrieval_by_a_naive_reader():
    asked = Counter()
    for row, answer in said("retrieval", drawn("retrieval", rows=300)):
        known = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(known) == 4 and all(key.isalpha() and value.isdigit() for key, value in known.items())
        assert row[9] == ":" and answer == [known[row[8]]]
        asked[row[0:8:2].index(row[8])] += 1
    assert sorted(asked) == [0, 1, 2, 3] and min(asked.values()) > 50


def pairs(row, segment, key_size):
    """A stream of `remember` as [(key, mark, value)], the question last."""
    parts = [row[i : i + segment] for i in range(0, len(row), segment)]
    assert all(part[-1] == "." for part in parts)
    return [(tuple(p[:key_size]), p[key_size], tuple(p[key_size + 1 : -1])) for p in parts]


def test_remember_by_a_naive_reader():
    seen = set()
    for row, answer in said("remember", drawn("remember", rows=50)):
        *facts, (asked, mark, value) = pairs(row, 7, 2)
        known = {key: value for key, _, value in facts}
        assert len(known) == len(facts) == 16 and {m for _, m, _ in facts} == {"="} and mark == "?"
        assert tuple(answer) == value == known[asked]
        seen |= {asked}
    assert len(seen) > 10  # of 16


def test_rewrite_asks_for_the_latest_value():
    rewritten = 0
    for row, answer in said("rewrite", drawn("rewrite", rows=100)):
        *facts, (asked, mark, value) = pairs(row, 4, 1)
        known = {}
        for key, _, now in facts:
            known[key] = now
        assert mark == "?" and tuple(answer) == value == known[asked]
        rewritten += len({now for key, _, now in facts if key == asked}) > 1
    assert rewritten > 50


@pytest.mark.parametrize("n", [1, 2, 6, 30])
def test_recall_by_a_naive_reader(n):
    segments, places = Counter(), Counter()
    for row, answer in said("recall", drawn("recall", n, rows=300)):
        assert len(row) == 8 * n and row[-2] == "ask"
        known = {}
        body = row[:-2]
        at = 0
        while at < len(body):
            if body[at].startswith("noise"):
                at += 1
                continue
            assert body[at].startswith("key") and body[at + 1].startswith("value")
            assert at // 8 == (at + 1) // 8  # both in one segment
            known[body[at]] = body[at + 1]
            segments[at // 8] += 1
            places[at % 8] += 1
            at += 2
        assert len(known) == 2 and answer == [known[row[-1]]]
    assert set(segments) == set(range(n))
    assert set(places) == set(range(7 if n > 1 else 5))


def test_recall_asks_for_any_fact_wherever_it_stands():
    early = 0
    for row, _ in said("recall", drawn("recall", rows=400)):
        keys = [word for word in row[:-2] if word.startswith("key")]
        early += row[-1] == keys[0]
    assert 150 < early < 250


def test_distinct_is_uniform_over_arrangements():
    got = Counter(map(tuple, distinct(12000, 2, 4, generator(0, "d")).tolist()))
    assert len(got) == 12 and all(a != b for a, b in got)
    assert all(count == pytest.approx(1000, rel=0.12) for count in got.values())
    whole = distinct(50, 9, 9, generator(0, "d"))
    assert (whole.sort(1).values == torch.arange(9)).all() and len(set(map(tuple, whole.tolist()))) == 50


def test_what_does_not_fit_the_segment():
    with pytest.raises(UsageError) as caught:
        stream_for(TaskSection(name="remember", key_size=3), 8, 0)
    assert caught.value.hint == "rmt.segment=6"
    with pytest.raises(UsageError) as caught:
        stream_for(TaskSection(name="recall", count=3), 9, 0)
    assert "rmt.segment=10" in caught.value.hint
    tight = stream_for(TaskSection(name="recall", count=3), 10, 0)
    batch = tight.draw(1, 2000, generator(0, "data"))
    assert ((batch.ids_BT >= 2) & (batch.ids_BT < 6)).sum(1).eq(4).all()  # three facts and the question


@pytest.mark.parametrize("name", CASES)
def test_an_empty_stream_is_refused(name):
    with pytest.raises(UsageError, match="a stream of 0"):
        drawn(name, 0)


def test_sizes_beyond_a_pool_are_refused():
    with pytest.raises(UsageError, match="no 27 distinct letters"):
        drawn("retrieval", 27)
    with pytest.raises(UsageError, match="no distinct keys among 16"):
        drawn("remember", 17)
    assert len(drawn("rewrite", 100)) == 16  # its keys may repeat
