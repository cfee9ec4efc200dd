"""Metrics of procedures' answers, on fixtures made by hand."""

import math

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from memtoken_cli.metrics.calibration import ece, fit_scale, nll
from memtoken_cli.metrics.calls import Call, allowed, by_number, canonical, f1, marks
from memtoken_cli.metrics.intervals import mean, paired
from memtoken_cli.metrics.rouge import exact, normal, rouge_l


@pytest.mark.parametrize(
    ("text", "reference"),
    [("the cats sat", "a cat was sitting"), ("", "nothing"), ("same", "same"), ("Über", "uber alles")],
)
def test_rouge_is_rouge_score_s(text: str, reference: str) -> None:
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(reference, text)["rougeL"].fmeasure
    assert rouge_l(text, [reference]) == theirs


def test_rouge_takes_the_best_reference() -> None:
    assert rouge_l("two dogs", ["a cat", "two dogs"]) == 1.0
    with pytest.raises(ValueError, match="reference"):
        rouge_l("x", [])


def test_stemming_is_on() -> None:
    assert rouge_l("running", ["runs"]) == 1.0


@pytest.mark.parametrize(
    ("text", "same"),
    [("New  York.", "new york"), ("don't", "Dont"), ("3.5", "35"), ("—yes—", "yes"), ("a b", "a\tb\n")],
)
def test_exact_match_ignores_case_marks_and_spaces(text: str, same: str) -> None:
    assert normal(text) == normal(same)
    assert exact(text, ["other", same])
    assert not exact(text + "x", [same])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ('{"b": 1, "a": 2}', '{"a": 2, "b": 1}'),
        ('{"n": 7}', '{"n": 7.0}'),
        ('{"n": [7, {"x": 1.0}]}', '{"n": [7.0, {"x": 1}]}'),
        ('{"s": " caf\\u00e9 "}', '{"s": "cafe\\u0301"}'),
        ('{"n": 1e2}', '{"n": 100}'),
    ],
)
def test_canonical_spellings_are_one(a: str, b: str) -> None:
    assert canonical(a) is not None
    assert canonical(a) == canonical(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ('{"n": 7}', '{"n": "7"}'),
        ('{"l": [1, 2]}', '{"l": [2, 1]}'),
        ('{"t": true}', '{"t": 1}'),
        ('{"t": null}', "{}"),
        ('{"s": "A"}', '{"s": "a"}'),
    ],
)
def test_canonical_keeps_what_differs(a: str, b: str) -> None:
    assert canonical(a) != canonical(b)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "7", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1} x', '{"a":' * 3000]
)
def test_what_is_no_object_is_none(text: str) -> None:
    assert canonical(text) is None


def _call(name: str, **arguments: object) -> Call:
    import json

    return Call(name, json.dumps(arguments))


def test_sets_collapse_what_multisets_count() -> None:
    gold = [_call("a", x=1), _call("b", x=1), _call("a", x=1)]
    made = [_call("a", x=1), _call("b", x=1)]
    found = marks(made, gold)
    assert found.tool_f1 == 1.0  # {a, b} both
    assert found.tool_f1_multi == pytest.approx(0.8)
    assert found.arg_f1 == 1.0  # one object on both sides
    assert found.call_f1 == pytest.approx(0.8)
    assert found.exact == 0.0


def test_right_arguments_under_the_wrong_name_are_no_call() -> None:
    found = marks([_call("b", x=1)], [_call("a", x=1)])
    assert (found.arg_f1, found.call_f1, found.tool_f1) == (1.0, 0.0, 0.0)


def test_what_does_not_parse_is_wrong_and_counted() -> None:
    found = marks([Call("a", "{x"), _call("b", y=2)], [_call("a", x=1), _call("b", y=2)])
    assert found.parse_error == 0.5
    assert found.arg_f1 == 0.5
    assert found.tool_f1 == 1.0
    assert marks([Call("a", "{x")], [_call("a")]).call_f1 == 0.0
    with pytest.raises(ValueError, match="gold"):
        marks([], [Call("a", "{x")])


def test_order_matters_to_exact_alone() -> None:
    gold = [_call("a", x=1), _call("b")]
    found = marks(gold[::-1], gold)
    assert (found.call_f1, found.exact) == (1.0, 0.0)
    assert marks(gold, gold).exact == 1.0


def test_no_calls() -> None:
    assert marks([], [_call("a")]).tool_f1 == 0.0
    assert f1([], []) == 1.0


def test_avg_weighs_two_three_and_four_calls_alike() -> None:
    right, wrong = marks([_call("a")], [_call("a")]), marks([], [_call("a")])
    table = by_number([right, wrong, wrong, wrong, right], [1, 2, 3, 3, 4])
    assert table["avg"]["tool_f1"] == pytest.approx(1 / 3)
    assert table["1"]["tool_f1"] == 1.0
    assert set(by_number([right], [1])) == {"1"}


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"city": "Rome"}, True),
        ({"city": "Paris", "unit": "C"}, True),
        ({"city": "Rome", "days": 3.0}, True),
        ({"city": "Oslo"}, False),
        ({}, False),
        ({"city": "Rome", "more": 1}, False),
        ({"city": "Rome", "days": True}, False),
        ({"city": "Rome", "where": {"x": 2}}, True),
        ({"city": "Rome", "where": {"x": 3}}, False),
    ],
)
def test_bfcl_gold_lists_allowed_values(arguments: dict[str, object], right: bool) -> None:
    gold = {
        "city": ["Rome", "Paris"],
        "unit": ["C", ""],
        "days": [3, 1, ""],
        "where": [{"x": [1, 2]}, ""],
    }
    assert allowed(arguments, gold) is right


def test_bootstrap_interval_holds_the_mean_and_shrinks() -> None:
    few, many = mean([0.0, 1.0] * 20), mean([0.0, 1.0] * 500)
    assert few.low < 0.5 < few.high
    assert many.high - many.low < few.high - few.low
    # the normal approximation: 1.96 sqrt(p q / n)
    assert many.high - many.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 1000), rel=0.15)
    assert mean([0.3]).low == 0.3
    assert mean([1.0, 0.0, 1.0], seed=1) == mean([1.0, 0.0, 1.0], seed=1)
    with pytest.raises(ValueError, match="no values"):
        mean([])


def test_seeds_widen_an_interval() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(400)
    alike = mean(np.stack([base, base, base]))
    apart = mean(np.stack([base - 0.2, base, base + 0.2]))
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_pairing_sees_what_means_hide() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    found = paired(hard + 0.02, hard)
    assert found.excludes_zero
    assert found.low > 0
    assert not paired(rng.random(50), rng.random(50)).low > 0.3
    with pytest.raises(ValueError, match="examples"):
        paired([1.0], [1.0, 2.0])


def test_ece_and_nll_by_hand() -> None:
    # two bins: 0.9 of which half are right, 0.2 of which all are
    assert ece([0.9, 0.9, 0.2, 0.2], [True, False, True, True]) == pytest.approx((0.4 + 0.8) / 2)
    assert ece([1.0], [True]) == 0.0
    log_p = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    assert nll(log_p, [0, 1]) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
    assert nll(log_p, [0, -1]) == math.inf


def test_the_fitted_scale_is_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(2000, 5, generator=generator)
    gold = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0].tolist()
    assert fit_scale(true * 20, gold) == pytest.approx(1 / 20, rel=0.1)
