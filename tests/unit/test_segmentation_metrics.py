"""Covering, change-point F1 and curves over clicks against naive versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.metrics.segmentation import (
    accuracy,
    ami,
    ari,
    auc30,
    carried_on,
    changes,
    covering,
    cp_f1,
    macro_f1,
    nmi,
    noc90,
)

labels = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def segments(y):
    """The sets of rows of every run."""
    found, rows = [], {0}
    for i in range(1, len(y)):
        if y[i] != y[i - 1]:
            found.append(rows)
            rows = set()
        rows.add(i)
    return [*found, rows]


@given(st.data())
def test_covering(data):
    true = data.draw(labels)
    found = data.draw(st.lists(st.integers(0, 2), min_size=len(true), max_size=len(true)))
    expected = sum(len(a) * max(len(a & b) / len(a | b) for b in segments(found)) for a in segments(true))
    assert covering(true, found) == pytest.approx(expected / len(true))
    assert covering(true, true) == 1


@given(st.data(), st.sampled_from([0.01, 0.05, 0.2]))
def test_cp_f1(data, margin):
    true = data.draw(labels)
    n = len(true)
    found = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    at = [0] + [i for i in range(1, n) if true[i] != true[i - 1]]
    other = [0] + [i for i in range(1, n) if found[i] != found[i - 1]]
    left, hits = set(other), 0
    for i in at:
        near = sorted((abs(i - j), j) for j in left if abs(i - j) <= int(margin * n))
        if near:
            left.discard(near[0][1])
            hits += 1
    precision, recall = hits / len(other), hits / len(at)
    expected = 2 * precision * recall / (precision + recall) if hits else 0
    assert cp_f1(true, found, margin) == pytest.approx(expected)


def test_by_hand():
    true = [0] * 50 + [1] * 50
    assert changes(true).tolist() == [50]
    assert covering(true, [0] * 100) == 0.5
    assert covering(true, [0] * 40 + [1] * 60) == pytest.approx(0.5 * 40 / 50 + 0.5 * 50 / 60)
    assert cp_f1(true, [0] * 51 + [1] * 49) == 1
    assert cp_f1(true, [0] * 52 + [1] * 48) == 0.5
    assert cp_f1(true, [0] * 100) == pytest.approx(2 / 3)
    assert covering(["a", "b"], ["x", "x"]) == 0.5


def test_agreement():
    true, other = ["a"] * 30 + ["b"] * 30, ["b"] * 30 + ["a"] * 30
    assert (
        ami(true, other) == pytest.approx(1)
        and ari(true, other) == 1
        and nmi(true, other) == pytest.approx(1)
    )
    assert accuracy(true, other) == 0 and accuracy(true, true) == 1
    # a state that is never found counts as 0, the found one has precision 1/2 and recall 1
    assert macro_f1(true, ["a"] * 60) == pytest.approx((2 / 3 + 0) / 2)
    assert ami(true, ["a"] * 60) == pytest.approx(0, abs=1e-9)
    for metric in (ami, ari, nmi, accuracy, macro_f1, covering, cp_f1):
        with pytest.raises(ValueError, match="beside"):
            metric([0, 1], [0])
        with pytest.raises(ValueError, match="beside"):
            metric([], [])


def test_curves():
    curve = [0.5, 0.8, 0.9, 1.0]
    assert auc30(curve) == pytest.approx((0.5 + 0.8 + 0.9 + 27) / 30)
    assert noc90(curve) == 3
    assert noc90([0.89] * 40) == 31
    assert noc90([0.2] * 30 + [1.0]) == 31
    assert auc30(np.r_[np.ones(30), np.zeros(5)]) == 1
    assert carried_on([0.1, 0.2], 4) == [0.1, 0.2, 0.2, 0.2]
    for curve_of in (auc30, noc90):
        with pytest.raises(ValueError, match="no clicks"):
            curve_of([])
