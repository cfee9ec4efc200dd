"""The batched decode of a bank beside the naive one, alone and in batches; what no bank may ever do."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from tiny import LETTERS, tiny_gemma3, tiny_llama, tiny_qwen2
from tiny_bank import NAMES, QUERIES, STRANGERS, tiny_bank

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem.api import EndEvent, RouteEvent, TextEvent, TokMem
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.events import Result
from memtoken_cli.methods.tokmem.exam import Question
from memtoken_cli.methods.tokmem.grammar import Segment
from memtoken_cli.methods.tokmem.keys import Options
from memtoken_cli.methods.tokmem.plain import Plain
from memtoken_cli.methods.tokmem.replies import Examined, Memo
from memtoken_cli.methods.tokmem.telling import Telling

BACKBONE = tiny_llama()
ADDRESSES = ("coupled", "decoupled", "lda")


def text(rng: random.Random, most: int = 24) -> str:
    return "".join(rng.choice(LETTERS[:36]) for _ in range(rng.randint(1, most)))


def chain(rng: random.Random) -> Options:
    """A forced chain of one to three, or a routed one, of random limits."""
    forced = tuple(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))
    procedures = rng.choice([forced, "auto", "auto!", "auto!"])
    deny = tuple(rng.sample(NAMES, rng.randint(0, 2))) if procedures != forced else ()
    most = None if procedures == forced else rng.randint(1, 4)
    return Options(
        procedures, deny=deny, max_procedures=most, max_new_tokens=rng.randint(1, 9), logprobs=True
    )


def results(backbone: CausalLM, bank: Bank, prompts: list[str], options, batch: int = 8) -> list[Result]:
    return list(TokMem(backbone, bank).results(prompts, options, batch=batch))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("ending", ["none", "eoc", "json"])
def test_fifty_random_chains_as_the_naive_decode_says(address, ending) -> None:
    rng = random.Random(f"{address} {ending}")
    seen = set()
    for trial in range(6):
        bank = tiny_bank(
            BACKBONE,
            address,
            tokens=rng.choice([1, 3]),
            segment_end=ending,
            max_procedures=3,
            seed=trial,
            scale=rng.choice([0.5, 1.0, 3.0]),
            following=("parts", "states")[trial % 2],
        )
        prompts = [text(rng) for _ in range(5)]
        options = [chain(rng) for _ in prompts]
        found = TokMem(BACKBONE, bank)
        for prompt, each, result in zip(
            prompts, options, found.results(prompts, options, batch=3), strict=True
        ):
            rendered = found.prompts.render(prompt)
            assert list(result.ids) == Plain(BACKBONE, bank, each).decode(rendered), (trial, each)
            seen.add(sum(route.procedure is not None for route in result.routes))
    assert 1 in seen and seen & {2, 3}, "the chains are of different lengths"


@pytest.mark.parametrize("following", ["parts", "states"])
@pytest.mark.parametrize("ending", ["none", "eoc", "json"])
def test_banks_of_all_kinds_of_queries_as_the_naive_decode_says(ending, following) -> None:
    """Queries for one procedure, for several and for none, by features that lean to the first words too."""
    rng = random.Random(f"kinds {ending}")
    bank = tiny_bank(BACKBONE, "lda", segment_end=ending, max_procedures=3, kinds=True, following=following)
    single = [(name, query) for name in NAMES for query in QUERIES[name]]
    prompts = [query for _, query in rng.sample(single, 6)] + list(STRANGERS[:4])
    prompts += [f"{a}; {b}" for (_, a), (_, b) in zip(single[::5], single[1::5], strict=True)]
    options = [Options("auto", max_new_tokens=rng.randint(1, 6)) for _ in prompts]
    ready, firsts, told = TokMem(BACKBONE, bank), set(), set()
    for prompt, each, result in zip(prompts, options, ready.results(prompts, options, batch=4), strict=True):
        rendered = ready.prompts.render(prompt)
        assert list(result.ids) == Plain(BACKBONE, bank, each).decode(rendered), prompt
        firsts.add(result.routes[0].procedure)
        told.add((result.routes[0].several, sum(route.procedure is not None for route in result.routes) > 1))
    assert {False, True} == {several for several, _ in told}
    assert (False, True) not in told, "a query for one procedure ends after it"
    assert None in firsts and len(firsts) > 2, "some queries are for none, others for different procedures"


@pytest.mark.parametrize("ending", ["none", "eoc", "json"])
def test_queries_are_read_in_parts_where_no_chain_was_seen_as_the_naive_decode_says(ending) -> None:
    rng = random.Random(f"parts {ending}")
    bank = tiny_bank(BACKBONE, "lda", segment_end=ending, max_procedures=3, scale=6.0)
    assert set(bank.sites) == {"first"}
    single = [(name, query) for name in NAMES for query in QUERIES[name]]
    prompts = [query for _, query in single[::4]]
    prompts += [f"{a} {a} {b} {b}" for (_, a), (_, b) in zip(single[::4], single[9:], strict=False)]
    options = [Options("auto", max_new_tokens=rng.randint(1, 6)) for _ in prompts]
    ready, told = TokMem(BACKBONE, bank), set()
    for prompt, each, result in zip(prompts, options, ready.results(prompts, options, batch=4), strict=True):
        assert list(result.ids) == Plain(BACKBONE, bank, each).decode(ready.prompts.render(prompt)), prompt
        told.add((result.routes[0].several, sum(route.procedure is not None for route in result.routes) > 1))
    assert (False, True) not in told and {False, True} == {several for several, _ in told}
    assert ending != "eoc" or (True, True) in told


@pytest.mark.parametrize("make", [tiny_gemma3, tiny_qwen2])
def test_other_families_as_the_naive_decode_says(make) -> None:
    backbone = make()
    rng = random.Random(3)
    for address in ADDRESSES:
        bank = tiny_bank(backbone, address, tokens=2, segment_end="eoc", max_procedures=3)
        prompts, options = [text(rng, 30) for _ in range(5)], [chain(rng) for _ in range(5)]
        ready = TokMem(backbone, bank)
        for prompt, each, result in zip(prompts, options, ready.results(prompts, options), strict=True):
            wanted = Plain(backbone, bank, each).decode(ready.prompts.render(prompt))
            assert list(result.ids) == wanted


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_batch_is_its_rows_alone(address) -> None:
    rng = random.Random(7)
    bank = tiny_bank(BACKBONE, address, segment_end="eoc", max_procedures=3, tokens=2)
    prompts, options = [text(rng) for _ in range(8)], [chain(rng) for _ in range(8)]
    options[3] = replace(options[3], procedures="none", deny=())
    alone = results(BACKBONE, bank, prompts, options, 1)
    for batch in (3, 8):
        together = results(BACKBONE, bank, prompts, options, batch)
        for a, b in zip(alone, together, strict=True):
            assert a.ids == b.ids and a.text == b.text
            assert [r.procedure for r in a.routes] == [r.procedure for r in b.routes]
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
            assert [r.p for r in a.routes] == pytest.approx([r.p for r in b.routes], abs=1e-4)


def test_another_row_changes_no_bit() -> None:
    bank = tiny_bank(BACKBONE, segment_end="eoc")
    options = Options(("alpha",), max_new_tokens=6, logprobs=True)
    endless = Options(("beta",), max_new_tokens=6, logprobs=True)
    ready = TokMem(BACKBONE, bank)
    a, b = (
        next(ready.results(["the same", other], [options, endless])) for other in ("xylophone", "zylophone")
    )
    assert a.logprobs and a.logprobs == b.logprobs and a.ids == b.ids


def backbone_says(prompt: tuple[int, ...], new: int) -> tuple[list[int], list[float]]:
    """Stock greedy decoding, and the log-probabilities of what it says, its end included."""
    out = BACKBONE.model.generate(
        torch.tensor([prompt]),
        max_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = out.sequences[0, len(prompt) :].tolist()
    said = [float(x[0].log_softmax(-1)[i]) for x, i in zip(out.logits, ids, strict=True)]
    return [i for i in ids if i != 2], said


@pytest.mark.parametrize(
    ("bank", "options"),
    [
        (tiny_bank(BACKBONE), Options("none")),
        (tiny_bank(BACKBONE, "lda", segment_end="eoc"), Options("none")),
        (Bank.empty(tiny_bank(BACKBONE).meta, 32), Options("auto")),
        (Bank.empty(tiny_bank(BACKBONE, "lda").meta, 32), Options("auto")),
        (Bank.empty(tiny_bank(BACKBONE).meta, 32), Options("auto", constrain="none")),
        (tiny_bank(BACKBONE), Options("auto", deny=("all",))),
        (tiny_bank(BACKBONE, "lda", segment_end="eoc"), Options("auto", deny=NAMES)),
    ],
)
def test_nothing_is_the_backbone_to_the_last_bit(bank: Bank, options: Options) -> None:
    ready = TokMem(BACKBONE, bank)
    asked = replace(options, max_new_tokens=12, logprobs=True)
    for prompt in ("a word", "q", "12 of these, please"):
        rendered = ready.prompts.render(prompt)
        (result,) = ready.results([prompt], asked)
        ids, logprobs = backbone_says(rendered.ids, 12)
        assert list(result.ids) == ids and list(result.logprobs) == logprobs
        assert result.text == BACKBONE.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_forced_row_is_its_vector_at_the_input_and_its_prefilled_cache() -> None:
    bank = tiny_bank(BACKBONE, tokens=3)
    ready = TokMem(BACKBONE, bank)
    for name in NAMES:
        (result,) = ready.results(["what?"], Options((name,), max_new_tokens=8, logprobs=True))
        ids = torch.tensor([ready.prompts.render("what?").ids])
        rows = bank.control_PkE[bank.index(name)]
        x = torch.cat([BACKBONE.model.get_input_embeddings()(ids)[0], rows])
        with torch.no_grad():
            one = BACKBONE.model(inputs_embeds=x[None]).logits[0, -1]
            half = BACKBONE.model(inputs_embeds=x[None, :-1], use_cache=True)
            two = BACKBONE.model(inputs_embeds=x[None, -1:], cache=half.cache, use_cache=True).logits[0, -1]
        said = result.ids[3]
        assert result.segments[0].tokens and int(one.argmax()) == int(two.argmax()) == said
        for logits in (one, two):
            assert float(logits.log_softmax(-1)[said]) == pytest.approx(result.logprobs[0], abs=1e-5)


def test_old_procedures_say_the_same_bytes_after_an_addition() -> None:
    bank = tiny_bank(BACKBONE, "decoupled", seed=1)
    more = tiny_bank(BACKBONE, "decoupled", names=("new", "newer"), seed=2)
    grown = bank.append(more)
    for name in NAMES:
        options = Options((name,), max_new_tokens=16, logprobs=True)
        (before,), (after,) = (results(BACKBONE, b, ["some text"], options) for b in (bank, grown))
        assert (before.text, before.logprobs) == (after.text, after.logprobs)
        said = [i for i in before.ids if i < BACKBONE.dims.vocab]
        assert said and said == [i for i in after.ids if i < BACKBONE.dims.vocab]


@pytest.mark.parametrize("address", ["coupled", "decoupled"])
def test_ten_thousand_adversarial_steps_keep_to_the_grammar(address) -> None:
    steps, strays, rng = 0, 0, random.Random(0)
    V = BACKBONE.dims.vocab
    for seed in range(60):
        ending = rng.choice(["none", "eoc"])
        bank = tiny_bank(BACKBONE, address, segment_end=ending, max_procedures=1, seed=seed, scale=1e3 / 1.6)
        prompts = [text(rng) for _ in range(16)]
        for result in results(BACKBONE, bank, prompts, Options("auto", max_new_tokens=24), 16):
            steps += len(result.ids)
            fired = sum(route.procedure is not None for route in result.routes)
            assert fired == result.memory_tokens <= 1
            strays += sum(token >= V for token in result.ids[1:])
    assert steps > 10_000 and strays == 0


def test_an_endless_segment_ends_at_the_limit() -> None:
    bank = tiny_bank(BACKBONE, segment_end="eoc")
    assert bank.eoc_E is not None
    never = replace(bank, eoc_E=torch.zeros(32))
    forced = Options(("alpha", "beta"), max_new_tokens=3)
    found = results(BACKBONE, never, ["a", "b", "c", "d"], forced)
    ended = [s.ended_by for r in found for s in r.segments]
    assert "limit" in ended and all(len(r.segments) == 2 for r in found)
    assert all(s.tokens == 3 for r in found for s in r.segments if s.ended_by == "limit")
    small = tiny_llama(context=24)
    (one,) = results(
        small,
        tiny_bank(small, segment_end="eoc", max_procedures=9),
        ["abc"],
        Options("auto!", max_new_tokens=8),
    )
    assert one.prompt_tokens + len(one.ids) <= 24


def test_json_ends_a_segment() -> None:
    bank = tiny_bank(BACKBONE, segment_end="json", max_procedures=2)
    ready = TokMem(BACKBONE, bank)
    from memtoken_cli.methods.tokmem.grammar import Plan

    row = ready.decoder.row(Plan.of(Options("auto!"), NAMES, 2, 0), 4)
    pieces = dict(enumerate(['{"a": ', '[1, "}"]', "}\nand"]))
    row.text_of = lambda ids: "".join(pieces[i] for i in ids)
    row.ends = frozenset({99})
    row.enter("alpha")
    row.route = None
    while row.queue:
        row.put()
    assert [row.take(0), row.take(1), row.take(2)] == [0, 1, 2]
    assert row.segments[0].ended_by == "json" and row.segments[0].text == '{"a": [1, "}"]}'
    assert row.route == "boundary" and not row.done


def test_sampling_does_not_depend_on_the_batch() -> None:
    bank = tiny_bank(BACKBONE)
    prompts = ["one", "two two", "three"] * 2
    hot = Options(("alpha",), max_new_tokens=12, temperature=1.5, seed=3)
    alone, together = (results(BACKBONE, bank, prompts, hot, batch) for batch in (1, 6))
    assert [r.ids for r in alone] == [r.ids for r in together]
    assert len({r.ids for r in alone}) > 3, "equal prompts draw for themselves"
    other = results(BACKBONE, bank, prompts, replace(hot, seed=4), 6)
    assert [r.ids for r in other] != [r.ids for r in together]


def test_the_free_softmax_lets_memory_come_anywhere() -> None:
    bank = tiny_bank(BACKBONE, scale=2.0)
    V, k = BACKBONE.dims.vocab, 1
    fired, strays = 0, 0
    for prompt in ("one", "two", "three", "four", "five", "six"):
        ready = TokMem(BACKBONE, bank)
        (result,) = ready.results([prompt], Options("auto", constrain="none", max_new_tokens=16))
        # as a checkpoint with resized embeddings would: one softmax, no grammar
        ids, x = (
            [],
            list(BACKBONE.model.get_input_embeddings()(torch.tensor(ready.prompts.render(prompt).ids))),
        )
        with torch.no_grad():
            while len(ids) < 16:
                h = BACKBONE.model.get_decoder()(inputs_embeds=torch.stack(x)[None]).last_hidden_state[0, -1]
                rows = bank.control_PkE[:, 0]
                token = int(torch.cat([BACKBONE.model.lm_head(h), rows @ h]).argmax())
                if token == 2:
                    break
                ids.append(token if token < V else token + 1)
                x.append(
                    BACKBONE.model.get_input_embeddings()(torch.tensor(token))
                    if token < V
                    else rows[token - V]
                )
        assert list(result.ids) == ids
        fired += sum(token >= V for token in ids)
        strays += sum(token >= V for token in ids[k:])
        assert fired == 0 or result.routes
    assert strays, "the bank is one that strays"


def test_closed_forms_need_the_grammar() -> None:
    with pytest.raises(UsageError, match="closed-form"):
        results(BACKBONE, tiny_bank(BACKBONE, "lda"), ["a"], Options("auto", constrain="none"))


@pytest.mark.parametrize("address", ADDRESSES)
def test_routing_is_the_first_token(address) -> None:
    """Bar 4: with one procedure a row, the procedure that answers is the one whose token came first."""
    bank = tiny_bank(BACKBONE, address, scale=2.0)
    ready = TokMem(BACKBONE, bank)
    prompts = ["aaa al3", "bbbb be4", "ggg ga5", "dd de2", "eeeee ep6"]
    routes = ready.route(prompts)
    for route, result in zip(routes, ready.results(prompts, Options("auto", max_new_tokens=4)), strict=True):
        assert [r.procedure for r in result.routes] == [route.procedure]
        first = [token - BACKBONE.dims.vocab - 1 for token in result.ids if token > BACKBONE.dims.vocab]
        assert first == ([] if route.procedure is None else [bank.index(route.procedure)])
        shown = [name for name, _ in route.alternatives]
        assert len(shown) == (3 if route.procedure is None else 2) and route.procedure not in shown
    if address == "lda":
        assert [route.procedure for route in routes] == list(NAMES)


def test_conditions_of_routing() -> None:
    bank = tiny_bank(BACKBONE, "lda")
    ready = TokMem(BACKBONE, bank)
    (free,) = ready.route(["aaa al3"])
    assert free.procedure == "alpha" and free.p_text is None
    (other,) = ready.route(["aaa al3"], deny=["alpha"])
    assert other.procedure not in (None, "alpha")
    (only,) = ready.route(["aaa al3"], allow=["delta"])
    assert (only.procedure, only.p, only.alternatives) == ("delta", 1.0, ())
    flat = TokMem(BACKBONE, replace(bank, alpha={"first": 1e-4}))
    (unsure,) = flat.route(["aaa al3"], min_prob=0.9, top_k=2)
    assert unsure.procedure is None and [name for name, _ in unsure.alternatives][:1] == ["alpha"]
    assert flat.route(["aaa al3"], min_prob=0.9, plain=False)[0].procedure == "alpha"
    with pytest.raises(UsageError, match="alpha"):
        ready.route(["x"], allow=["alpah"])


def test_pipes_and_chains() -> None:
    bank = tiny_bank(BACKBONE, "lda", segment_end="eoc", max_procedures=2)
    ready = TokMem(BACKBONE, bank)
    (first,) = ready.results(["what is it?"], Options(("alpha",), max_new_tokens=6))
    (second,) = ready.results([first.text], Options(("beta",), max_new_tokens=6))
    (piped,) = ready.results(["what is it?"], Options(pipe=("alpha", "beta"), max_new_tokens=6))
    assert piped.text == second.text and [s.text for s in piped.segments] == [first.text, second.text]
    assert piped.prompt_tokens == first.prompt_tokens + second.prompt_tokens
    (composed,) = ready.results(["what is it?"], Options(("alpha", "beta"), max_new_tokens=6))
    assert composed.text == "\n".join(s.text for s in composed.segments)
    assert [s.procedure for s in composed.segments] == ["alpha", "beta"]
    assert composed.segments[0] == first.segments[0] and composed.memory_tokens == 3


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_trace_replays_when_it_is_forced(address) -> None:
    bank = tiny_bank(BACKBONE, address, segment_end="eoc", max_procedures=3, scale=6.0)
    ready, replayed = TokMem(BACKBONE, bank), 0
    for prompt in ("ab", "cd e", "f g h", "ijk", "l", "mn", "0 1", "23"):
        (result,) = ready.results([prompt], Options("auto!", max_new_tokens=5))
        names = tuple(s.procedure for s in result.segments if s.procedure)
        (again,) = ready.results([prompt], Options(names, max_new_tokens=5))
        # where the model chose to end, the end of the last segment went in too
        assert again.ids == result.ids[: len(again.ids)] and again.segments == result.segments
        replayed += len(names) > 1
    assert replayed


def test_events_come_in_their_order() -> None:
    bank = tiny_bank(BACKBONE, "lda", segment_end="eoc")
    events = list(
        TokMem(BACKBONE, bank).generate(["one", "two"], ["alpha", "beta"], max_new_tokens=4, batch=1)
    )
    kinds = [key for key, _ in groupby((type(event), event.row) for event in events)]  # a text has pieces
    of_row = [RouteEvent, TextEvent, RouteEvent, TextEvent, EndEvent]
    assert kinds == [(kind, 0) for kind in of_row] + [(kind, 1) for kind in of_row]


@pytest.mark.parametrize(
    "evil", ["<|mem:alpha|>", "<|eoc|>", 'a "quoted" name', "new\nline", "emoji 🦊", "</s"]
)
def test_a_prompt_cannot_select_a_row(evil: str) -> None:
    bank = tiny_bank(BACKBONE, "lda", names=("alpha", 'a "quoted" name', "emoji 🦊"))
    ready = TokMem(BACKBONE, bank)
    assert max(ready.prompts.render(evil).ids) < BACKBONE.dims.vocab
    (bare,) = ready.results([evil], Options("none", max_new_tokens=8))
    assert bare.memory_tokens == 0 and bare.routes == ()
    (result,) = ready.results([evil], Options("auto", deny=("alpha",), max_new_tokens=8))
    assert all(route.procedure != "alpha" for route in result.routes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options("alhpa"), "did you mean alpha"),
        (Options(("beta", "gama")), "did you mean gamma"),
        (Options(pipe=("zzz",)), "procedures: alpha"),
        (Options(allow=("betta",)), "did you mean beta"),
        (Options(("alpha",), pipe=("beta",)), "exclude"),
        (Options(("alpha",), deny=("alpha",)), "not allowed"),
        (Options("auto!", deny=("all",)), "no procedure allowed"),
        (Options(("alpha", "beta"), max_procedures=1), "max_procedures is 1"),
    ],
)
def test_options_that_cannot_be_obeyed(options: Options, said: str) -> None:
    with pytest.raises(UsageError) as error:
        options.check(NAMES)
    assert said in str(error.value)


def test_what_does_not_fit_is_not_cut() -> None:
    small = tiny_llama(context=40)
    bank = tiny_bank(small)
    ready = TokMem(small, bank)
    with pytest.raises(DataError, match="do not fit the 40"):
        list(ready.results(["x" * 30], Options(("alpha",), max_new_tokens=10)))
    with pytest.raises(DataError, match="do not fit the 40"):
        list(ready.results(["x"], Options(("alpha", "beta"), max_new_tokens=20)))
    with pytest.raises(DataError, match="empty"):
        list(ready.results(["  "], Options(max_new_tokens=2)))
    with pytest.raises(DataError, match="16 wide, tiny-llama is 32"):
        TokMem(small, Bank.empty(bank.meta, 16))
    with pytest.raises(DataError, match="chat template"):
        TokMem(small, replace(bank, meta=replace(bank.meta, prompt="0" * 64)))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("ending", ["none", "eoc", "json"])
def test_pieces_laid_end_to_end_are_the_text(address, ending) -> None:
    """Any grammar, any options, the free softmax too; text comes before its segment is over."""
    rng = random.Random(f"pieces {address} {ending}")
    early = 0
    for trial in range(4):
        bank = tiny_bank(BACKBONE, address, segment_end=ending, max_procedures=3, seed=trial, scale=2.0)
        options = [chain(rng) for _ in range(5)]
        options[2] = Options("none", max_new_tokens=6)
        if address != "lda":
            options[3] = Options(constrain="none", max_new_tokens=9)
        said: dict[int, list[str]] = {}
        for event in TokMem(BACKBONE, bank).events([text(rng) for _ in options], options, batch=3):
            if isinstance(event, TextEvent):
                assert event.text
                said.setdefault(event.row, []).append(event.text)
            elif isinstance(event, EndEvent):
                pieces = said.get(event.row, [])
                assert "".join(pieces) == event.result.text, (trial, options[event.row])
                early += len(pieces) > len(event.result.segments)
    assert early


def test_of_a_pipe_the_last_answer_is_told() -> None:
    ready, seen = TokMem(BACKBONE, tiny_bank(BACKBONE)), 0
    for query in ("ab", "cd e", "f g h", "ijk", "l", "mn"):
        events = ready.generate([query], pipe=("alpha", "beta", "gamma"), max_new_tokens=4)
        try:
            found = list(events)
        except DataError:  # an answer was empty
            continue
        pieces = [event for event in found if isinstance(event, TextEvent)]
        (result,) = (event.result for event in found if isinstance(event, EndEvent))
        assert "".join(event.text for event in pieces) == result.text
        assert {event.procedure for event in pieces} <= {"gamma"} and len(result.segments) == 3
        seen += len(pieces) > 1
    assert seen


def test_text_is_told_under_its_procedure_and_before_the_next_route() -> None:
    bank = tiny_bank(BACKBONE, "lda", segment_end="eoc", max_procedures=3)
    told: list[tuple[str | None, str]] = []
    now: str | None = None
    for event in TokMem(BACKBONE, bank).generate(["a query"], ("alpha", "beta"), max_new_tokens=5):
        if isinstance(event, RouteEvent):
            now = event.route.procedure
        elif isinstance(event, TextEvent):
            assert event.procedure == now
            told.append((event.procedure, event.text))
        else:
            result = event.result
    said = ["".join(t for p, t in told if p == name) for name in ("alpha", "beta")]
    assert said == [result.segments[0].text, "\n" + result.segments[1].text]


class Halves:
    """A row whose tokens are the bytes of its text: characters come in parts."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.talks, self.said, self.procedure = True, list[int](), "alpha"

    @staticmethod
    def text_of(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_a_character_in_parts_waits_until_it_is_whole() -> None:
    row = Halves()
    telling, pieces = Telling(0, row), []  # type: ignore[arg-type]
    for byte in "é→x".encode():
        row.said.append(byte)
        pieces += [event.text for event in telling.more()]
    assert pieces == ["é", "→", "x"]
    row.said.append(0xC3)  # the answer ends in the middle of one
    assert not list(telling.more())
    row.segments.append(Segment("alpha", row.text_of(row.said), tuple(row.said), "limit"))
    row.talks = False
    assert [event.text for event in telling.more()] == ["\ufffd"]


@pytest.mark.parametrize("kinds", [False, True])
def test_what_is_measured_is_what_is_decided(kinds) -> None:
    """The first choice that a bank is marked by is that of its decoding, batches of other prompts aside."""
    bank = tiny_bank(BACKBONE, "lda", max_procedures=3, kinds=kinds)
    single = [(name, query) for name in NAMES for query in QUERIES[name]]
    asked = [Question(query, (name,)) for name, query in single[::3]]
    asked += [
        Question(f"{q} {q} {r} {r}", (a, b)) for (a, q), (b, r) in zip(single[::4], single[9:], strict=False)
    ]
    memo: Memo = {}
    ranked = [choice.ranked[0] for choice in Examined(BACKBONE, bank, memo=memo).routes(asked)]
    routes = TokMem(BACKBONE, bank).route([q.query for q in asked])
    assert ranked == [route.procedure or "" for route in routes]
    assert {route.several for route in routes} == {False, True}
    again = Examined(BACKBONE, replace(bank, meta=replace(bank.meta, max_procedures=1)), memo=memo)
    assert again.routes(asked[:9]) == Examined(BACKBONE, again.bank).routes(asked[:9])
    other: Memo = {}
    again.memo = other
    again.routes(asked)
    assert [c.ranked[0] for c in Examined(BACKBONE, bank, memo=other).routes(asked)] == ranked


@pytest.mark.parametrize("following", ["parts", "states"])
def test_what_was_said_to_one_part_is_not_seen_by_the_next(following) -> None:
    bank = tiny_bank(BACKBONE, "lda", segment_end="eoc", max_procedures=3, kinds=True, following=following)
    query = f"{QUERIES['alpha'][2]}; {QUERIES['beta'][3]}"
    changed = bank.control_PkE.clone()
    changed[0] = changed[2]
    other = replace(bank, control_PkE=changed)
    said = [
        results(BACKBONE, some, [query], [Options(("alpha", "beta"), max_new_tokens=6)])[0].segments
        for some in (bank, other)
    ]
    assert said[0][0] != said[1][0]
    assert (said[0][1].ids == said[1][1].ids) == (following == "parts")


def test_a_part_is_answered_as_a_query_for_one_is() -> None:
    bank = tiny_bank(BACKBONE, "lda", segment_end="eoc", max_procedures=3, scale=6.0)
    ready = TokMem(BACKBONE, bank)
    one = TokMem(BACKBONE, replace(bank, meta=replace(bank.meta, max_procedures=1)))
    single = [(name, query) for name in NAMES for query in QUERIES[name]]
    pairs = [
        (whole, prefix, (a, b))
        for (a, x), (b, y) in zip(single[::3], single[9:], strict=False)
        for whole in [ready.prompts.render(f"{x} {x} {y} {y}")]
        for prefix in ready.frozen.read([whole])
        if a != b and ready.decoder.router.scores("first", [prefix]).several[0]
    ]
    assert len(pairs) > 2
    options = [Options(names, max_new_tokens=6) for _, _, names in pairs]
    found = ready.results([whole for whole, _, _ in pairs], options, batch=3)
    for (whole, prefix, names), result in zip(pairs, found, strict=True):
        parts = [whole.part(ready.decoder.router.part(prefix, names[: n + 1])) for n in range(2)]
        alone = one.results(parts, [Options((name,), max_new_tokens=6) for name in names], batch=1)
        assert [s.ids for s in result.segments] == [each.segments[0].ids for each in alone]
        assert result.prompt_tokens == len(whole.ids) + sum(len(part.ids) for part in parts)
        assert sum(len(part.ids) for part in parts) < 2 * len(whole.ids)
