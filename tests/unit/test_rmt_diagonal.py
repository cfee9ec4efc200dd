"""Diagonal batching against one segment after the other: logits, states, gradients, and when it is used."""

import pytest
import torch
from rmt_policies import FAMILIES, made
from tiny import tiny_llama
from torch import nn

from memtoken_cli.data.streams import IGNORE, Sequences
from memtoken_cli.engine.stream import Bptt
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt import diagonal, learn
from memtoken_cli.methods.rmt.diagonal import Diagonal, rule
from memtoken_cli.methods.rmt.diagonal_group import Group, Unlike, instead

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}


def whole(B=3, N=5, S=4, seed=0):
    return torch.randint(4, 64, (B, N, S), generator=torch.Generator().manual_seed(seed))


def one_by_one(policy, ids_BNS, state):
    """(logits [B,N,S,V], the last state)"""
    B, N, S = ids_BNS.shape
    found = []
    for t in range(N):
        logits, state = policy.segment(ids_BNS[:, t], torch.full((B,), S), state, torch.arange(S))
        found.append(logits)
    return torch.stack(found, 1), state


def begun(policy, ids_BNS):
    """States in the midst of a text; of armt, only one row knows that it has written."""
    with torch.no_grad():
        _, state = one_by_one(policy, ids_BNS[:, :2].flip(0), policy.start(len(ids_BNS)))
    if len(state) == 3:
        return (*state[:2], torch.arange(len(ids_BNS)) == 1)
    fresh = policy.start(len(ids_BNS))  # gradients reach the first row's
    return (torch.cat([fresh[0][:1], state[0][1:]]),)


