"""Training rows: the fast loss against whole sequences through a resized model, the frozen, resuming."""

import hashlib
import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import save, tiny_gemma3, tiny_llama, tiny_qwen2
from tiny_bank import Run
from tiny_prompt import weights_hash
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from memtoken_cli.data.chains import Call, Chain
from memtoken_cli.data.procedures import Procedure, Sample
from memtoken_cli.engine import vocab
from memtoken_cli.engine.models import load as load_model
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem import adapter
from memtoken_cli.methods.tokmem import train as training
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import Config, TrainConfig
from memtoken_cli.methods.tokmem.examples import IGNORE, Example, Segment, blocks_of, layout
from memtoken_cli.methods.tokmem.features import Frozen
from memtoken_cli.methods.tokmem.learn import Block, Item, Learning
from memtoken_cli.methods.tokmem.loss import alike
from memtoken_cli.methods.tokmem.material import Material
from memtoken_cli.methods.tokmem.plan import plan
from memtoken_cli.methods.tokmem.pool import Pool
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.statistics import TEXT
from memtoken_cli.methods.tokmem.trials import RATES
from memtoken_cli.recipe.schema import load

FAMILIES = {"llama": tiny_llama, "qwen2": tiny_qwen2, "gemma3": tiny_gemma3}
QUERIES = ("where is it", "what a long question this is, or is it?", "where", "where was that?")
RESPONSES = ("here", "no", "a longer answer", "it is")


@cache
def family(name: str):
    return FAMILIES[name]()


def examples(backbone, chains: bool) -> list[Example]:
    prompts = Prompts(backbone.tokenizer)
    made = []
    for i, (query, said) in enumerate(zip(QUERIES, RESPONSES, strict=True)):
        segments = [Segment(i % 3, prompts.response(said))]
        if chains and i % 2:
            segments.append(Segment((i + 1) % 3, prompts.response("so")))
        made.append(Example(f"e{i}", "all", {"query": prompts.render(query)}, tuple(segments)))
    return made


def learning(name: str, config: Config, gib: float, tokens: int, chains: bool = True) -> Learning:
    """Three rows, the first of an old bank; examples are of all of them."""
    backbone = family(name)
    generator = torch.Generator().manual_seed(1)
    rows = 0.3 * torch.randn(3, tokens, backbone.dims.width, generator=generator)
    addresses = 0.3 * torch.randn(3, backbone.dims.width, generator=generator)
    pool = Pool(Frozen(backbone, config.features, gib), config)
    made = examples(backbone, chains)
    pool.read(made)
    apart = config.address == "decoupled"
    eoc = Parameter(0.3 * torch.randn(1, backbone.dims.width, generator=generator))
    guided = config.address == "lda" and config.segment_end == "eoc"
    return Learning(
        backbone,
        pool,
        config,
        TrainConfig(address_epochs=0) if apart else TrainConfig(),
        [Block((1, 2), Parameter(rows[1:]), made, [], Parameter(addresses[1:]) if apart else None)],
        rows[:1],
        eoc if config.segment_end == "eoc" else None,
        Prompts(backbone.tokenizer).end,
        0,
        1e-2,
        addresses[:1] if apart else None,
        Parameter(addresses) if guided else None,
    )


def parameters(task: Learning) -> dict[str, Parameter]:
    return dict(task.phases()[0].parameters)


def fast(task: Learning) -> tuple[float, dict[str, torch.Tensor]]:
    for x in parameters(task).values():
        x.requires_grad_(True)
        x.grad = None
    loss = task.items_loss([Item(e, "query") for e in task.blocks[0].examples], 0)
    (loss.total / loss.count).backward()
    return float(loss.total.detach() / loss.count), {n: x.grad.clone() for n, x in parameters(task).items()}


