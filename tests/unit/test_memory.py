"""The layout of a memory: ragged heads, what is picked, joined, written and read back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.engine.memory import LayerKV, Layers, Rows, Tokens, from_tensors, join
from memtoken_cli.io.errors import DataError


def layer(sizes, seed=0, bias=True, pos=True, width=4):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    k_XD, v_XD = torch.randn(2, total, width, generator=generator)
    return LayerKV(
        k_XD,
        v_XD,
        tuple(sizes),
        torch.randn(total, generator=generator) if bias else None,
        torch.arange(total, dtype=torch.int32) if pos else None,
    )


def same(a: LayerKV, b: LayerKV) -> bool:
    pairs = [(a.k_XD, b.k_XD), (a.v_XD, b.v_XD), (a.bias_X, b.bias_X), (a.pos_X, b.pos_X)]
    alike = all((x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs)
    return alike and a.sizes == b.sizes


ragged = st.lists(st.integers(0, 5), min_size=2, max_size=2)


def test_heads_are_cut_at_their_sizes():
    kv = layer((2, 0, 3))
    heads = list(kv.heads())
    assert [k.shape[0] for k, *_ in heads] == [2, 0, 3]
    assert torch.equal(heads[2][0], kv.k_XD[2:]) and torch.equal(heads[2][1], kv.v_XD[2:])
    assert torch.equal(heads[0][2], kv.bias_X[:2]) and heads[2][3].tolist() == [2, 3, 4]
    assert [head[2:] for head in layer((1, 1), bias=False, pos=False).heads()] == [(None, None)] * 2


def test_take_picks_within_each_head():
    kv = layer((3, 4))
    taken = kv.take([torch.tensor([2, 0]), torch.tensor([1])])
    assert taken.sizes == (2, 1) and taken.pos_X.tolist() == [2, 0, 4]
    for x, whole in ((taken.k_XD, kv.k_XD), (taken.v_XD, kv.v_XD), (taken.bias_X, kv.bias_X)):
        assert torch.equal(x, whole[[2, 0, 4]])
    assert same(LayerKV.from_heads([k for k, *_ in kv.heads()], [v for _, v, *_ in kv.heads()]),
                replace(kv, bias_X=None, pos_X=None))  # fmt: skip


def test_moving_keeps_biases_and_positions_exact():
    kv = layer((3, 2)).to(dtype=torch.bfloat16)
    assert (kv.k_XD.dtype, kv.v_XD.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (kv.bias_X.dtype, kv.pos_X.dtype) == (torch.float32, torch.int32)


@given(st.lists(ragged, min_size=1, max_size=3), st.booleans(), st.booleans(), st.integers(0, 99))
def test_tensors_and_back(sizes, bias, pos, position):
    memory = Layers(tuple(layer(s, i, bias, pos) for i, s in enumerate(sizes)), position)
    back = from_tensors("layers", memory.tensors(), position)
    assert isinstance(back, Layers) and back.next_position == position
    assert all(same(a, b) for a, b in zip(memory.layers, back.layers, strict=True))
    assert back.slots == sum(map(sum, sizes)) / (2 * len(sizes))


def test_bytes_are_what_the_tokens_need():
    memory = Layers((layer((3, 2), bias=True, pos=False).to(dtype=torch.bfloat16),), 9)
    assert memory.nbytes == 5 * (2 * 4 * 2 + 4) + 2 * 4  # keys, values, bias; sizes: nothing padded
    assert Tokens("prefix", torch.zeros(3, 8)).nbytes == 3 * 8 * 4


@pytest.mark.parametrize("gone", ["layers.sizes_LN", "layers.0.k_XD", "layers.1.v_XD"])
def test_a_missing_tensor_is_named(gone):
    tensors = Layers((layer((1, 2)), layer((2, 2))), 5).tensors()
    del tensors[gone]
    with pytest.raises(DataError, match=gone):
        from_tensors("layers", tensors)


@pytest.mark.parametrize("short", ["k_XD", "v_XD", "bias_X", "pos_X"])
def test_a_tensor_that_does_not_fit_is_refused(short):
    tensors = Layers((layer((1, 2)),), 5).tensors()
    tensors[f"layers.0.{short}"] = tensors[f"layers.0.{short}"][:-1]
    with pytest.raises(DataError, match="layer's"):
        from_tensors("layers", tensors)


def test_empty():
    memory = Layers.empty(2, 3, 4)
    assert (memory.slots, memory.next_position, memory.layers[1].sizes) == (0, 0, (0, 0, 0))
    assert same(from_tensors("layers", memory.tensors()).layers[0], memory.layers[0])


def test_join_lays_heads_side_by_side():
    a, b = Layers((layer((1, 2), 0),), 40), Layers((layer((3, 1), 1),), 30)
    found = join([a, b])
    kv = found.layers[0]
    assert found.next_position == 40 and kv.sizes == (4, 3)
    for n, head in enumerate(kv.heads()):
        for part, *parts in zip(head, *(list(m.layers[0].heads())[n] for m in (a, b)), strict=True):
            assert torch.equal(part, torch.cat(parts))


def test_join_counts_no_bias_as_zero_and_wants_every_position():
    a, b = Layers((layer((1, 2), 0, bias=False),), 4), Layers((layer((2, 2), 1, pos=False),), 4)
    kv = join([a, b]).layers[0]
    assert kv.pos_X is None
    first, second = b.layers[0].bias_X.view(2, 2).tolist()
    assert kv.bias_X.tolist() == [0.0, *first, 0.0, 0.0, *second]
    assert join([a, a]).layers[0].bias_X is None
    assert same(join([b]).layers[0], b.layers[0])


@pytest.mark.parametrize(
    "other",
    [
        Layers((layer((1, 2)), layer((1, 2))), 4),
        Layers((layer((1, 2, 3)),), 4),
        Layers((layer((1,)),), 4),
        Layers((layer((1, 2), width=6),), 4),
    ],
)
def test_memories_of_different_models_do_not_join(other):
    with pytest.raises(DataError, match="different models"):
        join([Layers((layer((1, 2)),), 4), other])


def test_plain_tokens():
    memory = Tokens("cross", torch.randn(2, 8), ("a", "b"))
    back = from_tensors("cross", memory.tensors(), names=("a", "b"))
    assert isinstance(back, Tokens) and back.names == ("a", "b") and back.slots == 2
    assert torch.equal(back.tokens_MD, memory.tokens_MD)
    beside = Tokens("cross", torch.zeros(2, 4), ("a", "b"), {"at": torch.arange(3, dtype=torch.int32)})
    back = from_tensors("cross", beside.tensors(), names=("a", "b"))
    assert isinstance(back, Tokens) and back.kept["at"].tolist() == [0, 1, 2]
    assert back.nbytes == beside.nbytes == 2 * 4 * 4 + 3 * 4
    with pytest.raises(DataError, match="cannot be called tokens_MD"):
        Tokens("cross", torch.zeros(1, 4), (), {"tokens_MD": torch.zeros(1)})
    with pytest.raises(DataError, match="2 memory tokens but 1 names"):
        Tokens("prefix", torch.zeros(2, 4), ("a",))
    for port in ("layers", "vocab", "window"):
        with pytest.raises(DataError, match=port):
            Tokens(port, torch.zeros(2, 4))
    with pytest.raises(DataError, match="tokens_MD"):
        from_tensors("prefix", {})


def test_rows_beside_the_vocabulary():
    kept = {"eoc": torch.randn(1, 8), "count": torch.ones(3, dtype=torch.float64)}
    memory = Rows(("a", "b"), torch.randn(2, 3, 8), kept)
    assert (memory.port, memory.slots, memory.nbytes) == ("vocab", 2, 4 * (2 * 3 * 8 + 8) + 8 * 3)
    back = from_tensors("vocab", memory.tensors(), names=("a", "b"))
    assert isinstance(back, Rows) and back.names == ("a", "b") and back.kept.keys() == kept.keys()
    assert torch.equal(back.control_PkE, memory.control_PkE) and torch.equal(back.kept["eoc"], kept["eoc"])
    assert from_tensors("vocab", Rows((), torch.zeros(0, 1, 8)).tensors()).slots == 0
    with pytest.raises(DataError, match="3 names for control rows"):
        from_tensors("vocab", memory.tensors(), names=("a", "b", "c"))
    with pytest.raises(DataError, match="control"):
        from_tensors("vocab", kept, names=("a",))
    with pytest.raises(DataError, match="cannot be called control"):
        Rows(("a",), torch.zeros(1, 1, 4), {"control": torch.zeros(1)})
