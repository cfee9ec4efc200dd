"""Closed-form addresses against plain LDA in NumPy, scikit-learn, and brute force; bar 1 of the method."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_bank import samples, statistics
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from unit.test_tokmem_statistics import everything, plain

from memtoken_cli.methods.tokmem import lda
from memtoken_cli.methods.tokmem.lda import Gaussian, Scorer, fit_alpha, left_out, likeliest, log_softmax
from memtoken_cli.methods.tokmem.statistics import (
    END,
    TEXT,
    Class,
    Statistics,
    collect,
    merged,
)

NAMES = ("a", "b", "c")
SHRINKAGE = 0.1


def queries(width=32, count=9, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(count, width, generator=generator) for _ in range(3)]


def plain_scores(classes, features, asked, shrinkage=SHRINKAGE):
    """{class: [B] score} by explicit inverses, two passes."""
    total = {}
    for x_ND, q_BD in zip(features, asked, strict=True):
        found, counts, means, scatter = plain(classes, x_ND)
        N, C, D = sum(counts), len(found), x_ND.shape[1]
        centre = means.mean(0)
        if max(16, D / 16) <= N - C:
            sigma = scatter / (N - C)
            sigma = sigma + shrinkage * np.trace(sigma) / D * np.eye(D)
        else:
            total_DD = 0
            for c, x in zip(classes, x_ND.double().numpy(), strict=True):
                form = np.mean([m for f, m in zip(found, means, strict=True) if f.facet == c.facet], 0)
                total_DD = total_DD + np.outer(x - form, x - form) / N
            sigma = total_DD + np.trace(total_DD) / D * np.eye(D)
        inverse = np.linalg.inv(sigma)
        for c, mean in zip(found, means, strict=True):
            w = inverse @ (mean - centre)
            s = (q_BD.double().numpy() - centre) @ w - w @ (mean - centre) / 2
            total[c] = total.get(c, 0) + s
    return total


@pytest.mark.parametrize(("count", "width"), [(6, 32), (2, 32), (1, 32), (3, 5)])
def test_equals_plain_lda(count, width):
    """Also with too few samples for a covariance within classes (the total one is taken)."""
    classes, features = everything(NAMES, count, width)
    stats = collect(classes, features, 0)
    assert stats.pooled(0) == (count > 3 or (count - 1) * 6 >= 16)
    asked = queries(width)
    want = plain_scores(classes, features, asked)
    raw_BL = Scorer.of(stats, NAMES, SHRINKAGE).raw(asked).numpy()
    for i, name in enumerate(NAMES):
        best = np.maximum(want[Class(name, "query")], want[Class(name, "instruction+query")])
        np.testing.assert_allclose(raw_BL[:, i], best, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shrinkage", [0.01, 0.1, 1.0])
def test_decides_as_scikit_learn(shrinkage):
    """Balanced classes, uniform priors, one feature: its shrinkage s is ours / (1 + ours)."""
    names = [f"p{i}" for i in range(12)]
    parts = [samples(name, 8, 16, 1, spread=2.0) for name in names]
    x_ND = torch.cat([features[0][:8] for _, features in parts])
    classes = [Class(name) for name in names for _ in range(8)]
    other = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=shrinkage / (1 + shrinkage), priors=[1 / 12] * 12
    ).fit(x_ND.double().numpy(), [c.procedure for c in classes])
    asked = queries(16, 200)[0]
    ours_BL = Scorer.of(collect(classes, [x_ND], 0), names, shrinkage).raw([asked])
    want = other.predict(asked.double().numpy())
    assert [names[i] for i in ours_BL.argmax(1)] == list(want) and len(set(want)) > 6


def test_any_partition_equals_the_joint_fit():
    """Bar 1: raw scores within 1e-9 relative, calibrated within 1e-5, every decision the same."""
    names = [f"p{i}" for i in range(20)]
    parts = [samples(name, 5, spread=2.5) for name in names]
    classes = [c for found, _ in parts for c in found]
    features = [torch.cat([x[f] for _, x in parts]) for f in range(3)]
    joint = collect(classes, features, 4)
    asked = queries(count=100)
    alpha = fit_alpha(joint, SHRINKAGE)
    want = Scorer.of(joint, names, SHRINKAGE, alpha)
    assert lda.SCALES[0] < alpha < lda.SCALES[1], "a fit, not a limit"
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3, 37):
        order = torch.randperm(len(classes), generator=generator).tolist()
        cut = [order[i : i + size] for i in range(0, len(order), size)]
        stats = merged(collect([classes[i] for i in p], [x[p] for x in features], 4) for p in cut)
        found = Scorer.of(stats, names, SHRINKAGE, fit_alpha(stats, SHRINKAGE))
        error = (found.raw(asked) - want.raw(asked)).abs().max() / want.raw(asked).abs().max()
        assert error <= 1e-9
        calibrated = [log_softmax(one.scores(asked)) for one in (found, want)]
        assert (calibrated[0] - calibrated[1]).abs().max() <= 1e-5
        assert torch.equal(found.raw(asked).argmax(1), want.raw(asked).argmax(1))


@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=2))
def test_removing_changes_no_difference_among_the_rest(gone):
    stats = statistics(NAMES)
    rest = [name for name in NAMES if name not in gone]
    before = Scorer.of(stats, rest, SHRINKAGE).raw(queries())
    after = Scorer.of(stats.drop(gone), rest, SHRINKAGE).raw(queries())
    moved = (before - before[:, :1]) - (after - after[:, :1])
    assert moved.abs().max() <= 1e-9 * before.abs().max()


def test_left_out_equals_brute_force():
    classes, features = everything(NAMES, 5, 7)
    stats = collect(classes, features, 3)
    kept_V = torch.arange(len(stats.val_class_V))
    for f, x_ND in enumerate(features):
        score_VC = left_out(stats, f, SHRINKAGE, kept_V)
        for v in range(0, len(kept_V), 4):
            x_D = stats.val[f][v]
            gone = next(i for i, x in enumerate(x_ND) if torch.equal(x, x_D))
            rest = [i for i in range(len(classes)) if i != gone]
            want = plain_scores([classes[i] for i in rest], [x_ND[rest]], [x_D[None]])
            want_C = torch.tensor([want[c][0] for c in stats.classes])
            torch.testing.assert_close(score_VC[v] - score_VC[v, 0], want_C - want_C[0], rtol=1e-9, atol=1e-9)


def test_the_scale_is_the_likeliest():
    generator = torch.Generator().manual_seed(1)
    label_V = torch.randint(4, (200,), generator=generator)
    score_VL = 6 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
    score_VL[torch.arange(200), label_V] += 6
    alpha = likeliest(score_VL, label_V)

    others_VL = score_VL.scatter(1, label_V[:, None], float("-inf"))

    def nll(scale):
        logp_VL = (scale * score_VL).log_softmax(1)
        own, runner_up = (logp_VL.gather(1, at[:, None]).mean() for at in (label_V, others_VL.argmax(1)))
        return -float(200 * own + runner_up)

    assert lda.SCALES[0] < alpha < lda.SCALES[1]
    assert nll(alpha) <= min(nll(alpha * (1 - 1e-3)), nll(alpha * (1 + 1e-3)))


def test_samples_that_are_all_right_ask_for_no_certainty():
    label_V = torch.arange(40) % 4
    score_VL = 50 * torch.eye(4, dtype=torch.float64)[label_V]
    surest = (likeliest(score_VL, label_V) * score_VL).softmax(1).amax()
    assert float(surest) == pytest.approx(40 / 41, abs=1e-6)
    assert likeliest(score_VL / 1000, label_V) == lda.SCALES[1]


def test_the_scale_makes_unseen_queries_likelier_than_raw_scores_do():
    names = [f"p{i}" for i in range(15)]
    parts = [samples(name, 24, 64, spread=2.8) for name in names]

    def half(start):
        classes = [c for found, _ in parts for c in found[start : 12 + start]]
        return classes, [torch.cat([x[f][start : 12 + start] for _, x in parts]) for f in range(3)]

    seen, unseen = half(0), half(12)
    stats = collect(*seen, 4)
    alpha = fit_alpha(stats, SHRINKAGE)
    label = torch.tensor([names.index(c.procedure) for c in unseen[0]])

    def nll(scale):
        scorer = Scorer.of(stats, names, SHRINKAGE, scale)
        return -float(log_softmax(scorer.scores(unseen[1]))[torch.arange(len(label)), label].mean())

    assert nll(alpha) < nll(1.0)
    assert nll(alpha) < 1.1 * min(nll(s) for s in torch.logspace(-3, 0, 40).tolist())


def test_no_sample_to_spare_leaves_a_fixed_scale():
    alone = statistics(NAMES, count=1)
    assert fit_alpha(alone, SHRINKAGE) == lda.UNFITTED / 3
    assert fit_alpha(statistics(("a",)), SHRINKAGE) == lda.UNFITTED / 3
    assert fit_alpha(statistics(NAMES, keep_val=0), SHRINKAGE) == lda.UNFITTED / 3
    assert fit_alpha(Statistics.empty([4], 4), SHRINKAGE) == lda.UNFITTED


def test_what_has_no_samples_never_wins():
    stats = statistics(("a", "b"))
    bare = stats.drop(()).merge(Statistics.empty(stats.widths, 3))
    scorer = Scorer.of(bare, ("a", "stranger", "b"), SHRINKAGE)
    raw_BL = scorer.raw(queries())
    assert raw_BL[:, 1].eq(-math.inf).all() and raw_BL[:, [0, 2]].isfinite().all()
    log_BL = log_softmax(scorer.scores(queries()))
    assert log_BL[:, 1].eq(-math.inf).all()
    torch.testing.assert_close(log_BL.exp().sum(1), torch.ones(9, dtype=torch.float64))
    one = collect([Class("a", "query")] * 2 + [Class("b", "query")] * 2,
                  [torch.randn(4, 8, generator=torch.Generator().manual_seed(0))], 0)  # fmt: skip
    assert Scorer.of(one, ("a", "b"), SHRINKAGE).raw([torch.zeros(3, 8)]).isfinite().all()


def test_where_nothing_has_samples_nothing_is_likely():
    scorer = Scorer.of(statistics(NAMES), ("stranger", "other"), SHRINKAGE)
    assert log_softmax(scorer.scores(queries())).eq(-math.inf).all()


def test_specials_stand_behind_the_procedures():
    more = collect([Class(TEXT)] * 3, [torch.randn(3, 32) for _ in range(3)], 3)
    stats = statistics(NAMES).merge(more)
    scorer = Scorer.of(stats, ("c", "a"), SHRINKAGE)
    assert scorer.labels == ("c", "a", TEXT) and scorer.raw(queries()).shape == (9, 3)
    assert END not in scorer.labels


def test_a_frozen_basis_keeps_old_addresses_to_the_bit():
    old = statistics(("a", "b")).frozen(SHRINKAGE)
    before = Scorer.of(old, ("a", "b"), SHRINKAGE)
    grown = old.merge(statistics(("c", "d")))
    after = Scorer.of(grown, ("a", "b"), SHRINKAGE)
    assert torch.equal(before.bias_C, after.bias_C)
    assert all(torch.equal(x, y) for x, y in zip(before.weight, after.weight, strict=True))
    shared = Scorer.of(statistics(("a", "b")).merge(statistics(("c", "d"))), ("a", "b"), SHRINKAGE)
    assert not torch.equal(before.weight[0], shared.weight[0])
    assert fit_alpha(grown, SHRINKAGE) > 0


def test_pseudo_states_have_the_mean_and_covariance_of_their_class():
    stats = statistics(NAMES, width=6, count=20)
    gaussian = Gaussian.of(stats, 1, SHRINKAGE)
    class_N = torch.tensor([2]).expand(200_000)
    x_ND = gaussian.draw(class_N, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(x_ND.mean(0), stats.moments[1].mean_CD[2], rtol=0, atol=0.02)
    torch.testing.assert_close(x_ND.T.cov(), stats.spread(1, SHRINKAGE).covariance_DD, rtol=0, atol=0.03)
    again = gaussian.draw(class_N[:5], torch.Generator().manual_seed(0))
    assert torch.equal(again, gaussian.draw(class_N[:5], torch.Generator().manual_seed(0)))
