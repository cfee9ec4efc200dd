"""Metrics and calibration against scipy, scikit-learn, plain loops and brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, entropy
from torch.nn.functional import cross_entropy

from memtoken_cli.engine.calibrate import calibrate, fit_bias
from memtoken_cli.metrics.choice import accuracy, agreement, interval
from memtoken_cli.metrics.divergence import kl, mean_kl


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(counts):
    right, count = counts
    found = interval(right, count)
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


def test_accuracy_counts_equal_answers():
    found = accuracy(["a", "b", "c", "a"], ["a", "b", "d", "d"])
    assert (found.value, found.count) == (0.5, 4)
    assert agreement([1, 2, 3], [1, 2, 2]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no answers"):
        accuracy([], [])


def test_kl_is_scipys_relative_entropy():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5, 9, generator=g).log_softmax(-1) for _ in range(2))
    expected = [
        entropy(a.double().exp().numpy(), b.double().exp().numpy()) for a, b in zip(p, q, strict=True)
    ]
    assert kl(p, q).tolist() == pytest.approx(expected, abs=1e-6)
    assert kl(p, p).abs().max() == 0


def test_kl_of_what_the_reference_rules_out():
    p = torch.tensor([[0.0, -math.inf]])
    q = torch.tensor([[math.log(0.5), math.log(0.5)]])
    assert float(kl(p, q)) == pytest.approx(math.log(2))


def test_mean_kl_weighs_queries_equally():
    far, near = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    gap = float(kl(far, near))
    first, whole = mean_kl([torch.cat([far, near, near]), near], [torch.cat([near, near, near]), near])
    assert first == pytest.approx(gap / 2)
    assert whole == pytest.approx(gap / 6)
    with pytest.raises(ValueError, match="no answers"):
        mean_kl([], [])


def biased(shots=64, labels=4, seed=0):
    """Scores that tell labels apart, under a constant bias; and the bias."""
    g = torch.Generator().manual_seed(seed)
    label_S = torch.arange(shots) % labels
    bias_K = torch.tensor([3.0, -2.0, 0.0, -1.0], dtype=torch.float64)[:labels]
    scores_SK = torch.randn(shots, labels, generator=g, dtype=torch.float64)
    scores_SK[range(shots), label_S] += 1.5
    return scores_SK + bias_K, label_S, bias_K


def test_the_bias_is_a_minimum():
    scores_SK, label_S, _ = biased()
    bias_K = fit_bias(scores_SK, label_S, 0.01).requires_grad_()
    loss = cross_entropy(scores_SK + bias_K, label_S) + 0.01 * bias_K.square().mean()
    loss.backward()
    assert bias_K.grad.abs().max() < 1e-5
    assert abs(float(bias_K.detach().sum())) < 1e-9


def test_fits_side_by_side_equal_fits_alone():
    scores_SK, label_S, _ = biased()
    used_FS = torch.arange(64) // 4 % 4 != torch.arange(4)[:, None]
    together = fit_bias(scores_SK, label_S, 0.1, used_FS)
    for bias_K, used_S in zip(together, used_FS, strict=True):
        alone = fit_bias(scores_SK[used_S], label_S[used_S], 0.1)
        torch.testing.assert_close(bias_K, alone, atol=1e-4, rtol=0)


def test_a_constant_bias_is_undone_on_new_scores():
    scores_SK, label_S, bias_K = biased()
    fitted = calibrate(scores_SK, label_S)
    assert fitted is not None
    assert fitted.loss < fitted.loss_without
    torch.testing.assert_close(fitted.bias_K, -(bias_K - bias_K.mean()), atol=0.8, rtol=0)
    new_SK, new_S, _ = biased(seed=1)
    raw = accuracy(new_SK.argmax(1).tolist(), new_S.tolist()).value
    better = accuracy((new_SK + fitted.bias_K).argmax(1).tolist(), new_S.tolist()).value
    assert better > raw + 0.2


def test_cross_validation_is_over_held_out_shots():
    scores_SK, label_S, _ = biased(shots=12)
    fitted = calibrate(scores_SK, label_S, lambdas=[0.05], folds=12)
    total = 0.0
    for s in range(12):
        rest = torch.arange(12) != s
        bias_K = fit_bias(scores_SK[rest], label_S[rest], 0.05)
        total += float(cross_entropy(scores_SK[s : s + 1] + bias_K, label_S[s : s + 1]))
    assert fitted.loss == pytest.approx(total / 12, abs=1e-5)


def test_no_calibration_without_evidence():
    scores_SK, label_S, _ = biased()
    assert calibrate(scores_SK[:1], label_S[:1]) is None
    assert calibrate(scores_SK[:, :1], torch.zeros(64, dtype=torch.long)) is None
    right = torch.eye(4, dtype=torch.float64).repeat(4, 1) * 50
    assert calibrate(right, torch.arange(16) % 4) is None


def test_a_label_without_shots_can_be_calibrated():
    scores_SK, label_S, _ = biased()
    seen = label_S != 3
    fitted = calibrate(scores_SK[seen], label_S[seen])
    assert fitted.bias_K.isfinite().all()
    assert dict(fitted.named("abcd"))["d"] == float(fitted.bias_K[3])
