"""Behaviour of published code that is not inherited. Every test has a small copy of it, shows that the copy
fails a check, and that the policy passes the same one."""

import gc
import weakref

import pytest
import torch
from rmt_policies import gentle, made, rows, run
from tiny import tiny_gpt2
from torch import nn
from torch.nn.functional import cross_entropy

from memtoken_cli.data.streams import IGNORE, Sequences
from memtoken_cli.engine import stream
from memtoken_cli.engine.between import between
from memtoken_cli.engine.stream import Bptt, Window
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.learn import scores
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.session import Session

S, N = 4, 4
CPU = torch.device("cpu")


def segments(of, ids_BT, told=None):
    """A stream's segment as `engine/stream.py` takes it: the loss of every next token inside it."""

    def segment(t, state):
        part = ids_BT[:, t * S : (t + 1) * S]
        logits, state = of.policy.segment(part, torch.full((len(part),), S), state, torch.arange(S))
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        if told is not None:
            told.append(loss.detach())
        return state, loss

    return segment


def detached(state):
    return tuple(x.detach() for x in state)


def test_a_helper_that_rebinds_its_argument_truncates_nothing():
    """The wrapper's manage_gradients."""
    of, ids = made(), torch.arange(4, 20)[None]

    def manage_gradients(memory_state, seg_num, k2):
        if seg_num == 0 or seg_num + k2 > N:
            return
        memory_state = memory_state.detach()

    def reaches_the_first_segment(loss):
        table = of.backbone.model.get_input_embeddings().weight
        return bool(torch.autograd.grad(loss, table)[0][ids[0, :S]].any())

    state = of.policy.start(1)
    for t in range(N):
        state, loss = segments(of, ids)(t, state)
        manage_gradients(state[0], t, 1)
    assert reaches_the_first_segment(loss)

    def last(t, state):
        state, loss = segments(of, ids)(t, state)
        return state, loss if t == N - 1 else None

    assert not reaches_the_first_segment(stream.run(last, of.policy.start(1), N, Bptt("last", 1)).total)


def test_a_window_is_run_again_from_its_own_memory():
    """The NeurIPS trainer's BPTT-k runs the last k segments again from the newest memory."""
    of, ids, told = made(), torch.tensor(rows((S * N,))), []
    with torch.no_grad():
        stream.run(segments(of, ids, told), of.policy.start(1), N)
    state = of.policy.start(1)
    with torch.no_grad():
        for t in range(N - 1):
            state, _ = segments(of, ids)(t, state)
    state = detached(state)
    for t in range(N - 2, N):
        state, published = segments(of, ids)(t, state)
    assert abs(published - told[-1]) > 1e-3

    window = Window(1)
    for t in range(N):
        first = max(0, t - 1)

        def newest(i, state, t=t, first=first):
            state, loss = segments(of, ids)(first + i, state)
            return state, loss if first + i == t else None

        fresh = [torch.tensor([i == 0]) for i in range(first, t + 1)]
        found = window.step(newest, of.policy.start(1), fresh)
        window.advance()
        torch.testing.assert_close(found.total.detach(), told[t])


class Alive(torch.autograd.Function):
    """Counts the graphs held at once."""

    now = most = 0

    @staticmethod
    def forward(ctx, x):
        if ctx.needs_input_grad[0]:
            Alive.now += 1
            Alive.most = max(Alive.most, Alive.now)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        Alive.now -= 1
        return g


def test_replay_holds_one_graph_and_its_own_labels_and_the_whole_state():
    """A third-party memory replay: graphs stay alive, `labels` is overwritten, and a Transformer-XL cache is
    missing in the first pass."""
    of, ids = made(policy="xl"), torch.tensor(rows((S * N, S * N)))
    labels = ids.roll(-1, 1)
    cuts = cut(torch.full((2,), S * N), S, "left")

    def loss_of(t, state, target):
        part = cuts.take(ids, t, 0)
        logits, state = of.policy.segment(part, torch.full((2,), S), state, torch.arange(S))
        return state, Alive.apply(cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))

    def published(state, labels):
        states = [state]
        with torch.no_grad():
            for t in range(N):
                seg_labels = labels = cuts.take(labels, t, IGNORE)
                state, _ = loss_of(t, state, seg_labels)
                state = of.policy.start(2)  # the cache goes no further
                states.append(state)
        losses = []
        for t in reversed(range(N)):
            _, loss = loss_of(t, states[t], cuts.take(labels, t, IGNORE))
            losses.append(loss)
        total = torch.stack(losses).sum()
        total.backward()
        return total.detach()

    def own(t, state):
        return loss_of(t, state, cuts.take(labels, t, IGNORE))

    expected = sum(loss_of_t for loss_of_t in _forward(own, of.policy.start(2)))
    Alive.now = Alive.most = 0
    assert abs(published(of.policy.start(2), labels) - expected) > 1e-2
    assert Alive.most == N
    Alive.now = Alive.most = 0
    found = stream.run(own, of.policy.start(2), N, Bptt("replay"))
    torch.testing.assert_close(found.total, expected)
    assert Alive.most == 1 and Alive.now == 0


