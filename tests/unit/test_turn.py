"""Memories in a row: moved keys are those of the later place, and what cannot be moved is left alone."""

import pytest
import torch
from tiny import tiny_gpt2, tiny_llama
from tiny_prompt import family, ids

from memtoken_cli.engine.memory import Layers, join
from memtoken_cli.engine.packed import Packed
from memtoken_cli.engine.turn import ROOM, in_a_row, moved, turns

ROTARY = ("gqa", "mqa", "qkv-bias", "sliding", "softcap", "sinks")
FIRST, SECOND, QUERY = "where is my card", "rate now? euro", "a pin is"


def same(a: Layers, b: Layers) -> None:
    assert a.next_position == b.next_position
    for x, y in zip(a.layers, b.layers, strict=True):
        assert x.sizes == y.sizes
        torch.testing.assert_close(x.k_XD, y.k_XD, atol=1e-3, rtol=1e-3)
        assert torch.equal(x.v_XD, y.v_XD)
        assert (x.pos_X is None) == (y.pos_X is None)
        assert x.pos_X is None or torch.equal(x.pos_X, y.pos_X)


def says(backbone, memory, text=QUERY):
    packed = Packed.rows([ids(backbone, text)], memory.next_position)
    with torch.no_grad():
        return backbone.run(packed, memory, torch.arange(len(packed.ids_F)))


@pytest.mark.parametrize("name", ROTARY)
def test_a_moved_memory_is_read_as_before(name):
    backbone = family(name)
    memory = backbone.prefill(ids(backbone, FIRST))
    there = moved(backbone, memory, 100)
    assert there.next_position == memory.next_position + 100
    torch.testing.assert_close(says(backbone, there), says(backbone, memory), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(there.layers[1].k_XD, memory.layers[1].k_XD, atol=0.1)
    unmoved = Layers(memory.layers, there.next_position)
    assert not torch.allclose(says(backbone, unmoved), says(backbone, memory), atol=2e-3)


@pytest.mark.parametrize("name", ROTARY)
def test_first_layer_keys_are_the_models_own_at_that_place(name):
    """A row of memories has, in its first layer, the keys of one prompt: there nothing has read anything.
    Only the later ones' sinks are missing."""
    backbone = family(name)
    parts = [ids(backbone, text) for text in (FIRST, SECOND, FIRST)]
    whole = backbone.prefill([token for part in parts for token in part]).layers[0]
    found = in_a_row(backbone, [backbone.prefill(part) for part in parts])
    assert found.next_position == sum(map(len, parts))
    starts = {len(parts[0]), len(parts[0]) + len(parts[1])}
    for (k_TD, *_), (k_MD, *_) in zip(whole.heads(), found.layers[0].heads(), strict=True):
        begin = found.next_position - len(k_TD)
        stay = [t for t in range(len(k_TD)) if t + begin not in starts]
        torch.testing.assert_close(k_MD[-len(stay) :], k_TD[stay], atol=1e-3, rtol=1e-3)
        if begin == 0:
            assert len(k_MD) == len(stay)


def test_a_window_that_lost_the_sink_gives_up_nothing_more():
    backbone = family("sliding")
    first, second = (backbone.prefill(ids(backbone, text)) for text in (FIRST, SECOND))
    window, whole = in_a_row(backbone, [first, second]).layers
    assert window.sizes[0] == first.layers[0].sizes[0] + second.layers[0].sizes[0]
    assert whole.sizes[0] == first.layers[1].sizes[0] + second.layers[1].sizes[0] - 1
    assert window.pos_X[: window.sizes[0]].tolist()[-1] == first.next_position + second.next_position - 1


def test_learned_positions_do_not_turn():
    backbone = tiny_gpt2()
    assert turns(backbone, 5) is None
    a, b = (backbone.prefill(ids(backbone, text)) for text in (FIRST, SECOND))
    same(in_a_row(backbone, [a, b]), join([a, b]))


def test_a_row_that_leaves_the_context_is_laid_side_by_side():
    backbone = tiny_llama(context=ROOM + 29)
    a, b = (backbone.prefill(ids(backbone, text)) for text in (FIRST, SECOND))
    same(in_a_row(backbone, [a, b]), join([a, b]))
    roomy = tiny_llama(context=ROOM + 30)
    assert len(ids(backbone, FIRST + SECOND)) == 30 and in_a_row(roomy, [a, b]).next_position == 30
