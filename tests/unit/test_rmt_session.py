"""Sessions: however tokens arrive, in whatever company, saved at any place, a row reads the same."""

import gc
import hashlib

import pytest
import tiny_rmt
import torch
from rmt_sessions import LAYOUTS, SIZE, naive, policy, session, text
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2

from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods import rmt
from memtoken_cli.methods.rmt import session_file
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.head import heard, logits_of
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.sampling import sampling
from memtoken_cli.methods.rmt.session import Session

CHUNKS = (1, 2, 3, 7, SIZE - 1, SIZE, SIZE + 1, "random")
KINDS = ("rmt", "prmt", "armt", "xl", "window", "full", "none")


def chunks(ids_BT, size):
    """Parts of a text: of equal size, or of random ones with empty ones among them."""
    if size != "random":
        return ids_BT.split(size, 1)
    noise = torch.Generator().manual_seed(7)
    sizes, T = [], ids_BT.shape[1]
    while sum(sizes) < T:
        sizes.append(min(int(torch.randint(0, 2 * SIZE, (), generator=noise)), T - sum(sizes)))
    return ids_BT.split(sizes, 1)


def close(found, expected, at_most=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=at_most, rtol=at_most)


def equal(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("model", "kind"), LAYOUTS)
def test_chunks_do_not_matter(model, kind):
    of = session(model, kind, rows=2)
    for T in (3 * SIZE - 2, 3 * SIZE):
        ids_BT = text(T, rows=2)
        logits, state = naive(of.policy, ids_BT)
        for size in CHUNKS:
            reading = of.fork()
            for part in chunks(ids_BT, size):
                if reading.read[0].tokens or part.shape[1]:
                    found = reading.feed(part)
            close([found], [logits])
            close(reading.state, state)
            assert reading.n_B.tolist() == [T % SIZE] * 2


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["rmt", "prmt", "armt", "window"])
@pytest.mark.parametrize("config", [{}, {"diagonal": "on"}], ids=["", "diagonal"])
def test_absorbing_is_the_same_to_the_bit(model, kind, config):
    of = session(model, kind, rows=2, **config)
    for T in (5 * SIZE - 2, 5 * SIZE):
        ids_BT = text(T, rows=2)
        whole = of.fork()
        whole.absorb(ids_BT)
        expected = whole.state, whole.fork().logits()
        for size in CHUNKS:
            reading = of.fork()
            for part in chunks(ids_BT, size):
                reading.absorb(part)
            equal(reading.state, expected[0])
            assert torch.equal(reading.logits(), expected[1])
            assert reading.read[1].digest == whole.read[1].digest
        logits, state = naive(of.policy, ids_BT)
        close([expected[1]], [logits])
        close(expected[0], state)


class Spy:
    """A policy that counts its boundaries and what its caches were fed."""

    def __init__(self, inner):
        self.inner, self.size, self.boundaries, self.fed = inner, inner.size, [], 0
        self.start, self.open = inner.start, inner.open

    def segment(self, ids_BW, count_B, state, wanted_K):
        assert ids_BW.shape[1] == self.size
        self.boundaries.append("whole")
        return self.inner.segment(ids_BW, count_B, state, wanted_K)

    def feed(self, at, ids_BU, wanted=True):
        self.fed += ids_BU.shape[1]
        return self.inner.feed(at, ids_BU, wanted)

    def close(self, at):
        assert at.count == self.size
        self.boundaries.append("closed")
        return self.inner.close(at)


@pytest.mark.parametrize("T", [k * SIZE + d for k in (1, 2, 4) for d in (-1, 0, 1)])
def test_memory_changes_at_the_boundary_and_nowhere_else(T):
    backbone, made = policy()
    for size in (1, 3, SIZE, T):
        spy = Spy(made)
        reading = Session.of(backbone, spy)
        for part in text(T).split(size, 1):
            before = [x.clone() for x in reading.state]
            count = len(spy.boundaries)
            reading.feed(part)
            assert 0 <= int(reading.n_B) < SIZE
            if len(spy.boundaries) == count:
                equal(reading.state, before)
            else:
                assert not torch.equal(reading.state[0], before[0])
        assert len(spy.boundaries) == T // SIZE == reading.read[0].segments
        assert reading.read[0].tokens == T


def test_absorbing_computes_whole_segments_only():
    backbone, made = policy()
    spy = Spy(made)
    reading = Session.of(backbone, spy)
    for part in text(3 * SIZE + 5).split(3, 1):
        reading.absorb(part)
    assert spy.boundaries == ["whole"] * 3 and spy.fed == 0
    reading.logits()
    assert spy.fed == 5


