"""Hand features against loops, and their blocks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from memtoken_cli.methods.memprompttss.hand import (
    BANDS,
    centres,
    halo,
    hand_features,
    names,
    standardise,
    stride_for,
    windows_for,
    zscore,
)


def moving(values: list[float], width: int) -> list[float]:
    n = len(values)
    return [
        sum(values[min(max(k, 0), n - 1)] for k in range(i - width // 2, i - width // 2 + width)) / width
        for i in range(n)
    ]


def by_loops(x: list[float], windows: tuple[int, ...], stride: int) -> list[list[float]]:
    n = len(x)
    columns = []
    step = [0.0] + [abs(b - a) for a, b in pairwise(x)]
    for w in windows:
        mean, square = moving(x, w), moving([v * v for v in x], w)
        columns.append(mean)
        columns.append(
            [math.log(math.sqrt(max(s - m * m, 0)) + 0.01) for m, s in zip(mean, square, strict=True)]
        )
        columns.append([math.log(v + 0.001) for v in moving(step, w)])
        low = x
        for b in BANDS:
            if b < w:
                here = moving(x, b)
                energy = moving([(p - q) ** 2 for p, q in zip(low, here, strict=True)], w)
                columns.append([math.log(math.sqrt(max(e, 0)) + 0.01) for e in energy])
                low = here
    rows = [min(j * stride + stride // 2, n - 1) for j in range(math.ceil(n / stride))]
    return [[column[r] for column in columns] for r in rows]


@pytest.mark.parametrize(
    ("rows", "windows", "stride"), [(150, (16, 64), 1), (83, (16, 64), 8), (5, (8, 16), 2)]
)
def test_loops(rows, windows, stride):
    x_TC, _, _ = zscore(np.random.default_rng(0).standard_normal((rows, 2)).cumsum(0))
    found = hand_features(x_TC, windows, stride)
    assert found.dtype == np.float32
    assert found.shape == (-(-rows // stride), 2, len(names("x", windows)))
    for c in range(2):
        expected = by_loops(x_TC[:, c].astype(float).tolist(), windows, stride)
        np.testing.assert_allclose(found[:, c], expected, atol=2e-5)


def test_blocks_equal_the_whole():
    x_TC = np.random.default_rng(1).standard_normal((5000, 3)).astype(np.float32).cumsum(0) / 9
    windows, stride = (16, 64, 256), 8
    whole = hand_features(x_TC, windows, stride)
    reach = halo(windows, stride)
    assert reach % stride == 0
    for start in range(0, 5000, 1600):
        low, high = max(0, start - reach), min(5000, start + 1600 + reach)
        block = hand_features(x_TC[low:high], windows, stride)
        first = (start - low) // stride
        np.testing.assert_allclose(
            block[first : first + 200], whole[start // stride : start // stride + 200], atol=1e-5
        )
    # and no more than the halo is needed: a row just outside changes nothing, one inside does
    low = 1600 - reach
    cut = x_TC[low : 3200 + reach].copy()
    cut[0] += 100
    changed = hand_features(cut, windows, stride)[reach // stride :]
    np.testing.assert_allclose(changed[1:200], whole[201:400], atol=1e-5)


def test_centres_strides_and_windows():
    assert centres(20, 8).tolist() == [4, 12, 19]
    assert centres(3, 1).tolist() == [0, 1, 2]
    assert [stride_for(n) for n in (16, 999, 1000, 3999, 4000, 10**6)] == [1, 1, 2, 7, 8, 8]
    assert windows_for(3999) == (16, 64) and windows_for(4000) == (64, 256)
    assert len(names(["a", "b"], (64, 256))) == 28
    assert names(["a"], (16,)) == ("a.mean16", "a.std16", "a.step16", "a.band4:16", "a.band8:16")


def test_zscore_is_affine_invariant_and_skips_gaps():
    values = np.random.default_rng(2).standard_normal((400, 2)).astype(np.float32)
    gap = np.zeros(400, bool)
    gap[100:200] = True
    holed = values.copy()
    holed[gap] = np.nan
    scaled, mean, std = zscore(holed, gap)
    assert (scaled[gap] == 0).all()
    np.testing.assert_allclose(scaled[~gap].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(mean, values[~gap].mean(0), atol=1e-6)
    np.testing.assert_allclose(std, values[~gap].std(0), atol=1e-6)
    again, _, _ = zscore(holed * np.float32(1000) - np.float32(7), gap)
    np.testing.assert_allclose(again, scaled, atol=1e-4)
    assert (zscore(np.full((50, 1), 0.1, np.float32))[0] == 0).all()
    assert (zscore(np.full((9, 1), np.nan), np.ones(9, bool))[0] == 0).all()


def test_standardise():
    feature = np.random.default_rng(3).standard_normal((60, 3)) * [1, 50, 0] + 5
    found = standardise(feature)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(0), [1, 1, 0], atol=1e-6)
    kept = np.arange(60) < 30
    np.testing.assert_allclose(standardise(feature, kept)[kept, 0].std(), 1, atol=1e-6)
