"""window, sink and full against one forward over everything with a banded mask, in logits and gradients."""

import pytest
import torch
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2

from memtoken_cli.engine.between import between
from memtoken_cli.engine.turn import Turning, turns
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt.cached import SINKS, Cached, KeysValues, Tokens
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.network import Network
from memtoken_cli.methods.rmt.places import additive
from memtoken_cli.methods.rmt.policy import select, stack

S, M = 6, 3
W = S + M
NEAR = {"atol": 1e-4, "rtol": 1e-4}
MODELS = {"llama": tiny_llama, "qwen2": tiny_qwen2, "mha": lambda: tiny_llama(kv_heads=4)}


def policy(backbone, kind, segment=S, slots=M):
    return Cached(Network(backbone), Config(policy=kind, segment=segment, slots=slots))


def some_ids(rows, length, seed=0):
    return torch.randint(4, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def read(made, ids_BT, state=None):
    """Logits of all positions, segment by segment, and the last state."""
    state = made.start(len(ids_BT)) if state is None else state
    out = []
    for start in range(0, ids_BT.shape[1], made.size):
        part = ids_BT[:, start : start + made.size]
        count_B = torch.full((len(part),), part.shape[1])
        logits, state = made.segment(part, count_B, state, torch.arange(part.shape[1]))
        out.append(logits)
    return torch.cat(out, 1), state


def banded(backbone, ids_BT, window, sinks=0):
    """One forward over everything: a token sees `window` tokens and the first `sinks`."""
    T = ids_BT.shape[1]
    q, k = torch.arange(T)[:, None], torch.arange(T)
    sees = (k <= q) & ((q - k < window) | (k < sinks))
    x = backbone.model.get_input_embeddings()(ids_BT)
    mask = additive(sees[None], backbone.dtype)
    position = torch.arange(T).expand(len(ids_BT), -1)
    return Network(backbone).run(x, position, mask, torch.arange(T))[1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [5, 6, 9, 23, 60])
@torch.no_grad()
def test_window_equals_a_banded_mask_over_everything(name, length):
    backbone = MODELS[name]()
    ids = some_ids(2, length)
    made = policy(backbone, "window")
    assert isinstance(made.store, KeysValues)
    logits, state = read(made, ids)
    torch.testing.assert_close(logits, banded(backbone, ids, W), **NEAR)
    assert state[0].shape[3] == W - 1
    assert state[2].tolist() == [min(length, W - 1)] * 2
    if length > W:
        assert not torch.allclose(logits, banded(backbone, ids, W + 1), **NEAR)


@torch.no_grad()
def test_every_layer_has_its_own_turns():
    """Gemma's sliding layers turn by another base than the others."""
    backbone = tiny_gemma3(window=W)
    ids = some_ids(1, 40)
    torch.testing.assert_close(read(policy(backbone, "window"), ids)[0], banded(backbone, ids, W), **NEAR)


@torch.no_grad()
def test_one_layer_window_equals_reading_the_window_again():
    backbone = tiny_llama(layers=1)
    ids = some_ids(1, 31)
    logits, _ = read(policy(backbone, "window"), ids)
    for t in range(31):
        seen = ids[:, max(0, t - W + 1) : t + 1]
        again = backbone.model(input_ids=seen).logits[:, -1]
        torch.testing.assert_close(logits[:, t], again, atol=1e-4, rtol=1e-4)


def rolled(backbone, ids_1T, capacity, sinks):
    """One layer: before each segment the kept tokens are read again at the places they have in the cache."""
    out = []
    for start in range(0, ids_1T.shape[1], S):
        before = ids_1T[:, :start]
        if start > capacity:
            before = torch.cat([before[:, :sinks], before[:, start - (capacity - sinks) :]], 1)
        part = ids_1T[:, start : start + S]
        both = torch.cat([before, part], 1)
        out.append(banded(backbone, both, W, sinks)[:, before.shape[1] :])
    return torch.cat(out, 1)


@torch.no_grad()
def test_sinks_stand_at_the_first_places_and_the_window_behind_them():
    backbone = tiny_llama(layers=1)
    ids = some_ids(1, 50)
    made = policy(backbone, "sink")
    logits, state = read(made, ids)
    capacity = SINKS + W - 1
    torch.testing.assert_close(logits, rolled(backbone, ids, capacity, SINKS), **NEAR)
    assert state[0].shape[3] == capacity
    # what the sinks hold is what they held at first, to the bit
    first = read(made, ids[:, :S])[1]
    assert torch.equal(state[0][:, :, :, :SINKS], first[0][:, :, :, :SINKS])


@torch.no_grad()
def test_a_deep_sink_equals_keeping_what_the_layers_read():
    """The oracle keeps each layer's inputs and lets the layer make keys of them at their places of now."""
    backbone = tiny_llama(layers=3)
    network, capacity = Network(backbone), SINKS + W - 1
    ids = some_ids(1, 50)
    kept, out = [torch.zeros(1, 0, 32)] * 3, []
    for start in range(0, 50, S):
        part, old, new = ids[:, start : start + S], kept[0].shape[1], []

        def enter(layer, h, kept=kept, old=old, new=new):
            new.append(torch.cat([kept[layer], h[:, old:]], 1))
            return new[-1]

        x = torch.cat([torch.zeros(1, old, 32), network.embed(part)], 1)
        T = x.shape[1]
        q, k = torch.arange(T)[:, None], torch.arange(T)
        sees = (k <= q) & ((q - k < W) | (k < SINKS))
        with between(network.layers, enter):
            mask = additive(sees[None], torch.float32)
            out.append(network.run(x, torch.arange(T)[None], mask, torch.arange(old, T))[1])
        if capacity < T:
            new = [torch.cat([h[:, :SINKS], h[:, T - W + 1 :]], 1) for h in new]
        kept = new
    torch.testing.assert_close(read(policy(backbone, "sink"), ids)[0], torch.cat(out, 1), **NEAR)


@torch.no_grad()
def test_before_anything_falls_out_sink_is_full():
    backbone = tiny_llama()
    ids = some_ids(2, SINKS + W + 1)
    a, b = read(policy(backbone, "sink"), ids)[0], read(policy(backbone, "full"), ids)[0]
    torch.testing.assert_close(a[:, :-1], b[:, :-1], **NEAR)
    assert not torch.allclose(a[:, -1], b[:, -1], **NEAR)


@torch.no_grad()
def test_a_sink_keeps_positions_small():
    """Thousands of tokens in a context of a few dozen."""
    backbone = tiny_llama(context=SINKS + W - 1 + S)
    logits, state = read(policy(backbone, "sink"), some_ids(1, 1200))
    assert logits.isfinite().all()
    assert state[2].tolist() == [SINKS + W - 1]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_qwen2])