def test_feeding_computes_a_token_once():
    backbone, made = policy()
    spy = Spy(made)
    reading = Session.of(backbone, spy)
    for part in text(2 * SIZE + 5).split(1, 1):
        reading.feed(part)
    assert spy.boundaries == ["closed"] * 2 and spy.fed == 2 * SIZE + 5


def test_nothing_of_the_size_of_the_text_is_left():
    reading, T = session(), 1501
    reading.history = 16
    how = sampling({"max_new_tokens": 40, "top_k": 3, "eos_token_id": 63, "history": 16}, reading.backbone)
    gc.collect()
    before = {id(x) for x in gc.get_objects() if type(x) is torch.Tensor}

    def left():
        gc.collect()
        found = [x for x in gc.get_objects() if type(x) is torch.Tensor and id(x) not in before]
        assert found
        return max(x.untyped_storage().nbytes() for x in found), max(max(x.shape, default=0) for x in found)

    for read in (reading.feed, reading.absorb, lambda _: list(reading.write(how))):
        read(text(T))
        held, longest = left()
        assert held < 8 * T and longest < T


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_places_read_as_they_would_alone(kind):
    of = session("llama", kind)
    alone = [of.fork() for _ in range(4)]
    starts = (3, SIZE + 5, 3, 2 * SIZE)
    for row, (one, length) in enumerate(zip(alone, starts, strict=True)):
        one.feed(text(length, seed=row))
    together = Session.stack([one.fork() for one in alone])
    assert together.n_B.tolist() == [3, 5, 3, 0]
    for step in (2, 1, SIZE, 3):
        ids_BT = text(step, rows=4, seed=step)
        found = together.feed(ids_BT)
        close([found], [torch.cat([one.feed(ids_BT[row : row + 1]) for row, one in enumerate(alone)])])
    for row, one in enumerate(alone):
        close(together.select([row]).state, one.state)
        mine = together.read[row]
        assert (mine.tokens, mine.segments, mine.digest) == (
            one.read[0].tokens,
            one.read[0].segments,
            one.read[0].digest,
        )
        assert torch.equal(mine.newest_T, one.read[0].newest_T)
    assert together.pending == tuple(one.pending[0] for one in alone)


@pytest.mark.parametrize("kind", KINDS)
def test_select_and_fork_move_everything(kind):
    of = session("llama", kind, rows=3)
    of.feed(text(SIZE + 3, rows=3))
    of.push(text(3, seed=9), [1])
    before = of.fork()
    picked = of.select([2, 1, 1, 0])
    assert picked.pending == tuple(of.pending[row] for row in (2, 1, 1, 0))
    ids_BT = text(SIZE, rows=4, seed=3)
    ids_BT[2] = ids_BT[1]
    found = picked.feed(ids_BT)
    close([found[1]], [found[2]], 1e-6)
    close([of.logits()], [before.logits()], 0)  # the first has not moved
    equal(of.state, before.state)
    close([of.feed(ids_BT[[3, 1, 0]])], [found[[3, 1, 0]]])
    close(of.state, picked.select([3, 1, 0]).state)


def test_rows_can_be_fed_apart():
    of = session(rows=3)
    of.feed(text(4, rows=3))
    one = of.select([1])
    expected = of.logits([2, 0])
    more = text(SIZE, seed=5)
    of.push(more, [1])
    close([of.logits([1])], [one.feed(more)])
    close([of.logits([2, 0])], [expected], 0)
    assert of.n_B.tolist() == [4, 4, 4] and [row.segments for row in of.read] == [0, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", range(SIZE))
def test_a_restored_session_goes_on_as_the_live_one_to_the_bit(kind, n):
    live = session("llama", kind)
    for part in text(2 * SIZE + n).split(5, 1):
        live.feed(part)
    never = live.fork()
    kept = live.snapshot()
    back = Session.restored(live.backbone, live.policy, kept)
    assert kept.pending == live.pending and len(kept.pending[0]) == n
    expected = never.logits()
    found = live.logits()
    assert torch.equal(back.logits(), found)
    close([found], [expected])
    how = sampling({"max_new_tokens": SIZE + 3, "temperature": 0.9, "eos_token_id": 63}, live.backbone)
    made = [torch.cat(list(s.write(how)), 1).tolist() for s in (live, back, never)]
    assert made[0] == made[1] == made[2]
    equal(back.state, live.state)
    close(never.state, live.state)
    assert back.read[0].digest == live.read[0].digest == never.read[0].digest
    assert torch.equal(live.draws.state(), back.draws.state())


def test_rows_are_restored_together():
    of = session("llama", "full", rows=3)
    of.feed(text(2 * SIZE, rows=3))
    of.push(text(SIZE, rows=1, seed=4), [1])
    of.push(text(2, rows=1, seed=5), [2])
    back = Session.restored(of.backbone, of.policy, of.snapshot())
    ids_BT = text(SIZE + 1, rows=3, seed=6)
    assert torch.equal(of.logits(), back.logits())
    assert torch.equal(of.feed(ids_BT), back.feed(ids_BT))


def test_the_digest_is_of_whole_segments():
    reading = session()
    ids_1T = text(2 * SIZE + 3)
    reading.feed(ids_1T)
    chain = bytes(32)
    for ids_S in ids_1T[0, : 2 * SIZE].split(SIZE):
        chain = hashlib.sha256(chain + b"".join(i.to_bytes(4, "little") for i in ids_S.tolist())).digest()
    assert reading.read[0].digest == chain


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_qwen2, tiny_gemma3])
def test_a_stored_vector_gives_the_logits(make):
    backbone = make()
    with torch.no_grad(), heard(backbone) as found:
        logits = backbone.model(text(5, rows=2)).logits
    assert len(found) == 1
    torch.testing.assert_close(logits_of(backbone, found[0][:, -1]), logits[:, -1], atol=1e-6, rtol=1e-6)
    with torch.no_grad():  # the hooks are gone
        assert torch.equal(backbone.model(text(5, rows=2)).logits, logits)
    assert len(found) == 1


