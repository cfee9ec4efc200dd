"""Prompts and what a frozen model makes of them: spans, shared prefixes, features, boundaries, addresses."""

from functools import cache

import pytest
import torch
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import prefix_cache, vocab
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.tokmem import initial
from memtoken_cli.methods.tokmem.address import END, states_loss, stored
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import FEATURES, FINAL, Config, Feature
from memtoken_cli.methods.tokmem.features import HALF_LIFE, Boundary, Frozen, behind
from memtoken_cli.methods.tokmem.meta import Meta, Row
from memtoken_cli.methods.tokmem.pool import Pool
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.replay import Replay
from memtoken_cli.methods.tokmem.statistics import TEXT, Class, collect

FAMILIES = {"llama": tiny_llama, "qwen2": tiny_qwen2, "gemma3": tiny_gemma3, "gpt2": tiny_gpt2}
QUERIES = ("where is it", "where", "what a long question this is, or is it?", "where was that?")


@cache
def family(name: str):
    return FAMILIES[name]()


def prompts(name: str):
    return [Prompts(family(name).tokenizer).render(query) for query in QUERIES]


def naive(backbone, prompt, feature: Feature) -> torch.Tensor:
    """One prompt, one plain forward, every state."""
    out = backbone.model.get_decoder()(
        input_ids=torch.tensor([prompt.ids]), use_cache=False, output_hidden_states=True
    )
    states = [*out.hidden_states[:-1], out.last_hidden_state]
    x = states[min(len(states) - 1, int(feature.depth * (len(states) - 1) + 0.5))][0]
    own = x[prompt.user[0] : prompt.user[1]]
    if feature.pool == "lead":
        weights = [0.5 ** (t / HALF_LIFE) for t in range(len(own))]
        return sum(w * row for w, row in zip(weights, own, strict=True)) / sum(weights)
    return x[-1] if feature.pool == "last" else own.mean(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_a_plain_forward(name):
    backbone = family(name)
    features = (*FEATURES, FINAL, Feature(depth=0.5, pool="last"), Feature(depth=0.5, pool="lead"))
    for prompt, prefix in zip(prompts(name), Frozen(backbone, features).read(prompts(name)), strict=True):
        for feature, found in zip(features, prefix.features, strict=True):
            assert torch.allclose(found, naive(backbone, prompt, feature), atol=2e-5), feature
        assert torch.equal(prefix.h_E, prefix.features[3])
        assert prefix.length == prefix.kept.length == len(prompt.ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_4_going_on_from_kept_prompts_is_the_whole_sequence(name):
    """Prompts of unequal length, padded on the left; the window of one family is shorter than the prompts."""
    backbone = family(name)
    prefixes = Frozen(backbone, ()).read(prompts(name))
    x = torch.randn(len(prefixes), 5, backbone.dims.width, generator=torch.Generator().manual_seed(0))
    together = prefix_cache.together([p.kept for p in prefixes])
    first = prefix_cache.go_on(backbone, together, x[:, :2])[0]
    h = torch.cat([first, prefix_cache.go_on(backbone, together, x[:, 2:], every=True)[-1]], 1)
    for b, prefix in enumerate(prefixes):
        words = backbone.model.get_input_embeddings()(torch.tensor([prefix.prompt.ids]))
        whole = torch.cat([words, x[b : b + 1]], 1)
        wanted = backbone.model.get_decoder()(inputs_embeds=whole, use_cache=False).last_hidden_state
        assert torch.allclose(h[b], wanted[0, -5:], atol=3e-5)


def test_a_cache_for_decoding():
    backbone = family("llama")
    prefixes = Frozen(backbone, ()).read(prompts("llama"))
    cache_, mask = prefix_cache.batched(backbone, prefixes)
    assert mask is not None and mask.sum(1).tolist() == [p.length for p in prefixes]
    assert cache_.get_seq_length() == max(p.length for p in prefixes)
    assert prefix_cache.batched(backbone, prefixes[:1])[1] is None
    lost = Frozen(backbone, (), 0.0).prepare(prompts("llama"))
    with pytest.raises(DataError):
        prefix_cache.batched(backbone, lost)


def test_what_is_kept_stays_within_its_room():
    backbone = family("llama")
    each = Frozen(backbone, ()).read(prompts("llama"))
    shared, own = each[0].kept.pieces[0].nbytes, [p.kept.own_bytes for p in each]
    frozen = Frozen(backbone, ())
    frozen.room = shared + own[0] + own[1]
    made = frozen.prepare(prompts("llama"))
    assert [p.kept is not None for p in made] == [True, True, False, False] and frozen.room == 0
    again = frozen.kept(made)
    assert [k.length for k in again] == [p.length for p in each]
    assert torch.allclose(again[2].pieces[-1], each[2].kept.pieces[-1], atol=1e-5)
    h = frozen.prepare(prompts("llama"))[0].h_E
    assert torch.equal(h, made[0].h_E)


def test_shared_tokens():
    assert prefix_cache.shared_length([(1, 2, 3), (1, 2, 4), (1, 2)]) == 1
    assert prefix_cache.shared_length([(1, 2, 3)]) == 0
    assert prefix_cache.shared_length([(1, 2), (1, 2)]) == 1
    assert prefix_cache.shared_length([(2, 1), (1, 2)]) == 0
    assert [len(r) for r in prefix_cache.chunks([1] * 40)] == [32, 8]
    assert [len(r) for r in prefix_cache.chunks([1000, 1000, 1100])] == [2, 1]


def test_the_users_tokens():
    asked = Prompts(family("llama").tokenizer)
    text = family("llama").tokenizer.decode
    for instruction in (None, "do it"):
        prompt = asked.render("where?", instruction)
        start, end = prompt.user
        assert text(prompt.ids[start:end]) == ("do it\n\nwhere?" if instruction else "where?")
        assert text(prompt.ids[:start]) == "u: " and text(prompt.ids[end:]) == "\na: "
    bare = tiny_llama()
    bare.tokenizer.chat_template = None
    prompt = Prompts(bare.tokenizer).render("where?")
    assert bare.tokenizer.decode(prompt.ids) == "<s>where?\n" and prompt.user == (1, 7)
    assert Prompts(bare.tokenizer).digest != asked.digest


def test_a_template_that_does_not_repeat_the_query():
    backbone = tiny_llama()
    backbone.tokenizer.chat_template = "nothing"
    with pytest.raises(DataError, match="does not repeat"):
        Prompts(backbone.tokenizer).render("x")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_behind_a_segment_token_by_token_and_at_once(name):
    """a1 r r r EOC a2 r r EOC: what decoding gathers is what training collected."""
    backbone = family(name)
    V = backbone.dims.vocab
    rows = torch.randn(3, backbone.dims.width, generator=torch.Generator().manual_seed(0))
    ids = [V + 1, 7, 8, 9, V, V + 2, 5, 6, V]
    (prefix,) = Frozen(backbone, FEATURES).read(prompts(name)[:1])
    x = vocab.embed(backbone, torch.tensor([ids]), rows)
    states = [s[0] for s in prefix_cache.go_on(backbone, prefix_cache.together([prefix.kept]), x, every=True)]
    watched = Boundary(FEATURES, prefix, backbone.dims.layers)
    for at, token in enumerate(ids):
        watched.said = token < V
        watched.see([s[at] for s in states], states[-1][at], token)
        if token == V:
            said = range(1, 4) if at == 4 else range(6, 8)
            wanted = behind(states, prefix, FEATURES, said, at)
            place = watched.state(states[-1][at])
            assert len(place.features) == len(FEATURES) + 1
            for a, b in zip(place.features, wanted, strict=True):
                assert torch.allclose(a, b, atol=1e-6)
    assert torch.equal(wanted[1], prefix.features[1])


def test_a_pool_reads_by_group_and_form():
    from memtoken_cli.methods.tokmem.examples import Example, Segment

    backbone = family("llama")
    asked = Prompts(backbone.tokenizer)

    def example(i: int) -> Example:
        forms = {"query": asked.render(f"q {i}"), "instruction+query": asked.render(f"q {i}", "do it")}
        return Example(f"e{i}", "g", forms, (Segment(0, (5,)),))

    pool = Pool(Frozen(backbone, FEATURES, 1.0), Config(prompt="query"))
    pool.read([example(0), example(1)])
    assert pool.get(example(0), "query").kept is not None
    assert pool.get(example(0), "instruction+query").kept is None
    before = pool.get(example(1), "query")
    pool.read([example(0), example(1)])
    assert pool.get(example(1), "query") is before


@pytest.mark.parametrize("softmax", ["full", "bank"])
def test_10_addresses_as_a_linear_layer(softmax):
    backbone = family("llama")
    E, V = backbone.dims.width, backbone.dims.vocab
    h = torch.randn(6, E, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, END, 1, END])
    rows = torch.randn(3, E, generator=torch.Generator().manual_seed(1)).requires_grad_()
    states = stored(backbone, 0, h, target, 2, 6)
    found = states_loss(backbone, rows, states, Config(route_softmax=softmax))
    (gradient,) = torch.autograd.grad(found.total, rows)
    logits = torch.cat([vocab.logits(backbone, h), h @ rows.T], 1)
    if softmax == "bank":
        logits = torch.cat([logits[:, 2:3], logits[:, V:]], 1)
    offset = V if softmax == "full" else 1
    labels = torch.where(target == END, 2 if softmax == "full" else 0, target + offset)
    wanted = cross_entropy(logits, labels, reduction="sum")
    (expected,) = torch.autograd.grad(wanted, rows)
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_replay_draws_old_procedures_where_they_were():
    generator = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(3, 8, generator=generator)
    names = ["a", "b", TEXT]
    classes = [Class(name) for name in names for _ in range(40)]
    x = means.repeat_interleave(40, 0) + torch.randn(120, 8, generator=generator)
    replay = Replay(collect(classes, (x,), 2), 0, 0.1, {"a": 4, "b": 7})
    states, rows = replay.draw(400, generator)
    assert set(rows.tolist()) == {4, 7}
    for row, mean in ((4, means[0]), (7, means[1])):
        assert torch.allclose(states[rows == row].mean(0), mean, atol=0.6)
    assert replay.count(2, 4) == 32 and replay.count(40, 4) == 80
    many = [Class(str(i)) for i in range(9) for _ in range(2)]
    more = Replay(collect(many, (torch.randn(18, 8),), 2), 0, 0.1, {str(i): i for i in range(9)})
    assert more.count(40, 2) == 180, "of an old procedure as many as of a new one"


@pytest.mark.parametrize("init", ["mean", "text", "orthogonal", "hidden", "from:old"])
def test_where_rows_start(init):
    from memtoken_cli.data.procedures import Procedure

    backbone = family("llama")
    old = Bank((Row("old"),), torch.randn(1, 2, backbone.dims.width), Meta(tokens=2))
    made = [Procedure("one", "what one is"), Procedure("two", "", "do two of them")]
    rows = initial.control_rows(backbone, made, 2, init, 0, old, 1)
    assert rows.shape == (2, 2, backbone.dims.width) and bool(rows.isfinite().all())
    assert torch.equal(rows, initial.control_rows(backbone, made, 2, init, 0, old, 1))
    alone = initial.control_rows(backbone, made[1:], 2, init, 0, old, 2)
    assert torch.allclose(rows[1:], alone, atol=1e-5)  # a row does not depend on its company
    if init == "orthogonal":
        flat = rows.flatten(0, 1)
        gram = flat @ flat.T
        assert torch.allclose(gram, torch.diag(gram.diag()), atol=1e-4)
    if init == "text":
        ids = Prompts(backbone.tokenizer).response("do two of them")
        x = vocab.embed(backbone, torch.tensor(ids))
        assert torch.allclose(rows[1, 0], x[: len(ids) // 2].mean(0), atol=1e-6)
    if init == "from:old":
        assert torch.equal(rows[0], old.control_PkE[0])


def test_the_mean_embedding():
    backbone = family("gemma3")
    table = backbone.model.get_input_embeddings()(torch.arange(backbone.dims.vocab))
    mean, spread, length = initial.embeddings(backbone)
    assert torch.allclose(mean, table.mean(0), atol=1e-5)
    assert spread == pytest.approx(float(table.std(0, unbiased=False).mean()), rel=1e-4)
    assert length == pytest.approx(float(table.norm(dim=1).mean()), rel=1e-4)


def test_a_head_that_does_more_is_refused():
    backbone = tiny_llama(seed=5)
    backbone.model.lm_head.register_forward_hook(lambda module, args, out: out * 2 + 1)
    with pytest.raises(DataError, match="does more"):
        vocab.head(backbone)