@torch.no_grad()
def test_full_is_a_plain_forward(make):
    backbone = make()
    ids = some_ids(2, 40)
    logits, state = read(policy(backbone, "full"), ids)
    torch.testing.assert_close(logits, backbone.model(input_ids=ids).logits, **NEAR)
    assert state[2].tolist() == [40, 40]


def test_full_ends_where_the_context_does():
    backbone = tiny_gpt2(context=20)
    made = policy(backbone, "full")
    _, state = read(made, some_ids(1, 18))
    with pytest.raises(DataError, match="24 tokens does not fit the model's 20"):
        read(made, some_ids(1, 6), state)
    at = made.open(state, 1)
    made.feed(at, some_ids(1, 2))
    with pytest.raises(DataError, match="21 tokens"):
        made.feed(at, some_ids(1, 1))


@torch.no_grad()
def test_padding_columns_at_the_end_of_the_context_are_no_tokens():
    """A nearly full row beside one that still has much room."""
    backbone = tiny_gpt2(context=20)
    made = policy(backbone, "full")
    ids = some_ids(2, 18)
    state = stack([read(made, ids[:1])[1], read(made, ids[1:, :6])[1]])
    more = some_ids(2, 6, seed=1)
    logits, state = made.segment(more, torch.tensor([2, 6]), state, torch.arange(6))
    torch.testing.assert_close(
        logits[0, :2], backbone.model(input_ids=torch.cat([ids[0], more[0, :2]])[None]).logits[0, 18:], **NEAR
    )
    assert state[2].tolist() == [20, 12]


@torch.no_grad()
def test_learned_positions_read_the_window_again():
    backbone = tiny_gpt2()
    made = policy(backbone, "window")
    assert isinstance(made.store, Tokens)
    ids = some_ids(2, 32)
    logits, state = read(made, ids)
    for start in range(0, 32, S):
        low = max(0, start - W + 1)
        expected = banded(backbone, ids[:, low : start + S], W)[:, start - low :]
        torch.testing.assert_close(logits[:, start : start + S], expected, **NEAR)
    assert torch.equal(state[0], ids[:, -(W - 1) :])