@torch.no_grad()
def _forward(segment, state):
    losses = []
    for t in range(N):
        state, loss = segment(t, state)
        losses.append(loss)
    return losses


@torch.no_grad()
def published_generation(of, prompt, count):
    """`[M ; prompt ; M]`, the continuation behind the write tokens, to any length."""
    memory, embed = of.parameters["memory.init_MD"], of.backbone.model.get_input_embeddings()
    x, ids, logits = torch.cat([memory, embed(prompt[0]), memory]), [], []
    for _ in range(count):
        logits.append(of.backbone.model(inputs_embeds=x[None]).logits[0, -1])
        ids.append(int(logits[-1].argmax()))
        x = torch.cat([x, embed(torch.tensor(ids[-1:]))])
    return torch.tensor([ids]), torch.stack(logits)


@torch.no_grad()
def own_generation(of, prompt, count):
    session = Session.of(of.backbone, of.policy)
    logits = [session.feed(prompt)[0]]
    for _ in range(count - 1):
        logits.append(session.feed(logits[-1].argmax()[None, None])[0])
    return torch.stack(logits).argmax(-1)[None], torch.stack(logits), session


def test_a_continuation_follows_its_prompt_and_crosses_boundaries():
    of, prompt = made(), torch.tensor(rows((3,)))

    def off(ids, logits):
        """The largest differences from teacher forcing, inside the prompt's segment and behind it."""
        (expected,), _ = run(of, [[*prompt[0].tolist(), *ids[0, :-1].tolist()]])
        error = (logits - expected[2:]).abs().amax(1)
        return error[:2].max().item(), error[2:].max().item()

    inside, behind = off(*published_generation(of, prompt, 8))
    assert inside > 1e-2 and behind > 1e-2
    ids, logits, session = own_generation(of, prompt, 8)
    inside, behind = off(ids, logits)
    assert inside < 1e-5 and behind < 1e-5
    assert not torch.equal(session.state[0], of.policy.start(1)[0]), "the memory goes on behind the prompt"
    assert session.n_B.tolist() == [(3 + 7) % S]


def test_a_new_token_costs_one_column():
    """ARMT's newest class runs the whole open segment again for each."""
    of, prompt = made("llama", policy="armt", segment=32), torch.tensor(rows((16,)))
    columns = []

    def noted(layer, h):
        if layer == 0:
            columns.append(h.shape[1])
        return h

    with torch.no_grad(), between(of.backbone.layers, noted):
        text = prompt
        for _ in range(8):
            n = torch.tensor([text.shape[1]])
            logits, _ = of.policy.segment(text, n, of.policy.start(1), n - 1)
            text = torch.cat([text, logits[:, -1].argmax(-1)[None]], 1)
        assert min(columns) > 16 and len(columns) == 8
        columns.clear()
        ids, _, _ = own_generation(of, prompt, 8)
    assert sum(columns) == 16 + 7 and columns[-7:] == [1] * 7
    assert torch.equal(ids, text[:, 16:])


def test_streams_do_not_share_a_state():
    """A state in the module's attributes is that of whoever came last."""
    of = made(policy="armt")

    class Published:
        state = of.policy.start(1)

        def feed(self, ids):
            logits, Published.state = of.policy.segment(
                ids, torch.tensor([S]), Published.state, torch.arange(S)
            )
            return logits[:, -1]

    def interleaved(a, b):
        parts = [torch.tensor(rows((S, S, S), seed=i)) for i in (0, 1)]
        for t in range(3):
            logits = [one.feed(ids[t : t + 1]) for one, ids in zip((a, b), parts, strict=True)]
        return logits, [[x.tolist() for x in ids] for ids in parts]

    with torch.no_grad():
        for make, shared in ((Published, True), (lambda: Session.of(of.backbone, of.policy), False)):
            logits, parts = interleaved(make(), make())
            for found, ids in zip(logits, parts, strict=True):
                (expected,), _ = run(of, [[x for part in ids for x in part]])
                assert ((found[0] - expected[-1]).abs().max() > 1e-3) == shared


