"""Which tokens are kept: totals are exact, the sink stays, caps hold, and scale does not decide."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.methods.compact.budget import FLOOR, adaptive, uniform


def drawn(seed: int, layers: int = 3, heads: int = 2, t: int = 40) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(heads, t, generator=generator) ** 6 for _ in range(layers)]


def kept(chosen: list[list[torch.Tensor]]) -> list[int]:
    return [len(head) for layer in chosen for head in layer]


cases = st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.integers(4, 60))


@given(cases, st.data())
def test_every_kind_of_budget_is_spent_to_the_last_token(case, data):
    seed, layers, heads, t = case
    slots = data.draw(st.integers(1, t))
    scores = drawn(seed, layers, heads, t)
    every = {
        "uniform": uniform(scores, slots),
        "adaptive": adaptive(scores, slots),
        "adashare": adaptive(scores, slots, share="head"),
        "capped": adaptive(scores, slots, cap=data.draw(st.floats(1, 3))),
    }
    for name, chosen in every.items():
        assert sum(kept(chosen)) == layers * heads * slots, name
        for layer in chosen:
            for head in layer:
                assert head.tolist() == sorted(set(head.tolist())), name
                assert head[0] == 0 and head[-1] < t, name


@given(cases, st.data())
def test_no_head_holds_more_than_the_cap(case, data):
    seed, layers, heads, t = case
    slots, cap = data.draw(st.integers(1, t)), data.draw(st.floats(1, 3))
    assert max(kept(adaptive(drawn(seed, layers, heads, t), slots, cap=cap))) <= cap * slots


def test_a_cap_of_one_is_the_uniform_budget():
    scores = drawn(3)
    for a, b in zip(adaptive(scores, 7, cap=1.0), uniform(scores, 7), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_cap_holds_where_a_short_layer_cannot_take_the_rest():
    scores = [torch.rand(2, 5), torch.rand(2, 100)]
    chosen = adaptive(scores, 20, cap=1.5)
    assert kept(chosen) == [5, 5, 30, 30]
    assert sum(kept(adaptive(scores, 20))) == 80
    assert kept(uniform(scores, 20)) == [5, 5, 20, 20]


def test_uniform_takes_the_best():
    score = torch.tensor([[0.0, 5.0, 1.0, 9.0, 2.0]])
    assert uniform([score], 3)[0][0].tolist() == [0, 1, 3]
    assert uniform([score], 9)[0][0].tolist() == [0, 1, 2, 3, 4]


def test_adaptive_takes_the_globally_largest_after_each_heads_floor():
    rich = torch.ones(1, 20)
    poor = torch.full((1, 20), 1e-6)
    chosen = adaptive([torch.cat([rich, poor])], 10)
    assert kept(chosen) == [20 - int(FLOOR * 10), int(FLOOR * 10)] == [17, 3]


def test_a_heads_floor_is_its_best_tokens():
    score = torch.full((2, 20), 1e-9)
    score[1, [4, 9, 17]] = torch.tensor([3e-9, 2e-9, 4e-9])
    score[0] = 1.0
    assert adaptive([score], 10)[0][1].tolist() == [0, 4, 9, 17]


def test_a_layers_scale_does_not_matter_but_a_heads_does():
    scores = drawn(5)
    louder = [scores[0] * 1e4, *scores[1:]]
    same = zip(adaptive(scores, 8), adaptive(louder, 8), strict=True)
    assert all(torch.equal(a, b) for x, y in same for a, b in zip(x, y, strict=True))
    head = [torch.cat([scores[0][:1] * 1e4, scores[0][1:]]), *scores[1:]]
    assert kept(adaptive(head, 8)) != kept(adaptive(scores, 8))
    assert kept(adaptive(head, 8, share="head")) == kept(adaptive(scores, 8, share="head"))


def test_equal_scores_go_to_the_earlier_token():
    chosen = adaptive([torch.ones(2, 10)], 4)
    assert [head.tolist() for head in chosen[0]] == [[0, 1, 2, 3, 4, 5, 6], [0]]
    assert [head.tolist() for head in adaptive([torch.ones(1, 10)], 4, cap=1)[0]] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("value", [0.0, float("inf")])
def test_useless_scores_still_spend_the_budget(value):
    scores = [torch.full((2, 12), value)]
    assert sum(kept(adaptive(scores, 3))) == 6
