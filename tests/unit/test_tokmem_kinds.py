"""Queries for one procedure, for several and for none: discriminants against plain NumPy, exactness of any
order of additions, and what each kind leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_bank import WIDTH, bank, samples, seeded

from memtoken_cli.methods.tokmem import kinds
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import FEATURES, Feature
from memtoken_cli.methods.tokmem.kinds import Axis, FirstSite, NextSite
from memtoken_cli.methods.tokmem.lda import Scorer
from memtoken_cli.methods.tokmem.parts import Parts
from memtoken_cli.methods.tokmem.statistics import END, TEXT, Class, Statistics, collect, merged

NAMES = ("a", "b", "c", "d")
LEAD = (*FEATURES[:2], Feature(depth=0.5, pool="lead"))
SHRINKAGE = 0.1


def of_one(names=NAMES, count=12):
    parts = [samples(name, count) for name in names]
    return [c for found, _ in parts for c in found], [torch.cat([x[f] for _, x in parts]) for f in range(3)]


def of_several(names=NAMES, count=12):
    """The mean of two procedures' queries, off to one side; the last feature is the first one's alone."""
    classes, features = of_one(names, count)
    asked = [i for i, c in enumerate(classes) if c.facet == "query"]
    generator = seeded("several", *names)
    other = [asked[i] for i in torch.randperm(len(asked), generator=generator).tolist()]
    aside = 4 * torch.ones(WIDTH) / WIDTH**0.5
    found = [(x[asked] + x[other]) / 2 + aside for x in features[:2]]
    noise = 0.1 * torch.randn(len(asked), WIDTH, generator=generator)
    return [classes[i] for i in asked], [*found, features[2][asked] + noise]


def of_none(count=30):
    """Strangers are scattered widely, and all lie off to another side."""
    generator = seeded("none")
    aside = torch.zeros(WIDTH)
    aside[0] = 4.0
    x = [1.5 * torch.randn(count, WIDTH, generator=generator) + aside for _ in range(3)]
    return [Class(TEXT)] * count, x


def statistics(keep=3) -> dict:
    parts = {"first": of_one(), "several": of_several(), "text": of_none()}
    return {kind: collect(*part, keep) for kind, part in parts.items()}


def scorer(sites, names=NAMES, features=LEAD):
    alpha = kinds.scales(sites, features, SHRINKAGE)
    return kinds.first_site(sites, names, features, SHRINKAGE, alpha)


def test_the_axis_is_the_discriminant_of_two_normal_distributions():
    classes, features = of_one()
    asked = [i for i, c in enumerate(classes) if c.facet == "query"]
    one = collect([classes[i] for i in asked], [x[asked] for x in features], 0)
    other = collect(*of_several(), 0)
    axis = Axis.of(one, other, SHRINKAGE)
    queries = [x[:9] for x in of_none()[1]]
    want = np.zeros(9)
    for x_ND, z_ND, q_BD in zip([x[asked] for x in features], of_several()[1], queries, strict=True):
        covariance, means = np.zeros((WIDTH, WIDTH)), []
        for rows, labels in ((x_ND, [classes[i] for i in asked]), (z_ND, of_several()[0])):
            rows = rows.double().numpy()
            own = np.array([rows[[c == of for of in labels]].mean(0) for c in sorted(set(labels))])
            apart = rows - np.array([own[sorted(set(labels)).index(c)] for c in labels])
            within = apart.T @ apart / (len(rows) - len(own))
            covariance += (within + (own - own.mean(0)).T @ (own - own.mean(0)) / len(own)) / 2
            means.append(own.mean(0))
        covariance += SHRINKAGE * np.trace(covariance) / WIDTH * np.eye(WIDTH)
        weight = np.linalg.inv(covariance) @ (means[0] - means[1])
        want += (q_BD.double().numpy() - (means[0] + means[1]) / 2) @ weight
    np.testing.assert_allclose(axis.score(queries).numpy(), want, rtol=1e-9, atol=1e-9)


def test_each_kind_is_told():
    site = scorer(statistics())
    assert isinstance(site, FirstSite) and site.labels == (*NAMES, TEXT)
    classes, features = of_one()
    several, mixed = of_several()
    asked = torch.tensor([c.facet == "query" for c in classes])
    said = site.asks_for_several(features)
    assert said[asked].double().mean() < 0.1 and said[~asked].double().mean() < 0.1
    assert site.asks_for_several(mixed).double().mean() > 0.9
    for found, x in ((classes, features), (several, mixed)):
        chosen = [site.labels[i] for i in site.scores(x).argmax(1).tolist()]
        assert np.mean([c == of.procedure for c, of in zip(chosen, found, strict=True)]) > 0.9
    fired = site.scores(of_none()[1]).argmax(1) != NAMES.index("d") + 1
    assert fired.double().mean() < 0.1


def test_strangers_fire_less_often_than_beside_a_class_of_their_own_alone():
    generator = seeded("scattered")
    strangers = [3 * torch.randn(400, WIDTH, generator=generator) + 0.8 for _ in range(3)]
    none = collect([Class(TEXT)] * 40, [x[:40] for x in strangers], 3)
    first = collect(*of_one(), 3)
    ours = scorer({"first": first, "text": none}, features=FEATURES)
    plain = Scorer.of(first.merge(none), NAMES, SHRINKAGE)
    fired = [
        float((s.scores([x[40:] for x in strangers]).argmax(1) != len(NAMES)).double().mean())
        for s in (ours, plain)
    ]
    assert fired[0] < 0.75 * fired[1]


def test_the_other_kinds_move_no_score_of_a_query_for_one():
    sites = statistics()
    alone = scorer({"first": sites["first"]})
    assert isinstance(alone, Scorer) and alone.labels == NAMES and alone.places == (0, 1)
    among = scorer(sites)
    queries = of_one()[1]
    assert torch.equal(among.one.scores(queries)[:, : len(NAMES)], alone.scores(queries))
    told = ~among.asks_for_several(queries)
    assert torch.equal(among.scores(queries)[told, : len(NAMES)], alone.scores(queries)[told])
    moved = [*queries[:2], queries[2] + 7]
    assert torch.equal(alone.scores(moved), alone.scores(queries)), "what leans to the first is not for one"


def test_text_stands_alike_beside_both_kinds():
    site = scorer(statistics())
    mixed = of_several()[1]
    said = site.asks_for_several(mixed)
    P = len(NAMES)
    one_BL, all_BL = site.one.scores(mixed)[said], site.scores(mixed)[said]
    for x_BL in (one_BL, all_BL):
        assert x_BL.shape[1] == P + 1
    torch.testing.assert_close(one_BL[:, P] - one_BL[:, :P].amax(1), all_BL[:, P] - all_BL[:, :P].amax(1))
    assert torch.equal(all_BL[:, :P], site.several.scores(mixed)[said])


def ends(count=40):
    """What is last lies off to a third side, whatever was said."""
    aside = -4 * torch.ones(WIDTH) / WIDTH**0.5
    generator = seeded("ends")
    return [Class(END)] * count, [torch.randn(count, WIDTH, generator=generator) + aside for _ in range(3)]


def test_the_end_is_told_from_all_that_may_follow():
    classes, features = of_one()
    asked = [i for i, c in enumerate(classes) if c.facet == "query"]
    classes, features = [classes[i] for i in asked], [x[asked] for x in features]
    following, last = collect(classes, features, 3), collect(*ends(), 3)
    both = following.merge(last)
    site = kinds.boundary(both, NAMES, SHRINKAGE, 0.5)
    assert isinstance(site, NextSite) and site.labels == (*NAMES, END)
    for x, wanted in ((features, [c.procedure for c in classes]), (ends()[1], [END] * 40)):
        chosen = site.scores(x).argmax(1)
        assert torch.equal(chosen == len(NAMES), site.axis.score(x) > 0)
        assert np.mean([site.labels[i] == w for i, w in zip(chosen.tolist(), wanted, strict=True)]) > 0.9
    plain = Scorer.of(both, NAMES, SHRINKAGE, 0.5).scores(features)[:, : len(NAMES)]
    ours = site.scores(features)[:, : len(NAMES)]
    torch.testing.assert_close(plain - plain[:, :1], ours - ours[:, :1])
    halves = [collect(classes[i::2], [x[i::2] for x in features], 3) for i in (1, 0)]
    joined = kinds.boundary(merged([last, *halves]), NAMES, SHRINKAGE, 0.5)
    want, got = site.scores(features), joined.scores(features)
    assert (want - got).abs().max() <= 1e-9 * want.abs().max()
    assert isinstance(kinds.boundary(following, NAMES, SHRINKAGE, 0.5), Scorer), "nothing was the last"
    assert isinstance(kinds.boundary(last, NAMES, SHRINKAGE, 0.5), Scorer), "nothing was seen to follow"


def test_a_procedure_without_chains_is_known_by_its_queries_for_one():
    sites = statistics()
    several = sites["several"].drop({"d"})
    site = scorer({**sites, "several": several})
    classes, mixed = of_several()
    of_d = torch.tensor([c.procedure == "d" for c in classes])
    chosen = site.scores([x[of_d] for x in mixed]).argmax(1)
    assert (chosen == NAMES.index("d")).double().mean() > 0.9


@pytest.mark.parametrize("size", [1, 5, 23])
def test_any_order_and_partition_is_the_joint_fit(size):
    """Bar 1, with all kinds: raw scores within 1e-9 relative, every decision the same."""
    data = {"first": of_one(), "several": of_several(), "text": of_none()}
    joint = scorer({kind: collect(*part, 3) for kind, part in data.items()})
    generator = seeded("order", str(size))
    streamed: dict[str, Statistics] = {}
    for kind, (classes, features) in data.items():
        order = torch.randperm(len(classes), generator=generator).tolist()
        cut = [order[i : i + size] for i in range(0, len(order), size)]
        streamed[kind] = merged(collect([classes[i] for i in p], [x[p] for x in features], 3) for p in cut)
    found = scorer(streamed)
    for asked in (of_one()[1], of_several()[1], of_none()[1]):
        want, got = joint.scores(asked), found.scores(asked)
        assert (want - got).abs().max() <= 1e-9 * want.abs().max()
        assert torch.equal(joint.asks_for_several(asked), found.asks_for_several(asked))
        assert torch.equal(want.argmax(1), got.argmax(1))
    means = [Feature(pool="user")] * 3
    both = [
        Parts.of(part, NAMES, SHRINKAGE, kinds.scales({"first": part}, means, SHRINKAGE, True)["boundary"])
        for part in (collect(*data["first"], 3), streamed["first"])
    ]
    want, got = (parts.tokens(of_several()[1]) for parts in both)
    assert (want - got).abs().max() <= 1e-5 * want.abs().max()


def made(*names) -> Bank:
    """A bank of all kinds."""
    parts = {"first": of_one(names), "several": of_several(names), "text": of_none()}
    sites = {kind: collect(*part, 3) for kind, part in parts.items()}
    start = bank(*names, features=LEAD)
    return replace(start, sites=sites).calibrated()


def test_a_bank_of_all_kinds_is_kept_whole(tmp_path):
    one = made(*NAMES)
    one.save(tmp_path / "one.safetensors", one.model)
    again = Bank.load(tmp_path / "one.safetensors")
    assert set(again.sites) == {"first", "several", "text"} and set(again.alpha) == {
        "first",
        "several",
        "boundary",
    }
    asked = of_several()[1]
    assert torch.equal(again.scorer().scores(asked), one.scorer().scores(asked))
    assert all(again.same_row(one, name) for name in NAMES)


def test_banks_of_all_kinds_add_up():
    a, b = made("a", "b"), made("c", "d")
    b = replace(b, sites={kind: b.sites[kind] for kind in ("first", "several")})
    joined, asked = a.merge([b]), of_several()[1]
    for kind in ("first", "several"):
        assert joined.sites[kind].procedures == set(NAMES)
        assert all(joined.sites[kind].same(a.sites[kind], name) for name in ("a", "b"))
    turned = b.merge([a]).scorer(names=NAMES).scores(asked)
    want = joined.scorer(names=NAMES).scores(asked)
    assert (turned - want).abs().max() <= 1e-9 * want.abs().max()
    assert joined.same_row(a, "a") and joined.same_row(b, "c")
    left = joined.remove(["b"])
    before, after = (x.scorer(names=("a", "c", "d")).one.raw(asked) for x in (joined, left))
    moved = (before[:, :3] - before[:, :1]) - (after[:, :3] - after[:, :1])
    assert moved.abs().max() <= 1e-9 * before.abs().max()


def test_a_bank_that_counts_strangers_among_its_procedures_is_read_as_it_was_made(tmp_path):
    """As banks were made before kinds had statistics of their own."""
    start = bank(*NAMES)
    mixed = start.sites["first"].merge(collect(*of_none(), 3))
    old = replace(start, sites={"first": mixed}).calibrated()
    old.save(tmp_path / "old.safetensors", old.model)
    again = Bank.load(tmp_path / "old.safetensors").scorer()
    asked = of_none()[1]
    plain = Scorer.of(mixed, NAMES, SHRINKAGE, old.alpha["first"])
    assert again.labels == (*NAMES, TEXT) and torch.equal(again.scores(asked), plain.scores(asked))


def test_what_is_left_without_procedures_scores_nothing():
    empty = made("a", "b").remove(["a", "b"])
    assert set(empty.sites) == {"first", "several", "text"} and empty.scorer().labels == ()
    assert empty.calibrated().scorer().scores(of_one()[1]).shape == (96, 0)