def loss(logits, state):
    """Depends on every number, and on each differently."""
    floats = [x for x in (logits, *state) if x.is_floating_point()]
    return sum(
        (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum() / len(x) for x in floats
    )


def gradients(leaves):
    found = {name: p.grad for name, p in leaves.items()}
    for p in leaves.values():
        p.grad = None
    return found


def same(a, b, close):
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if x.is_floating_point():
            scale = max([1.0, *y.detach().abs().flatten().tolist()])
            torch.testing.assert_close(x, y, atol=close * scale, rtol=0)
        else:
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("config", [{}, {"mask": "blocks", "positions": "contiguous"}], ids=["", "blocks"])
@pytest.mark.parametrize("policy", ["prmt", "armt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_by_one(family, policy, config, dtype):
    of = made(family, dtype, policy=policy, diagonal="on", **config)
    way, ids = Diagonal(of.policy), whole()
    state, every = begun(of.policy, ids), torch.ones_like(ids, dtype=torch.bool)
    expected, ended = one_by_one(of.policy, ids, state)
    loss(expected, ended).backward()
    wanted = gradients(of.leaves)
    logits, end = way.logits(ids, begun(of.policy, ids), every)
    assert way.reason is None
    same([logits.unflatten(0, ids.shape), *end], [expected, *ended], CLOSE[dtype])
    loss(logits.unflatten(0, ids.shape), end).backward()
    found = gradients(of.leaves)
    used = [name for name, g in wanted.items() if g is not None]
    assert len(used) > 10 and all(found[name] is not None for name in used)
    same([found[name] for name in used], [wanted[name] for name in used], CLOSE[dtype])


@pytest.mark.parametrize("segments", [2, 3, 4, 9])
@pytest.mark.parametrize("policy", ["prmt", "armt"])
def test_deep_and_shallow(policy, segments):
    """More layers than segments, as many, and fewer."""
    of = made(tiny_llama(layers=4), policy=policy, diagonal="on", state_norm="none", gate_z=True, segment=3)
    ids = whole(2, segments, 3)
    with torch.no_grad():
        expected, ended = one_by_one(of.policy, ids, of.policy.start(2))
        logits, end = Diagonal(of.policy).logits(
            ids, of.policy.start(2), torch.ones_like(ids, dtype=torch.bool)
        )
    same([logits.unflatten(0, ids.shape), *end], [expected, *ended], 1e-5)


@pytest.mark.parametrize("segments", [1, 4])
def test_only_what_is_wanted(segments):
    of = made(policy="armt", diagonal="on")
    way, ids = Diagonal(of.policy), whole(3, segments)
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    with torch.no_grad():
        expected, ended = one_by_one(of.policy, ids, of.policy.start(3))
        for mask in (wanted, torch.zeros_like(wanted)):
            logits, end = way.logits(ids, of.policy.start(3), mask)
            same([logits, *end], [expected[mask], *ended], 1e-5)
        logits, end = way.logits(ids, of.policy.start(3), None)
    assert logits is None
    same(end, ended, 1e-5)


def spied(monkeypatch):
    """How many segments each grouped run had."""
    sizes, steps = [], Diagonal._steps

    def spy(self, x_NBTE, *args):
        sizes.append(len(x_NBTE))
        return steps(self, x_NBTE, *args)

    monkeypatch.setattr(Diagonal, "_steps", spy)
    return sizes


@pytest.mark.parametrize("policy", ["prmt", "armt"])
def test_read_in_blocks(policy, monkeypatch):
    monkeypatch.setattr(diagonal, "BLOCK", 2)  # four segments at once
    of = made(policy=policy, diagonal="on")
    ids, sizes = whole(2, 9), spied(monkeypatch)
    found = Diagonal(of.policy).read(ids, of.policy.start(2))
    assert sizes == [2, 4, 4]  # a check, eight, and the last one by itself
    with torch.no_grad():
        same(found, one_by_one(of.policy, ids, of.policy.start(2))[1], 1e-5)
    assert not any(x.requires_grad for x in found)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("policy", ["prmt", "armt"])
def test_arriving_text_has_one_reading(policy, rows):
    """To the bit, however many segments come at once."""
    of = made(tiny_llama(layers=4), policy=policy)
    way, ids = Diagonal(of.policy), whole(rows, 12)
    with torch.no_grad():
        if not way.arriving(rows):
            pytest.skip("this machine rounds a group otherwise")
        _, expected = one_by_one(of.policy, ids, of.policy.start(rows))
    for parts in ([12], [1] * 12, [2, 7, 3], [5, 1, 6]):
        state = of.policy.start(rows)
        for part in ids.split(parts, 1):
            state = way.read(part, state)
        assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True)), parts


def scored(of, lengths, mode, bptt="full"):
    """(scores, gradients) of right-padded rows whose every token is scored."""
    T = max(lengths)
    ids_BT = torch.randint(4, 64, (len(lengths), T), generator=torch.Generator().manual_seed(2))
    ids_BT[torch.arange(T) >= torch.tensor(lengths)[:, None]] = 0
    none = torch.full_like(ids_BT, IGNORE)
    part = Sequences(ids_BT, torch.tensor(lengths), none, torch.zeros(len(lengths), dtype=torch.int64))
    of.policy.config = of.config.model_copy(update={"diagonal": mode})
    way = Diagonal(of.policy)
    told = learn.scores(of.policy, part, of.policy.config, Bptt.parse(bptt), torch.device("cpu"), way)
    if told.total.requires_grad:
        told.total.backward()
    return told, gradients(of.leaves)


@pytest.mark.parametrize("align", ["left", "right"])
@pytest.mark.parametrize("loss", ["all", "last:1", "last:3"])
@pytest.mark.parametrize("lengths", [(16, 16), (19, 17), (19, 9), (19, 3)])
def test_scores(lengths, loss, align):
    """Equal rows, short tails, and rows that end early: from there on one segment after the other."""
    of = made(policy="armt", loss=loss, align=align)
    (a, found), (b, wanted) = scored(of, lengths, "on"), scored(of, lengths, "off")
    assert a.count == b.count > 0 and a.right == b.right
    same([a.total], [b.total], 1e-5)
    assert found.keys() == wanted.keys()
    pairs = [(g, wanted[name]) for name, g in found.items() if wanted[name] is not None]
    assert len(pairs) > 10
    for x, y in pairs:
        same([x], [y], 1e-5)


def test_used_where_gradients_flow_through_all(monkeypatch):
    sizes = spied(monkeypatch)
    of = made(policy="prmt")
    for bptt, lengths, expected in (
        ("full", (19, 17), [2, 4]),  # a check, and the four segments that are full in both rows
        ("full", (19, 3), []),
        ("full", (7, 7), []),  # one alone
        ("last:1", (19, 17), []),
        ("replay", (19, 17), []),
    ):
        sizes.clear()
        scored(of, lengths, "on", bptt)
        assert sizes == expected, (bptt, lengths)
    sizes.clear()
    with torch.no_grad():
        scored(of, (19, 17), "on", "last:1")
    assert sizes == [2, 4]


def test_rule():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert rule(cpu, 1, 128, 128) and not rule(cpu, 2, 65, 64) and not rule(cpu, 1, 24, 129)
    assert rule(cuda, 4, 1024, 2048) and not rule(cuda, 5, 1024, 64)


def test_auto_follows_the_rule():
    of = made(policy="prmt")  # 8 columns, width 32
    way = Diagonal(of.policy)
    assert way.wanted(16, 4) and not way.wanted(17, 4) and not way.wanted(16, 3)
    assert way.arriving(16) and not way.arriving(17)
    of.policy.config = of.config.model_copy(update={"diagonal": "on"})
    assert way.wanted(17, 2) and not way.wanted(17, 1)
    of.policy.config = of.config.model_copy(update={"diagonal": "off"})
    assert not way.wanted(1, 9)
    assert Diagonal.of(made(policy="rmt").policy) is None and Diagonal.of(of.policy) is not None


def test_auto_reads_arriving_text_only_to_the_bit():
    of = made(policy="prmt")
    way = Diagonal(of.policy)
    assert way.reason is None
    way._exact = {1: False, 2: True}
    assert way.wanted(1, 4) and not way.arriving(1) and way.arriving(2)
    of.policy.config = of.config.model_copy(update={"diagonal": "on"})
    assert way.arriving(1)


def test_frozen_weights_are_held_once():
    of = made(policy="armt", diagonal="on")
    of.backbone.model.requires_grad_(False)
    for p in of.parameters.values():
        p.requires_grad_(False)
    way, ids = Diagonal(of.policy), whole()
    every = torch.ones_like(ids, dtype=torch.bool)

    def check():
        logits, end = way.logits(ids, of.policy.start(3), every)
        expected, ended = one_by_one(of.policy, ids, of.policy.start(3))
        same([logits.unflatten(0, ids.shape), *end], [expected, *ended], 1e-5)
        return logits

    first = check()
    layers = list(of.backbone.layers)
    for name, held in way.group.stacked.held.items():
        own = [layer.get_parameter(name) for layer in layers]
        assert [p.data_ptr() for p in own] == [row.data_ptr() for row in held]
    assert len(way.group.stacked.held) == len(list(layers[0].parameters()))
    assert layers[1].mlp.up_proj.weight.is_leaf and isinstance(layers[1].mlp.up_proj.weight, nn.Parameter)
    layers[1].mlp.up_proj.weight.mul_(2)  # in place
    second = check()
    layers[0].mlp.up_proj.weight.data = layers[0].mlp.up_proj.weight.data * 2  # in another place
    third = check()
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_weights_in_training_are_stacked_anew():
    of = made(policy="prmt", diagonal="on")
    way, ids = Diagonal(of.policy), whole()
    every = torch.ones_like(ids, dtype=torch.bool)
    for _ in range(2):
        logits, end = way.logits(ids, of.policy.start(3), every)
        expected, ended = one_by_one(of.policy, ids, of.policy.start(3))
        same([logits.unflatten(0, ids.shape), *end], [expected, *ended], 1e-5)
        loss(logits, end).backward()
        with torch.no_grad():
            for p in of.leaves.values():
                if p.grad is not None:
                    p -= 0.01 * p.grad / p.grad.norm().clamp(min=1e-9)
    assert not way.group.stacked.held


@pytest.mark.parametrize("policy", ["prmt", "armt"])
def test_lora(policy):
    pytest.importorskip("peft")
    from memtoken_cli.methods.rmt.lora import injected

    of = made(policy=policy, diagonal="on")
    of.backbone.model.requires_grad_(False)
    low = injected(of.backbone, 2)
    noise = torch.Generator().manual_seed(0)
    for p in low.values():
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    leaves = of.parameters | low
    ids = whole()
    expected, ended = one_by_one(of.policy, ids, of.policy.start(3))
    loss(expected, ended).backward()
    wanted = gradients(leaves)
    way = Diagonal(of.policy)
    logits, end = way.logits(ids, of.policy.start(3), torch.ones_like(ids, dtype=torch.bool))
    assert way.reason is None
    loss(logits.unflatten(0, ids.shape), end).backward()
    found = gradients(leaves)
    assert all(wanted[name].abs().max() > 0 for name in low)
    same([found[name] for name in leaves], [wanted[name] for name in leaves], 1e-5)


class Scaled(nn.Module):
    """Holds a weight in a way of its own."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.table


def narrow(layers):
    layers[1].mlp.up_proj = nn.Linear(32, 32, bias=False)
    layers[1].mlp.gate_proj = nn.Linear(32, 32, bias=False)
    layers[1].mlp.down_proj = nn.Linear(32, 32, bias=False)


def more(layers):
    layers[1].mlp.up_proj = nn.Linear(32, 64)


def tied(layers):
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight


def foreign(layers):
    for layer in layers:
        layer.mlp.act_fn = Scaled()


def steep(layers):
    layers[1].self_attn.scaling *= 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (narrow, "layers differ in mlp.gate_proj.weight"),
        (more, "layers differ in their parameters"),
        (tied, "layers share parameters"),
        (foreign, "a Scaled has no form"),
        (steep, "come out otherwise"),
    ],
)
def test_layers_that_do_not_go_together(change, text):
    """Their segments run one after the other, and the reason is told."""
    backbone = tiny_llama()
    change(backbone.layers)
    of = made(backbone, policy="prmt", diagonal="on")
    way = Diagonal(of.policy)
    assert text in way.reason and not way.wanted(1, 9) and not way.arriving(1)
    with pytest.raises(UsageError, match=text):
        way.logits(whole(), of.policy.start(3), None)
    (a, found), (b, wanted) = scored(of, (16, 16), "on"), scored(of, (16, 16), "off")
    assert torch.equal(a.total, b.total)
    assert all(g is wanted[name] or torch.equal(g, wanted[name]) for name, g in found.items())


def test_noise_and_dropout_are_drawn_segment_by_segment():
    of = made(policy="armt", diagonal="on", state_noise=0.1)
    way = Diagonal(of.policy)
    assert way.reason is None
    of.policy.training = True
    assert "state_noise" in way.reason and not way.wanted(1, 9)
    of.policy.training = False
    of.backbone.model.train()
    assert "dropout" in way.reason and not way.wanted(1, 9)


def test_the_check_leaves_no_trace():
    """Neither generators nor the policy's mode nor a gradient."""
    of = made(policy="prmt", diagonal="on")
    of.policy.training = True
    before = torch.random.get_rng_state()
    assert Diagonal(of.policy).reason is None
    assert torch.equal(before, torch.random.get_rng_state()) and of.policy.training
    assert all(p.grad is None for p in of.leaves.values())


def test_layers_are_themselves_after_an_error():
    backbone = tiny_llama()
    ids = torch.tensor([[5, 6]])
    expected = backbone.model(ids).logits

    def fails(_h, _calls):
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"), instead(backbone.layers, fails):
        backbone.model(ids)
    assert torch.equal(backbone.model(ids).logits, expected)
    own = backbone.layers[0].forward = backbone.layers[0].forward
    with instead(backbone.layers, lambda h, _calls: h):
        assert not torch.equal(backbone.model(ids).logits, expected)
    assert backbone.layers[0].forward is own and "forward" not in vars(backbone.layers[1])


def test_a_group_holds_no_copy_of_the_model():
    backbone = tiny_llama()
    group = Group(backbone.layers, backbone.model.config)
    assert not list(group.copy.parameters())
    with pytest.raises(Unlike):
        Group(nn.ModuleList([Scaled(), Scaled()]), backbone.model.config)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("policy", ["prmt", "armt"])
def test_on_a_gpu(policy):
    backbone = tiny_llama()
    backbone.model.cuda()
    of = made(backbone, policy=policy, diagonal="on")
    ids = whole().cuda()
    count, every = torch.full((3,), 4, device="cuda"), torch.arange(4, device="cuda")
    state, expected = of.policy.start(3), []
    for t in range(5):
        logits, state = of.policy.segment(ids[:, t], count, state, every)
        expected.append(logits)
    way = Diagonal(of.policy)
    logits, end = way.logits(ids, of.policy.start(3), torch.ones_like(ids, dtype=torch.bool))
    assert way.reason is None
    same([logits.unflatten(0, ids.shape), *end], [torch.stack(expected, 1), *state], 1e-4)
