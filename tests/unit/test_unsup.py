"""States without prompts: plain cases, invariances, and the public benchmarks where present."""

from __future__ import annotations

import numpy as np
import pytest

from memtoken_cli.methods.memprompttss.unsup import bottom_up, by_appearance, period, segment_unsupervised
from memtoken_cli.metrics.segmentation import accuracy, ami, changes, covering


def walk_and_rest(rows: int = 3000, channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Rest, walk, rest, run: the second rest is the first one again."""
    random = np.random.default_rng(0)
    time = np.arange(rows)
    states = np.repeat([0, 1, 0, 2], rows // 4)
    height, speed = np.array([0.0, 1.0, 3.0])[states], np.array([0, 0.25, 0.45])[states]
    x = [height * np.sin(speed * time + c) + 0.1 * random.standard_normal(rows) for c in range(channels)]
    return np.stack(x, 1).astype(np.float32), states


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_states_that_recur(channels):
    x, states = walk_and_rest(channels=channels)
    found = segment_unsupervised(x)
    assert found.dtype == np.int64 and found[0] == 0
    assert accuracy(states, found) > 0.97
    assert len(changes(found)) == 3
    # numbered by first appearance
    assert np.unique(found).tolist() == [0, 1, 2]


def test_invariances():
    x, _ = walk_and_rest()
    found = segment_unsupervised(x)
    assert (segment_unsupervised(x) == found).all()
    assert (segment_unsupervised(x[:, ::-1]) == found).all()
    assert (segment_unsupervised(x * np.float32(256)) == found).all()
    assert (segment_unsupervised(x.astype(np.float64) * [3, -1e4] + [1e3, 7]) != found).mean() < 0.01


@pytest.mark.parametrize("states", [1, 2, 3, 5])
def test_a_fixed_number_of_states(states):
    found = segment_unsupervised(walk_and_rest()[0], states)
    assert np.unique(found).tolist() == list(range(states))


def test_short_and_empty_and_constant():
    for rows in (0, 1, 15, 16, 17, 40):
        found = segment_unsupervised(np.zeros((rows, 3), np.float32))
        assert found.tolist() == [0] * rows
        assert len(segment_unsupervised(np.random.default_rng(rows).standard_normal((rows, 2)))) == rows
    with pytest.raises(ValueError, match="0 states"):
        segment_unsupervised(np.zeros((50, 1)), 0)


def test_period():
    time = np.arange(4000)
    wave = np.sin(2 * np.pi * time / 50)[:, None]
    assert period(wave) % 50 in (0, 1, 49)
    assert period(np.zeros((4000, 1))) == 16
    # longer series are thinned
    long = np.sin(2 * np.pi * np.arange(500_000) / 3000)[:, None]
    assert abs(period(long) / 3000 - round(period(long) / 3000)) < 0.01


def test_bottom_up_by_brute_force():
    random = np.random.default_rng(1)
    z = np.repeat(random.standard_normal((5, 2)) * 4, 20, 0) + 0.1 * random.standard_normal((100, 2))
    assert bottom_up(z, 5.0, 5).tolist() == [0, 20, 40, 60, 80, 100]
    assert bottom_up(z, 1e9, 1).tolist() == [0, 100]
    assert bottom_up(z, 0.0, 1).tolist() == list(range(101))
    # a segment that is too short goes to the neighbour at the lesser cost
    short = np.concatenate([np.zeros(20), np.full(3, 4.0), np.full(20, 10.0)])[:, None]
    assert bottom_up(short, 1.0, 4).tolist() == [0, 23, 43]
    assert bottom_up(short, 1.0, 3).tolist() == [0, 20, 23, 43]


def test_bottom_up_is_greedy():
    """The same cuts as merging the cheapest pair, found anew each time."""
    z = np.random.default_rng(2).standard_normal((30, 3)).cumsum(0)
    cuts = list(range(31))

    def cost(a, b, c):
        left, right = z[a:b], z[b:c]
        share = len(left) * len(right) / (len(left) + len(right))
        return share * ((left.mean(0) - right.mean(0)) ** 2).sum()

    while len(cuts) > 2:
        found = [(cost(*cuts[i - 1 : i + 2]), i) for i in range(1, len(cuts) - 1)]
        if min(found)[0] >= 12.0:
            break
        del cuts[min(found)[1]]
    assert bottom_up(z, 12.0, 1).tolist() == cuts


def test_by_appearance():
    assert by_appearance(np.array([7, 7, 2, 7, 5])).tolist() == [0, 0, 1, 0, 2]


@pytest.mark.data
@pytest.mark.parametrize("name", ["tssb", "utsa"])
def test_benchmarks(data_folder, name):
    """Above the bar: means over the series that are there."""
    from memtoken_cli.data.labelled import read_labelled

    if not (data_folder / name).is_dir():
        pytest.skip(f"no {name} in the folder")
    marks = []
    for series in read_labelled(data_folder / name):
        found = segment_unsupervised(series.values_TC)
        marks.append((covering(series.states_T, found), ami(series.states_T, found)))
    mean_covering, mean_ami = np.mean(marks, 0)
    assert mean_covering >= 0.68 and mean_ami >= 0.50