def test_sinks_need_relative_positions():
    with pytest.raises(UsageError, match="relative positions") as caught:
        policy(tiny_gpt2(), "sink")
    assert "window" in caught.value.hint


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(UsageError, match=r"14 columns .* 13 positions"):
        policy(tiny_gpt2(context=13), "window")
    with pytest.raises(UsageError, match="reaches 9 tokens back, the model's sliding window 8"):
        policy(tiny_gemma3(window=8), "window")
    assert policy(tiny_gemma3(window=9), "window").span.window == 9
    with pytest.raises(UsageError, match="sink reaches 18"):
        policy(tiny_gemma3(window=9), "sink")


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("window", tiny_llama),
        ("sink", tiny_llama),
        ("full", tiny_llama),
        ("window", tiny_gpt2),
        ("full", tiny_gpt2),
    ],
)
@torch.no_grad()
def test_rows_of_unequal_counts_equal_single_rows(kind, make):
    made = policy(make(), kind)
    counts = torch.tensor([[6, 2, 0], [6, 0, 3], [1, 6, 6], [0, 6, 2], [6, 6, 5], [6, 0, 6]])
    ids = some_ids(3, int(counts.sum()))
    together, alone = made.start(3), [made.start(1) for _ in range(3)]
    for t, count_B in enumerate(counts):
        part = ids[:, t * S : (t + 1) * S].masked_fill(torch.arange(S) >= count_B[:, None], 0)
        before = together
        logits, together = made.segment(part, count_B, together, torch.arange(S))
        for b, n in enumerate(count_B.tolist()):
            if n == 0:
                for old, new in zip(select(before, [b]), select(together, [b]), strict=True):
                    size = old.shape[3] if old.dim() == 5 else None
                    assert torch.equal(new if size is None else new[:, :, :, :size], old)
                continue
            own, alone[b] = made.segment(part[b : b + 1, :n], count_B[b : b + 1], alone[b], torch.arange(n))
            torch.testing.assert_close(logits[b, :n], own[0], **NEAR)
    for a, b in zip(together, stack(alone), strict=True):
        torch.testing.assert_close(a, b, **NEAR)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("window", tiny_llama),
        ("sink", tiny_llama),
        ("full", tiny_llama),
        ("window", tiny_gpt2),
        ("full", tiny_gpt2),
    ],
)
@pytest.mark.parametrize("chunks", [(1,) * S, (2, 3, 1), (4, 1)])
@torch.no_grad()
def test_a_segment_piece_by_piece(kind, make, chunks):
    made = policy(make(), kind)
    ids = some_ids(3, 40)
    # rows that hold unequally much
    state = stack([read(made, ids[b : b + 1, :n])[1] for b, n in enumerate((3, 25, 12))])
    text = ids[:, -sum(chunks) :]
    count_B = torch.full((3,), sum(chunks))
    whole, after = made.segment(text, count_B, state, torch.arange(sum(chunks)))
    at = made.open(state, 3)
    parts = []
    for i, part in enumerate(text.split(chunks, 1)):
        logits = made.feed(at, part, wanted=i != 1)
        assert (logits is None) == (i == 1)
        parts.append(torch.full((3, part.shape[1], 64), torch.nan) if logits is None else logits)
    fed = torch.cat(parts, 1)
    torch.testing.assert_close(fed, whole.masked_fill(fed.isnan(), torch.nan), equal_nan=True, **NEAR)
    for a, b in zip(made.close(at), after, strict=True):
        torch.testing.assert_close(a, b, **NEAR)


@torch.no_grad()
def test_an_empty_segment_changes_nothing():
    for kind in ("window", "sink", "full"):
        made = policy(tiny_llama(), kind)
        state = read(made, some_ids(2, 20))[1]
        assert all(torch.equal(a, b) for a, b in zip(made.close(made.open(state, 2)), state, strict=True))


@pytest.mark.parametrize(("kind", "length"), [("window", 21), ("full", 21), ("window", 5)])
def test_gradients_flow_through_what_is_kept(kind, length):
    backbone = tiny_llama()
    parameters = [p.requires_grad_() for p in backbone.model.parameters()]
    ids = some_ids(2, length)
    weight = torch.randn(2, length, 64, generator=torch.Generator().manual_seed(3))
    made = policy(backbone, kind)
    assert not made.start(1)[0].requires_grad
    window = length if kind == "full" else W
    expected = torch.autograd.grad((banded(backbone, ids, window) * weight).sum(), parameters)
    found = torch.autograd.grad((read(made, ids)[0] * weight).sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3 * float(b.abs().max()), rtol=1e-3)


def test_no_slots_and_segments_of_one_token():
    backbone = tiny_llama()
    ids = some_ids(1, 7)
    with torch.no_grad():
        alone, state = read(policy(backbone, "window", segment=1, slots=0), ids)
        torch.testing.assert_close(alone, banded(backbone, ids, 1), **NEAR)
        assert state[0].shape[3] == 0
        pairs, _ = read(policy(backbone, "window", segment=1, slots=2), ids)
        torch.testing.assert_close(pairs, banded(backbone, ids, 3), **NEAR)


@pytest.mark.parametrize("distance", [0, 1, 5, 6, 7, 12])
def test_turns_of_any_distance_are_made_of_powers_of_two(distance):
    backbone = tiny_qwen2()
    turning = Turning.of(backbone, 12, 9)
    assert len(turning.powers) == 4
    expected = turns(backbone, distance) if distance else [torch.eye(8)] * 2
    for a, b in zip(turning.by(distance), expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_trained_weights_leave_the_turns_as_they_are():
    backbone = tiny_llama()
    made = policy(backbone, "window")
    with torch.no_grad():
        for p in backbone.model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        ids = some_ids(1, 40)
        torch.testing.assert_close(read(made, ids)[0], banded(backbone, ids, W), **NEAR)


def test_they_have_nothing_to_train():
    made = policy(tiny_llama(), "sink")
    assert made.parameters() == {}
    assert (made.size, made.training) == (S, False)