def naive(task: Learning) -> tuple[float, dict[str, torch.Tensor]]:
    """The paper's step: a model whose embedding and head have a row for every virtual id, whole sequences one
    by one, logits everywhere, queries masked; then the rows' gradients are read off the matrices."""
    backbone, config, k = task.backbone, task.config, task.tokens
    V, P = backbone.dims.vocab, 3
    model = deepcopy(backbone.model)
    with torch.no_grad():
        words = model.get_input_embeddings()(torch.arange(V))
        control = task.control(0).detach().flatten(0, 1)
        eoc = torch.zeros(1, words.shape[1]) if task.eoc_1E is None else task.eoc_1E.detach()
    embedding = Parameter(torch.cat([words, eoc, control]))
    routed, guided = config.address != "lda", task.next_PE is not None
    head = [model.get_output_embeddings().weight.detach(), eoc]
    if config.address == "coupled":
        head.append(task.control(0).detach()[:, 0])
    elif routed:
        head.append(task._addresses(0).detach())
    elif guided:
        head.append(task.next_PE.detach())
    head = Parameter(torch.cat(head))
    open_V = torch.ones(len(head), dtype=torch.bool)
    open_V[V] = task.eoc_1E is not None
    total, count = 0.0, 0
    for example in task.blocks[0].examples:
        targets = "all" if routed else "next" if guided else "words"
        laid = layout(example.segments, V, k, task.end, config.segment_end, targets)
        prompt = example.prompts["query"].ids
        ids = torch.tensor([*prompt, *laid.ids])
        labels = torch.tensor([IGNORE] * (len(prompt) - 1) + [laid.first, *laid.targets])
        h = model.get_decoder()(inputs_embeds=embedding[ids][None], use_cache=False).last_hidden_state[0]
        logits = (h @ head.T).masked_fill(~open_V, float("-inf"))
        if config.route_softmax == "bank" and routed:
            route = labels > V
            own = torch.arange(len(head)) > V
            shut = torch.where(route[:, None], ~own[None], own[None])
            logits = logits.masked_fill(shut, float("-inf"))
        each = cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE)
        weight = torch.where(labels > V, config.route_weight, 1.0) * (labels != IGNORE)
        total = total + (each * weight).sum()
        count = count + weight.sum()
    (total / count).backward()
    moved = {"control.0": embedding.grad[V + 1 :].view(P, k, -1)[1:].clone()}
    if config.address == "coupled":
        moved["control.0"][:, 0] += head.grad[V + 2 :]
    elif routed:
        moved["address.0"] = head.grad[V + 2 :]
    elif guided:
        moved["next"] = head.grad[V + 1 :]
    if task.eoc_1E is not None:
        moved["eoc"] = embedding.grad[V : V + 1] + head.grad[V : V + 1]
    return float(total.detach() / count), moved