def test_no_hidden_state_of_an_earlier_segment_is_kept():
    """Published: output_hidden_states=True, all layers of all segments joined at the end."""
    of = made()

    def alive(keep):
        made_so_far, kept, state = [], [], of.policy.start(1)

        def note(layer, h):
            made_so_far.append(weakref.ref(h))
            if keep:
                kept.append(h)

        with torch.no_grad(), between(of.backbone.layers, leave=note):
            for t in range(6):
                ids = torch.tensor(rows((S,), seed=t))
                logits, state = of.policy.segment(ids, torch.tensor([S]), state, torch.arange(S))
        del logits
        gc.collect()
        return sum(ref() is not None for ref in made_so_far)

    assert alive(keep=True) == 6 * 2
    assert alive(keep=False) == 0


def test_no_slots_are_not_an_empty_slice():
    of, ids = made(slots=0), torch.tensor(rows((S,)))
    m = 0
    with torch.no_grad():
        out = of.backbone.model(input_ids=ids).logits
        assert out[:, m:-m].shape[1] == 0  # published
        logits, state = of.policy.segment(ids, torch.tensor([S]), of.policy.start(1), torch.arange(S))
    assert torch.equal(logits, out) and state == ()


@pytest.mark.parametrize("policy", ["rmt", "armt"])
def test_pads_write_nothing_and_rows_begin_by_themselves(policy):
    """Published: pads are text, and the first segment is one flag of the whole batch."""
    of = made(policy=policy, align="right")
    ids = rows((8, 3))
    alone, _ = run(of, ids[1:])

    def published():
        padded = torch.tensor([ids[0], [0] * 5 + ids[1]])
        state = of.policy.start(2)
        for part in padded.split(S, 1):
            logits, state = of.policy.segment(part, torch.full((2,), S), state, torch.arange(S))
        return logits[1, -3:]

    with torch.no_grad():
        assert (published() - alone[0]).abs().max() > 1e-3
        torch.testing.assert_close(run(of, ids)[0][1], alone[0], atol=1e-5, rtol=1e-5)


def test_a_loss_of_unequal_segments_weighs_tokens():
    """Published: a mean of the segments' means."""
    of, ids = made(), rows((S + 2,))
    part = Sequences(
        torch.tensor(ids), torch.tensor([S + 2]), torch.tensor([[*ids[0][1:], IGNORE]]), torch.zeros(1).long()
    )
    with torch.no_grad():
        found = scores(of.policy, part, of.config, Bptt(), CPU)
        (logits,), _ = run(of, ids)
        each = cross_entropy(logits[:-1], torch.tensor(ids[0][1:]), reduction="none")
    published = (each[:S].mean() + each[S:].mean()) / 2
    assert abs(found.total / found.count - published) > 1e-3
    torch.testing.assert_close(found.total / found.count, each.mean())


def test_a_new_armt_adds_no_random_positions():
    """Published: `wpe` with m more rows, of random values, where the memory stands."""

    def states(wrap):
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            backbone = gentle(tiny_gpt2(context=16))
            if wrap:
                old, new = backbone.model.transformer.wpe, nn.Embedding(18, 32)
                new.weight.data[:16] = old.weight.data
                backbone.model.transformer.wpe, backbone.model.config.n_positions = new, 18
            config = Config(policy="armt", segment=S, slots=2, positions="wrapped" if wrap else "pinned")
            policy = policy_for(backbone, config, seed=5)
            with torch.no_grad():
                ids = torch.tensor(rows((S,)))
                found.append(policy.segment(ids, torch.tensor([S]), policy.start(1), None)[1][1])
            rows_of_it = backbone.model.transformer.wpe.num_embeddings
        return (found[0] - found[1]).abs().max().item(), rows_of_it

    difference, places = states(wrap=True)
    assert difference > 1e-3 and places == 18
    assert states(wrap=False) == (0.0, 16)
