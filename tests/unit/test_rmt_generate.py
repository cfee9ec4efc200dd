"""Writing: every way of choosing tokens is stock `generate`'s, within a segment and across its end."""

import pytest
import torch
from rmt_sessions import LAYOUTS, SIZE, naive, policy, session, text
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.hf import SessionCache, SessionConfig, SessionModel
from memtoken_cli.methods.rmt.sampling import sampling
from memtoken_cli.methods.rmt.session import Session
from memtoken_cli.methods.rmt.writing import ENDED

NEW = 2 * SIZE + 3
WAYS = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7, "temperature": 1.3},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.6},
    "top_h": {"top_h": 0.9},
    "eta": {"eta_cutoff": 0.01},
    "repetition": {"repetition_penalty": 1.6},
    "ngrams": {"no_repeat_ngram_size": 2},
    "bans": {"bad_words_ids": [[7], [9, 9]], "suppress_tokens": [11], "begin_suppress_tokens": [6]},
    "bias": {"sequence_bias": [[[12], 2.0], [[12, 13], 4.0]]},
    "lengths": {"min_new_tokens": 9, "exponential_decay_length_penalty": (10, 1.3)},
    "forced": {"forced_eos_token_id": 5},
    "beams": {"num_beams": 3},
    "beams_scored": {
        "num_beams": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
        "repetition_penalty": 1.3,
    },
    "beams_drawn": {"num_beams": 3, "do_sample": True, "top_k": 8},
}


class Naive(PreTrainedModel, GenerationMixin):
    """A model that reads all of its ids anew for each token: no cache, no session."""

    config_class = SessionConfig

    def __init__(self, read, vocab):
        super().__init__(SessionConfig(vocab_size=vocab))
        self.read = read
        self.generation_config = GenerationConfig()

    device = torch.device("cpu")

    def prepare_inputs_for_generation(self, input_ids, use_cache=None, **_):
        return {"input_ids": input_ids}

    def forward(self, input_ids, return_dict=True):
        return CausalLMOutputWithPast(logits=self.read(input_ids)[:, None])


