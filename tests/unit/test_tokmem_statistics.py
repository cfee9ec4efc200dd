"""Streaming statistics: any order and partition of the samples is the joint fit, and nothing old moves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_bank import samples, statistics

from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.tokmem.statistics import END, KEEP_ALL, TEXT, Class, Statistics, collect, merged

NAMES = ("a", "b", "c")


def plain(classes, x_ND):
    """Two passes in NumPy: (classes, counts, means, pooled scatter)."""
    found = sorted(set(classes))
    rows = {c: np.array([x.double().numpy() for x, of in zip(x_ND, classes, strict=True) if of == c])
            for c in found}  # fmt: skip
    means = [rows[c].mean(0) for c in found]
    scatter = sum((rows[c] - m).T @ (rows[c] - m) for c, m in zip(found, means, strict=True))
    return found, [len(rows[c]) for c in found], np.array(means), scatter


def everything(names=NAMES, count=5, width=7):
    parts = [samples(name, count, width) for name in names]
    classes = [c for found, _ in parts for c in found]
    return classes, [torch.cat([features[f] for _, features in parts]) for f in range(3)]


def close(a: Statistics, b: Statistics) -> None:
    assert a.classes == b.classes and torch.equal(a.count_C, b.count_C) and a.freedom == b.freedom
    for m, o in zip(a.moments, b.moments, strict=True):
        torch.testing.assert_close(m.mean_CD, o.mean_CD, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(m.scatter_DD, o.scatter_DD, rtol=1e-11, atol=1e-11)
    assert torch.equal(a.val_class_V, b.val_class_V)
    assert all(torch.equal(x, y) for x, y in zip(a.val, b.val, strict=True))


def test_equals_two_passes():
    classes, features = everything()
    stats = collect(classes, features, 2)
    for f, x_ND in enumerate(features):
        found, counts, means, scatter = plain(classes, x_ND)
        assert list(stats.classes) == found and stats.count_C.tolist() == counts
        np.testing.assert_allclose(stats.moments[f].mean_CD.numpy(), means, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(stats.moments[f].scatter_DD.numpy(), scatter, rtol=1e-12, atol=1e-12)
    assert stats.freedom == len(classes) - len(found) and stats.widths == (7, 7, 7)


@given(st.data(), st.integers(0, 4))
def test_any_order_and_partition_is_the_joint_fit(data, keep):
    classes, features = everything(count=4)
    order = data.draw(st.permutations(range(len(classes))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(classes) - 1), max_size=6)))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    streamed = merged(collect([classes[i] for i in p], [x[p] for x in features], keep) for p in parts)
    close(streamed, collect(classes, features, keep))


def test_one_sample_at_a_time():
    classes, features = everything()
    streamed = Statistics.empty((7, 7, 7), 2)
    for i in torch.randperm(len(classes), generator=torch.Generator().manual_seed(3)).tolist():
        streamed = streamed.merge(collect([classes[i]], [x[i : i + 1] for x in features], 2))
    close(streamed, collect(classes, features, 2))


@given(st.integers(0, 3), st.integers(0, 3))
def test_merging_commutes(split, keep):
    a, b = statistics(NAMES[:split], keep_val=keep) if split else None, statistics(NAMES, keep_val=keep)
    a = a or Statistics.empty(b.widths, keep)
    close(a.merge(b), b.merge(a))


def test_old_classes_do_not_move_by_a_bit():
    old, new = statistics(("a", "c")), statistics(("b", "d"))
    both = old.merge(new)
    for name in ("a", "c"):
        assert both.same(old, name)
    for name in ("b", "d"):
        assert both.same(new, name)
    assert not both.same(old, "b")
    more = both.merge(collect(*_one("a"), 3))
    assert not more.same(old, "a") and more.same(old, "c")


def _one(name, facet="query"):
    return [Class(name, facet)], [torch.ones(1, 32) for _ in range(3)]


def test_kept_samples_are_those_of_the_class_and_no_more():
    classes, features = everything(count=5)
    stats = collect(classes, features, 2)
    assert torch.bincount(stats.val_class_V).tolist() == [2] * 6
    for v, c in enumerate(stats.val_class_V.tolist()):
        own = [i for i, of in enumerate(classes) if of == stats.classes[c]]
        at = [i for i in own if torch.equal(features[0][i], stats.val[0][v])]
        assert len(at) == 1 and torch.equal(features[2][at[0]], stats.val[2][v])
    assert len(collect(classes, features, 0).val_class_V) == 0
    assert len(collect(classes, features, KEEP_ALL).val_class_V) == len(classes)


def test_dropping_leaves_the_pooled_scatter_and_the_rest():
    stats = statistics(NAMES)
    left = stats.drop({"b"})
    assert [c.procedure for c in left.classes] == ["a", "a", "c", "c"] and left.freedom == stats.freedom
    assert all(
        torch.equal(m.scatter_DD, o.scatter_DD) for m, o in zip(left.moments, stats.moments, strict=True)
    )
    assert left.same(stats, "a") and left.same(stats, "c")
    rest = statistics(("a", "c"))
    assert all(torch.equal(x, y) for x, y in zip(left.val, rest.val, strict=True))
    assert torch.equal(left.val_class_V, rest.val_class_V)


def test_an_exact_removal_is_as_if_it_had_never_been():
    stats = statistics(NAMES, keep_val=KEEP_ALL)
    close(stats.drop({"b"}, exact=True), statistics(("a", "c"), keep_val=KEEP_ALL))
    few = statistics(NAMES, count=6, keep_val=5)
    assert few.drop({"b"}, exact=True).freedom == few.freedom, "not all samples are kept: the share stays"


def test_renaming_keeps_every_number_by_name():
    stats = statistics(NAMES)
    renamed = stats.rename({"a": "z"})
    assert renamed.procedures == {"b", "c", "z"} and list(renamed.classes) == sorted(renamed.classes)
    close(renamed.rename({"z": "a"}), stats)
    with pytest.raises(DataError, match="one name"):
        stats.rename({"a": "b"})


def test_specials_are_classes_like_any():
    stats = statistics(NAMES).merge(collect(*_one(TEXT), 3)).merge(collect(*_one(END), 3))
    assert {TEXT, END} <= stats.procedures and stats.drop({TEXT, END}).procedures == set(NAMES)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="do not add up"):
        statistics(NAMES).merge(statistics(NAMES, width=8))
    classes, features = _one("a")
    with pytest.raises(DataError, match="not finite"):
        collect(classes, [features[0] * float("nan"), *features[1:]], 1)
    with pytest.raises(DataError, match="2 classes for features"):
        collect(classes * 2, features, 1)