def test_what_cannot_be_read_is_refused_and_leaves_the_session_alone():
    reading = session(rows=2)
    with pytest.raises(UsageError, match="nothing has been read"):
        reading.logits()
    with pytest.raises(UsageError, match="one line for each of 2 rows"):
        reading.feed(text(3))
    with pytest.raises(DataError, match="from 0 to 63"):
        reading.feed(torch.full((2, 3), 64))
    assert [row.tokens for row in reading.read] == [0, 0]
    with pytest.raises(UsageError, match="cannot be stacked"):
        Session.stack([reading, session()])


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["rmt", "static", "prmt"])
@pytest.mark.parametrize("positions", ["pinned", "offset:9"])
def test_the_memory_by_itself_is_what_the_session_reads(model, kind, positions):
    """Law 4: the backbone alone, with the memory attached, goes on as the session does."""
    of = session(model, kind, positions=positions)
    of.feed(text(2 * SIZE))
    more = text(SIZE - 1, seed=3)
    with torch.no_grad(), of.backbone.attached(of.memory) as stock:
        logits = stock(more).logits[:, -1]
    torch.testing.assert_close(of.feed(more), logits, atol=1e-5, rtol=1e-5)


def test_a_memory_that_is_no_keys_and_values_is_refused():
    for kind in ("armt", "none", "window"):
        with pytest.raises(UsageError, match="not keys and values"):
            _ = session("llama", kind).memory
    with pytest.raises(UsageError, match="one row"):
        _ = session(rows=2).memory


def test_what_fails_half_way_is_not_read():
    """Full attention ends at the model's context; the session stays where it was before that push."""
    backbone = tiny_llama(context=40)
    made = policy_for(backbone, Config.model_validate({"policy": "full", "segment": SIZE, "slots": 0}), 0)
    of = Session.of(backbone, made, 2)
    of.feed(text(SIZE + 3, rows=2))
    of.push(text(1), [1])
    before = of.fork()
    with pytest.raises(DataError):
        of.feed(text(6 * SIZE, rows=2))
    assert of.read == before.read and of.pending == before.pending
    equal(of.state, before.state)
    more = text(SIZE, rows=2, seed=1)
    close([of.feed(more)], [before.feed(more)])


def test_a_file_opened_goes_on(tmp_path):
    live = Session.open(str(tiny_rmt.artifact(tmp_path)))
    live.feed_text("abcdefgh ij")
    path = str(tmp_path / "day.safetensors")
    live.save(path)
    back = Session.open(path)
    assert back.read[0].tokens == live.read[0].tokens > 8 and torch.equal(back.logits(), live.logits())
    assert "".join(back.generate(20, top_k=9)) == "".join(live.generate(20, top_k=9))
    session_file.save(live, path, "and text that is not cut yet")
    whole = Session.open(path)
    assert whole.read[0].tokens == live.read[0].tokens + len("and text that is not cut yet")
    close([whole.logits()], [live.feed_text("and text that is not cut yet")])


def test_the_front_door_is_opened_when_it_is_asked_for():
    assert rmt.Session is Session
    with pytest.raises(AttributeError):
        _ = rmt.Nothing