def stock(model, ids_BT, how, seed=3, **named):
    """New ids [B,K] of stock `generate`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GenerationConfig(**how.said, max_new_tokens=how.max_new_tokens)
        return model.generate(ids_BT, generation_config=config, **named)[:, ids_BT.shape[1] :].tolist()


def naively(of, ids_BT, how):
    model = Naive(lambda ids: naive(of.policy, ids)[0], of.backbone.dims.vocab)
    return stock(model, ids_BT, how, use_cache=False)


def written(of, how, seed=3):
    of.draws.generator.manual_seed(seed)
    return torch.cat(list(of.write(how)), 1).tolist()


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
def test_in_one_segment_without_memory_it_is_the_backbone(model, way):
    """Law 1 of writing: the session's own loop and stock `generate` over it choose the backbone's tokens."""
    for kind, slots in (("none", 0), ("rmt", 0)):
        of = session(model, kind, slots=slots, segment=64)
        how = sampling({"max_new_tokens": NEW} | WAYS[way], of.backbone)
        ids_1T = text(7)
        of.backbone.model.generation_config = GenerationConfig()
        expected = stock(of.backbone.model, ids_1T, how)
        other = SessionCache(of.select([0] * how.beams))
        assert stock(SessionModel(of.backbone), ids_1T, how, cache=other) == expected
        of.feed(ids_1T)
        assert written(of, how) == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["rmt", "armt"])
def test_across_boundaries_it_is_reading_all_anew(kind, way):
    of = session("llama", kind)
    how = sampling({"max_new_tokens": NEW} | WAYS[way], of.backbone)
    ids_1T = text(SIZE + 3)
    expected = naively(of, ids_1T, how)
    other = SessionCache(of.select([0] * how.beams))
    assert stock(SessionModel(of.backbone), ids_1T, how, cache=other) == expected
    of.absorb(ids_1T)
    assert written(of, how) == expected
    logits, state = naive(of.policy, torch.cat([ids_1T, torch.tensor(expected)], 1))
    torch.testing.assert_close(of.logits(), logits, atol=1e-5, rtol=1e-5)
    for a, b in zip(of.state, state, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model", "kind"), LAYOUTS)
def test_every_policy_writes_on(model, kind):
    of = session(model, kind)
    for keys in ({}, {"num_beams": 2}):
        how = sampling({"max_new_tokens": NEW, "eos_token_id": 63} | keys, of.backbone)
        reading = of.fork()
        reading.feed(text(SIZE))
        assert written(reading, how) == naively(of, text(SIZE), how)


@pytest.mark.parametrize("way", ["greedy", "top_k", "lengths", "forced", "bans", "repetition"])
@pytest.mark.parametrize("history", [3, 5])
def test_blocks_do_not_show(way, history):
    """Fields that count from the start, and draws, go through the seams of blocks of `history` ids."""
    of = session()
    of.feed(text(SIZE + 3))
    keys = {"max_new_tokens": NEW} | WAYS[way]
    short = sampling({"history": history} | keys, of.backbone)
    expected = of.fork()
    if short.looks_back:  # a block is as long as what is seen: one long block that sees as little
        expected = _seeing(expected, short, history)
    else:
        expected = written(expected, sampling(keys, of.backbone))
    assert written(of, short) == expected


def _seeing(of, how, history):
    """Greedy, by hand: penalties and bans see the newest `history` ids."""
    out = []
    penalty = how.said.get("repetition_penalty")
    for number in range(how.max_new_tokens):
        scores = of.logits()
        if penalty:
            scores = RepetitionPenaltyLogitsProcessor(penalty)(of.read[0].newest_T[None, -history:], scores)
        else:
            scores[:, [7, 11]] = -torch.inf
            if int(of.read[0].newest_T[-1]) == 9:
                scores[:, 9] = -torch.inf
            if not number:
                scores[:, 6] = -torch.inf
        out.append(int(scores.argmax()))
        of.push(torch.tensor([out[-1:]]))
        if out[-1] == 2:
            break
    return [out]


def test_penalties_see_the_newest_ids_only():
    of = session()
    of.feed(text(3 * SIZE))
    found = {}
    for history in (4, 2048):
        how = sampling({"max_new_tokens": 12, "repetition_penalty": 3.0, "history": history}, of.backbone)
        found[history] = written(of.fork(), how)
    assert found[4] == _seeing(of.fork(), how, 4) != found[2048]


def test_rows_write_as_they_would_alone():
    of = session()
    alone = [of.fork() for _ in range(3)]
    for row, one in enumerate(alone):
        one.feed(text(5 + row * SIZE // 2, seed=row))
    ends = alone[1].fork()
    keys = {"max_new_tokens": NEW, "repetition_penalty": 1.2}
    ends = written(ends, sampling(keys, of.backbone))[0][4]  # row 1 ends after five tokens
    for beams in (1, 2):
        how = sampling(keys | {"eos_token_id": ends, "num_beams": beams}, of.backbone)
        together = Session.stack(alone)
        found = written(together, how)
        singles = [one.fork() for one in alone]
        expected = [written(one, how)[0] for one in singles]
        assert beams > 1 or len(expected[1]) == 5 < max(map(len, expected))
        assert [[i for i in row if i != ENDED] for row in found] == expected
        longest = max(map(len, expected))
        assert [len(row) for row in found] == [longest] * 3
        for row, one in enumerate(singles):
            assert together.read[row].tokens == one.read[0].tokens
            assert together.read[row].digest == one.read[0].digest
            assert together.pending[row] == one.pending[0]
        torch.testing.assert_close(
            together.logits(), torch.cat([one.logits() for one in singles]), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("beams", [1, 3])
def test_an_end_is_read_and_nothing_behind_it(beams):
    of = session()
    of.feed(text(SIZE + 2))
    tokenizer, keys = (
        of.backbone.tokenizer,
        {"max_new_tokens": NEW, "num_beams": beams, "repetition_penalty": 2.0},
    )
    free = written(of.fork(), sampling(keys, of.backbone))[0]
    stop = tokenizer.decode(free[3:5])
    assert stop not in tokenizer.decode(free[:4]) and free[4] not in free[:4]
    for end in ({"eos_token_id": [63, free[4]]}, {"stop_strings": stop}):
        reading = of.fork()
        found = written(reading, sampling(keys | end, of.backbone))[0]
        assert found[-1] == free[4] and reading.read[0].tokens == of.read[0].tokens + len(found) < NEW + SIZE
        assert beams > 1 or len(found) <= 5
        assert reading.read[0].newest_T[-len(found) :].tolist() == found
    if beams == 1:
        cut = list(of.fork().generate(NEW, stop_strings=[stop, "never"], repetition_penalty=2.0))
        assert "".join(cut) == tokenizer.decode(free[:5])


def test_writing_can_stop_and_go_on_anywhere():
    of = session()
    of.feed(text(SIZE - 2))
    how = sampling({"max_new_tokens": NEW, "top_k": 4, "eos_token_id": 63}, of.backbone)
    whole = written(of.fork(), how)[0]
    of.draws.generator.manual_seed(3)
    for k in range(5):
        writing = of.write(how)
        assert [next(writing).item() for _ in range(2)] == whole[2 * k : 2 * k + 2]
        writing.close()
        assert of.read[0].tokens == SIZE - 2 + 2 * k + 2
        of = Session.restored(of.backbone, of.policy, of.snapshot())


@pytest.mark.parametrize("keys", [{"temperature": 1.0}, {"num_beams": 2, "do_sample": True}])
def test_draws_come_from_the_session_alone(keys):
    of = session()
    of.feed(text(5))
    how = sampling({"max_new_tokens": 6} | keys, of.backbone)
    before, start = torch.get_rng_state(), of.draws.state()
    first = torch.cat(list(of.fork().write(how)), 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(torch.cat(list(of.fork().write(how)), 1), first)
    assert torch.equal(of.draws.state(), start)  # a fork has its own
    goes_on = of.fork()
    assert torch.equal(torch.cat(list(goes_on.write(how)), 1), first)
    assert not torch.equal(goes_on.draws.state(), start)
    seeded = [
        torch.cat(list(of.fork().write(sampling({"seed": s, **how.said}, of.backbone))), 1) for s in (1, 2, 1)
    ]
    assert torch.equal(seeded[0], seeded[2]) and not torch.equal(seeded[0], seeded[1])


def test_text_is_what_the_ids_say():
    of = session()
    of.feed_text("some text")
    assert of.read[0].newest_T.tolist() == of.backbone.tokenizer("some text").input_ids
    of.feed_text(" and")
    ids = of.backbone.tokenizer("some text and").input_ids
    assert of.read[0].newest_T.tolist() == ids
    made = written(of.fork(), sampling({"max_new_tokens": 12}, of.backbone))[0]
    parts = list(of.generate(12))
    assert "".join(parts) == of.backbone.tokenizer.decode(made, skip_special_tokens=True)
    assert len(parts) > 6
    assert list(of.generate(0)) == []
    with pytest.raises(UsageError, match="text of one row"):
        session(rows=2).generate(3)


REFUSED = [
    ({"prompt_lookup_num_tokens": 3}, "take tokens back"),
    ({"assistant_model": "x"}, "take tokens back"),
    ({"temprature": 0.5}, "did you mean temperature"),
    ({"penalty_alpha": 0.5}, "no meaning"),
    ({"colour": 1}, "no key 'colour'"),
    ({"max_length": 5}, "hint: max_new_tokens"),
    ({"num_return_sequences": 2}, "fork"),
    ({"use_cache": False}, "its own cache"),
    ({"output_scores": True}, "no meaning"),
    ({"encoder_repetition_penalty": 1.5}, "encoder"),
    ({"guidance_scale": 2.0}, "second session"),
    ({"do_sample": False, "top_k": 3}, "do_sample=false"),
    ({"do_sample": True, "temperature": 0}, "does not draw"),
    ({"length_penalty": 2.0}, "beams"),
    ({"num_beams": 0}, "whole number from 1"),
    ({"max_new_tokens": 1.5}, "whole number from 0"),
    ({"history": 0}, "whole number from 1"),
    ({"suppress_tokens": [5], "forced_eos_token_id": 5}, "generation:"),
]


@pytest.mark.parametrize(
    ("keys", "said"), REFUSED, ids=lambda x: next(iter(x)) if isinstance(x, dict) else ""
)
def test_what_makes_no_sense_is_refused(keys, said):
    with pytest.raises(UsageError) as caught:
        sampling(keys, policy()[0])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "keys", [{"temperature": -1.0}, {"top_p": 1.5, "temperature": -2}, {"repetition_penalty": -1.0}]
)
def test_values_that_stock_refuses_are_a_usage_error_before_anything_is_read(keys):
    of = session()
    of.feed(text(5))
    with pytest.raises(UsageError, match="generation:"):
        list(of.write(sampling(keys, of.backbone)))
    assert of.read[0].tokens == 5


def test_greedy_unless_something_draws():
    backbone = policy()[0]
    assert not sampling({}, backbone).draws
    assert sampling({"top_p": 0.9}, backbone).said["top_k"] == 0  # not transformers' 50
    assert not sampling({"temperature": 0, "top_p": 0.9}, backbone).draws
    assert sampling({}, backbone).said["eos_token_id"] == [2]


def test_nothing_read_nothing_written():
    with pytest.raises(UsageError, match="nothing has been read"):
        next(session().write(sampling({}, policy()[0])))


def test_stock_generate_needs_the_session_and_cannot_take_back():
    of = session()
    model, ids_1T = SessionModel(of.backbone), text(5)
    with pytest.raises(UsageError, match="own cache"):
        model.generate(ids_1T, max_new_tokens=2)
    with pytest.raises(UsageError, match="take tokens back"):
        model.generate(ids_1T, cache=SessionCache(of.fork()), max_new_tokens=5, prompt_lookup_num_tokens=2)
    cache = SessionCache(of)
    for call in (lambda: cache.crop(1), cache.reset):
        with pytest.raises(UsageError):
            call()
    assert not cache.is_croppable


def test_the_cache_moves_rows_with_all_they_have():
    of = session(rows=2)
    of.feed(text(SIZE + 3, rows=2))
    cache = SessionCache(of, SIZE + 3)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4 and cache.session.pending == tuple(of.pending[row] for row in (0, 0, 1, 1))
    cache.reorder_cache(torch.tensor([3, 0, 0, 1]))
    expected = of.select([1, 0, 0, 0])
    assert cache.session.read == expected.read and cache.get_seq_length() == SIZE + 3
    ids_BT = text(SIZE, rows=4, seed=4)
    torch.testing.assert_close(cache.read(ids_BT), expected.feed(ids_BT), atol=1e-6, rtol=1e-6)
    assert [row.tokens for row in of.read] == [SIZE + 3] * 2