CASES = [
    ("lda", "none", 1, "full"),
    ("lda", "eoc", 3, "full"),
    ("lda", "json", 3, "full"),
    ("coupled", "none", 1, "full"),
    ("coupled", "eoc", 1, "full"),
    ("coupled", "eoc", 3, "bank"),
    ("coupled", "none", 3, "full"),
    ("decoupled", "eoc", 1, "bank"),
    ("decoupled", "eoc", 3, "full"),
    ("decoupled", "none", 1, "full"),
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("gib", [0.0, 1.0], ids=["split", "cached"])
@pytest.mark.parametrize(("address", "ends", "tokens", "softmax"), CASES)
def test_10_the_fast_loss_and_its_gradients_are_the_naive_ones(name, gib, address, ends, tokens, softmax):
    config = Config(
        address=address,
        segment_end=ends,
        tokens=tokens,
        route_softmax=softmax,
        prompt="query",
        route_weight=0.7,
    )
    task = learning(name, config, gib, tokens)
    loss, found = fast(task)
    wanted_loss, wanted = naive(task)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    for key, x in wanted.items():
        assert float(x.norm()) > 0, key
        assert float((found[key] - x).norm() / x.norm()) <= 1e-5, key


def test_prompts_share_what_they_begin_with_and_are_kept():
    kept = learning("llama", Config(prompt="query"), 1.0, 1)
    pieces = [p.kept.pieces for p in kept.pool.found.values()]
    assert all(len(piece) == 2 and piece[0] is pieces[0][0] for piece in pieces)
    split = learning("llama", Config(prompt="query"), 0.0, 1)
    assert all(p.kept is None for p in split.pool.found.values())


def test_which_rows_share_a_forward():
    assert alike([]) == [] and alike([5]) == [[0]]
    assert alike([9, 9, 9]) == [[0, 1, 2]]
    lengths = [100, 8, 20, 104, 10, 60]
    assert [[lengths[i] for i in rows] for rows in alike(lengths)] == [[8, 10, 20], [60], [100, 104]]


def test_rows_in_forwards_of_their_own_teach_what_they_teach_together(monkeypatch):
    task = learning("llama", Config(prompt="query", segment_end="eoc", address="coupled"), 1.0, 2)
    forwards, found = [], []
    for padded in (0, 10**6):
        monkeypatch.setattr("memtoken_cli.methods.tokmem.loss.PADDED", padded)
        forwards.append(len(alike([len(task.layout(e, 0).ids) for e in task.blocks[0].examples])))
        found.append(fast(task))
    assert forwards[0] > forwards[1] == 1
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for key, x in found[0][1].items():
        assert float((found[1][1][key] - x).norm() / x.norm()) <= 1e-5, key


def test_a_sample_does_not_feel_its_batch():
    task = learning("llama", Config(prompt="query", segment_end="eoc"), 1.0, 1)
    items = [Item(e, "query") for e in task.blocks[0].examples]
    together = task.items_loss(items, 0)
    alone = [task.items_loss([item], 0) for item in items]
    assert float(together.total.detach()) == pytest.approx(
        sum(float(x.total.detach()) for x in alone), rel=1e-5
    )
    assert together.count == sum(x.count for x in alone)


def test_the_backbone_and_old_rows_stay_as_they_are():
    before = weights_hash(family("llama"))
    task = learning("llama", Config(address="coupled", prompt="query"), 1.0, 1)
    _, gradients = fast(task)
    assert weights_hash(family("llama")) == before
    assert all(p.grad is None for p in family("llama").model.parameters())
    assert task.old_PkE.grad is None
    assert all(float(x.norm()) > 0 for x in gradients.values())


def test_what_each_token_must_be_followed_by():
    two = [Segment(0, (7, 8)), Segment(2, (9,))]
    routed = layout(two, 64, 1, 2, "none", "all")
    assert routed.ids == (65, 7, 8, 67, 9)
    assert (routed.first, *routed.targets) == (65, 7, 8, 67, 9, 2)
    closed = layout(two, 64, 1, 2, "none", "words")
    assert (closed.first, *closed.targets) == (IGNORE, 7, 8, 2, 9, 2)
    ended = layout(two, 64, 2, 2, "eoc", "all")
    assert ended.ids == (65, 66, 7, 8, 64, 69, 70, 9, 64)
    assert (ended.first, *ended.targets) == (65, IGNORE, 7, 8, 64, 67, IGNORE, 9, 64, 2)
    assert ended.ends == ((range(2, 4), 4), (range(7, 8), 8))
    guided = layout(two, 64, 2, 2, "eoc", "next")
    assert (guided.ids, guided.first, guided.targets) == (ended.ids, IGNORE, ended.targets)
    apart = layout(two, 64, 2, 2, "eoc", "words")
    assert (apart.first, *apart.targets) == (IGNORE, IGNORE, 7, 8, 64, IGNORE, IGNORE, 9, 64, IGNORE)


def test_the_end_row_learns_what_comes_next_in_the_first_block_alone():
    task = learning("llama", Config(prompt="query", segment_end="eoc"), 1.0, 1)
    assert set(task.phases()[0].parameters) == {"control.0", "eoc", "next"}
    chain = next(e for e in task.blocks[0].examples if len(e.segments) > 1)
    second, vocabulary = chain.segments[1].row, family("llama").dims.vocab
    assert vocabulary + 1 + second in task.layout(chain, 0).targets
    assert max(task.layout(chain, 1).targets) == vocabulary, "the end of a segment, and no procedure"
    assert task.table(0).address_AE is task.next_PE and task.table(1).address_AE is None
    loss = task.items_loss([Item(chain, "query")], 0)
    assert loss.metrics["routing"][1] == len(chain.segments) - 1


def test_blocks():
    assert [len(b) for b in blocks_of(3, 7)] == [3, 2, 2]
    assert blocks_of((4, 3), 7) == [range(4), range(4, 7)]
    with pytest.raises(DataError):
        blocks_of((4, 4), 7)


def test_virtual_ids_are_looked_up_and_scored():
    backbone = family("llama")
    rows = torch.randn(4, backbone.dims.width)
    V = backbone.dims.vocab
    x = vocab.embed(backbone, torch.tensor([3, V, V + 3]), rows)
    assert torch.equal(x[1:], rows[[0, 3]])
    assert torch.equal(x[0], backbone.model.get_input_embeddings().weight[3])
    h = torch.randn(2, backbone.dims.width)
    logits = vocab.logits(backbone, h, rows)
    assert torch.allclose(logits[:, V:], h @ rows.T)
    assert torch.allclose(logits[:, :V], backbone.model.get_output_embeddings()(h))


OPERATIONS = {
    "upper": lambda w: w[::-1],
    "twice": lambda w: w + w[:1],
    "first": lambda w: w[:1],
    "last": lambda w: w[-1:] + "a",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model folder and a folder of four procedures."""
    folder = tmp_path_factory.mktemp("tokmem")
    model = save(tiny_llama(), folder / "model")
    data = folder / "data"
    data.mkdir()
    words = [a + b + c for a in "abc" for b in "de" for c in "fg"]
    for name, operation in OPERATIONS.items():
        head = {"procedure": name, "description": f"the {name}", "instruction": f"do the {name} of it"}
        rows = [{"input": f"{name[0]} {w}", "output": operation(w)} for w in words]
        (data / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in [head, *rows]))
    return model, data, folder


RECIPE = """
method: tokmem
model: {{name: {model}}}
data: {{path: {data}, blocks: 2}}
tokmem: {{}}
train: {{epochs: 2, batch: 4, save_every: 3, log_every: 2}}
"""


def recipe(places, *overrides: str):
    model, data, folder = places
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, data=data))
    return load(path, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("tokmem.address=coupled", "tokmem.renorm=paper", "tokmem.route_softmax=bank"),
        ("tokmem.address=decoupled", "tokmem.tokens=2", "train.address_epochs=2"),
        ("data.chains=6", "tokmem.segment_end=eoc", "train.cache_gib=0"),
        ("data.chains=6", "tokmem.segment_end=eoc", "tokmem.lda.following=states"),
        ("tokmem.address=decoupled", "data.chains=6", "tokmem.segment_end=eoc", "train.address_epochs=2"),
        ("tokmem.lda.project=8", "tokmem.lda.keep_features=true", "tokmem.init=orthogonal"),
        ("tokmem.init=hidden", "tokmem.lda.scatter=frozen", "tokmem.prompt=query"),
    ],
    ids=["lda", "coupled", "decoupled", "chains", "states", "decoupled-chains", "project", "hidden"],
)
def test_an_interrupted_run_ends_in_the_same_bytes(places, tmp_path, monkeypatch, overrides):
    asked = recipe(places, *overrides)
    whole = training.train(asked, Run(tmp_path / "whole"))
    calls = {"n": 0}
    step = Learning.observe

    def dies(self, at, means):
        calls["n"] += 1
        if calls["n"] in (5, 9):
            raise RuntimeError("the machine dies")
        return step(self, at, means)

    monkeypatch.setattr(Learning, "observe", dies)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            training.train(asked, Run(tmp_path / "dying"))
    path = training.train(asked, Run(tmp_path / "dying"))
    assert path.read_bytes() == whole.read_bytes()
    assert (tmp_path / "dying/events.jsonl").read_bytes() == (tmp_path / "whole/events.jsonl").read_bytes()
    bank = Bank.load(path)
    assert bank.names == ("first", "last", "twice", "upper")
    assert [row.samples for row in bank.rows] == [row.samples for row in bank.rows if row.samples > 5]
    assert all(row.score is not None for row in bank.rows)
    assert bank.sites["first"].procedures == set(OPERATIONS)
    chained = "data.chains=6" in overrides and bank.meta.address == "lda"
    behind = {"boundary"} if "tokmem.lda.following=states" in overrides else set()
    assert set(bank.sites) == ({"first", "several", *behind} if chained else {"first"})
    counted = [float(bank.sites[kind].count_C.sum()) for kind in ("first", "several")[: 1 + chained]]
    assert not chained or 0 < counted[1] <= 6 < counted[0]


def rows_of(bank: Bank, name: str) -> bytes:
    i = bank.index(name)
    return bank.control_PkE[i].numpy().tobytes()


@pytest.mark.parametrize("address", ["lda", "coupled", "decoupled"])
def test_adding_to_a_bank_leaves_its_rows_and_its_file(places, tmp_path, address):
    said = (f"tokmem.address={address}", "data.blocks=1")
    old = training.train(recipe(places, *said, 'data.tasks=["first","last"]'), Run(tmp_path / "old"))
    digest = hashlib.sha256(old.read_bytes()).hexdigest()
    more = (*said, f"tokmem.bank={old}", 'data.tasks=["twice","upper"]')
    new = training.train(recipe(places, *more), Run(tmp_path / "new"))
    assert hashlib.sha256(old.read_bytes()).hexdigest() == digest
    before, after = Bank.load(old), Bank.load(new)
    assert after.names == ("first", "last", "twice", "upper")
    for name in before.names:
        assert before.same_row(after, name) and rows_of(before, name) == rows_of(after, name)
    if address == "lda":  # a closed form does not depend on what came first
        joint = Bank.load(training.train(recipe(places, "data.blocks=1"), Run(tmp_path / "joint")))
        for a, b in zip(joint.sites["first"].moments, after.sites["first"].moments, strict=True):
            assert torch.allclose(a.mean_CD, b.mean_CD, rtol=1e-9)
            assert torch.allclose(a.scatter_DD, b.scatter_DD, rtol=1e-9, atol=1e-9)


def test_a_name_that_is_there_already(places, tmp_path):
    old = training.train(
        recipe(places, "data.blocks=1", 'data.tasks=["first","last"]'), Run(tmp_path / "old")
    )
    again = ("data.blocks=1", f"tokmem.bank={old}", 'data.tasks=["last","upper"]')
    with pytest.raises(UsageError, match="'last' is in the bank already"):
        training.train(recipe(places, *again), Run(tmp_path / "error"))
    renamed = Bank.load(training.train(recipe(places, *again, "tokmem.on_clash=rename"), Run(tmp_path / "r")))
    assert renamed.names == ("first", "last", "last-2", "upper")
    assert rows_of(renamed, "last") == rows_of(Bank.load(old), "last")
    updated = Bank.load(training.train(recipe(places, *again, "tokmem.on_clash=update"), Run(tmp_path / "u")))
    assert updated.names == ("first", "last", "upper")
    assert rows_of(updated, "first") == rows_of(Bank.load(old), "first")
    assert rows_of(updated, "last") != rows_of(Bank.load(old), "last")
    assert updated.rows[1].samples == 2 * Bank.load(old).rows[1].samples


def test_what_an_old_bank_does_not_allow(places, tmp_path):
    alone = ("data.blocks=1", 'data.tasks=["first","last"]', "tokmem.lda.following=states")
    old = training.train(recipe(places, *alone), Run(tmp_path / "old"))
    for override, said in (
        ("tokmem.address=coupled", "address"),
        ("tokmem.tokens=2", "tokens"),
        ("tokmem.segment_end=eoc", "segment_end"),
        ("data.chains=3", "no chain"),
    ):
        more = ("data.blocks=1", f"tokmem.bank={old}", 'data.tasks=["twice","upper"]')
        asked = recipe(places, *more, "tokmem.lda.following=states", override)
        with pytest.raises(UsageError, match=said):
            training.train(asked, Run(tmp_path / said.replace(" ", "")))


def test_rows_learn_from_queries_for_one_where_queries_are_read_in_parts(places, tmp_path):
    """Chains tell what a query for several is like, and leave the rows as they are."""
    alone, chained, behind = (
        Bank.load(training.train(recipe(places, "data.blocks=1", *said), Run(tmp_path / str(i))))
        for i, said in enumerate(((), ("data.chains=6",), ("data.chains=6", "tokmem.lda.following=states")))
    )
    assert torch.equal(alone.control_PkE, chained.control_PkE)
    assert not torch.equal(alone.control_PkE, behind.control_PkE)
    assert set(chained.sites) - set(alone.sites) == {"several"}
    assert alone.parts() is not None and behind.parts() is None


def test_rates_and_tokens_are_chosen_by_validation(places, tmp_path):
    said = ("train.lr=find", "tokmem.tokens=auto", "train.epochs=1", "data.blocks=1")
    path = training.train(recipe(places, *said), Run(tmp_path / "run"))
    bank = Bank.load(path)
    assert bank.meta.tokens in (1, 4) and bank.meta.notes["lr"] in RATES
    assert len(list((tmp_path / "run/trials").iterdir())) == 10


def test_rows_that_are_not_trained():
    """Without a run directory: text rows, an address from a description alone, no step taken."""
    backbone = family("llama")
    maker = training.Maker(backbone, Config(init="text"), TrainConfig())
    sample = [Sample(f"ask {w}", (w,), "x:1") for w in "abcd"]
    procedures = (
        Procedure("plain", "it says so", "say it", tuple(sample[:3]), tuple(sample[3:])),
        Procedure("told", "another thing", described=True),
    )
    bank = maker.bank(Material(procedures, (range(2),), negatives=("what", "who")))
    assert bank.rows[1].described and bank.rows[1].score is None and bank.rows[0].score is None
    x = vocab.embed(backbone, torch.tensor(Prompts(backbone.tokenizer).response("say it"))).mean(0)
    assert torch.allclose(bank.control_PkE[0, 0], x, atol=1e-6)
    assert bank.sites["first"].procedures == {"plain", "told"} and set(bank.sites) == {"first", "text"}
    assert bank.sites["text"].procedures == {TEXT} and float(bank.sites["text"].count_C) == 2
    assert ("plain", "instruction+query") in bank.sites["first"].classes


def test_chains_belong_to_the_block_that_completes_them():
    backbone = family("llama")
    samples = tuple(Sample(f"q {w}", (w,), "x:1") for w in "abc")
    procedures = tuple(Procedure(name, train=samples) for name in ("one", "two"))
    chain = Chain("q a then q b", (Call("one", "a"), Call("two", "b")))
    found = Material(procedures, (range(1), range(1, 2)), (chain,))
    laid = plan(found, None, Config(segment_end="eoc"), Prompts(backbone.tokenizer), 64)
    assert [len(part.learned) for part in laid.parts] == [3, 4]
    assert laid.parts[1].learned[-1].rows == (0, 1)


def test_an_adapted_model_is_a_model_that_banks_are_made_for(places, tmp_path):
    pytest.importorskip("peft")
    said = ("data.blocks=1", 'data.tasks=["first","last"]', "tokmem.adapt.lr=1e-3", "tokmem.prompt=query")
    folder = training.train(recipe(places, *said, "train.epochs=4"), Run(tmp_path / "adapt"))
    assert folder == tmp_path / "adapt/model"
    adapted, before = load_model(str(folder), "cpu"), load_model(str(places[0]), "cpu")
    changed = [
        name
        for (name, a), b in zip(
            adapted.model.state_dict().items(), before.model.state_dict().values(), strict=True
        )
        if not torch.equal(a, b)
    ]
    assert changed and all("q_proj" in name or "v_proj" in name for name in changed)
    adapter.wear(before, tmp_path / "adapt/adapter")
    for name, x in adapted.model.state_dict().items():
        assert torch.equal(x, before.model.state_dict()[name])
    losses = [json.loads(line)["loss"] for line in (tmp_path / "adapt/events.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    path = training.train(
        recipe(places, "data.blocks=1", 'data.tasks=["twice","upper"]', f"model.name={folder}"),
        Run(tmp_path / "bank"),
    )
    assert Bank.load(path).model.fingerprint == adapted.fingerprint != before.fingerprint
    again = training.train(recipe(places, *said, "train.epochs=4"), Run(tmp_path / "again"))
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


RECIPES = Path(__file__).parents[2] / "recipes" / "tokmem"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_are_sound(path):
    given = [] if path.stem == "tiny" else ["data.path=somewhere"]
    asked = load(path, given)
    assert asked.method == "tokmem"
    if path.stem.startswith("paper"):
        assert asked.config.address == "coupled" and asked.config.renorm == "paper"
        assert asked.train.epochs == 1 and asked.train.lr == 0.005


def test_adapted_and_examined_tools_are_apart():
    told = [set(load(RECIPES / f"{name}.yaml", ["data.path=x"]).data.tasks) for name in ("adapt", "tools")]
    assert not told[0] & told[1] and len(told[0]) == 18 and len(told[1]) == 40
