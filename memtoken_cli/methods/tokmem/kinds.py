"""Queries for one procedure, for several and for none, told apart at the first site; the end, at a boundary.

Kinds of queries have statistics of their own (`first`, `several`, `text`), so that none disturbs another. A
kind is taken as one normal distribution over all its classes, and two kinds have one linear discriminant, in
closed form. Scores of the procedures of a kind are `lda.py`'s.

Shape suffixes: B rows, C classes, L labels, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memtoken_cli.methods.tokmem.config import Feature
from memtoken_cli.methods.tokmem.lda import Scorer, chosen, fit_alpha, wide
from memtoken_cli.methods.tokmem.statistics import END, FACETS, SPECIALS, TEXT, Kind, Statistics, shrunk

Places = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """The discriminant of two kinds. weight, middle: one [D] a feature. gap: of the kinds' means on it."""

    weight: tuple[Tensor, ...]
    middle: tuple[Tensor, ...]
    gap: float

    @classmethod
    def of(cls, one: Statistics, other: Statistics, shrinkage: float, form: str = FACETS[0]) -> Axis:
        """Neither is empty; of the first kind the prompts of one form. The covariance is the mean of the
        kinds'."""
        weights, middles, gap = [], [], 0.0
        for f in range(len(one.moments)):
            (a_D, a_DD), (b_D, b_DD) = _whole(one, f, form), _whole(other, f)
            lower_DD = torch.linalg.cholesky(shrunk((a_DD + b_DD) / 2, shrinkage))
            weight_D = torch.cholesky_solve((a_D - b_D)[:, None], lower_DD)[:, 0]
            weights.append(weight_D)
            middles.append((a_D + b_D) / 2)
            gap += float(weight_D @ (a_D - b_D))
        return cls(tuple(weights), tuple(middles), gap)

    def score(self, features: Sequence[Tensor]) -> Tensor:
        """[B] float64 of one [B,D] a feature: above 0 on the side of the first kind."""
        score_B = torch.zeros(len(features[0]), dtype=torch.float64)
        for x_BD, weight_D, middle_D in zip(features, self.weight, self.middle, strict=True):
            score_B = score_B + (wide(x_BD) - middle_D) @ weight_D
        return score_B


@dataclass(frozen=True)
class FirstSite:
    """Scores of the first site where queries for several procedures have statistics of their own. axes:
    between them and those for one, in each form that these come in. places: of the features that kinds are
    told apart by."""

    one: Scorer
    several: Scorer
    axes: tuple[Axis, ...]
    places: Places

    @property
    def labels(self) -> tuple[str, ...]:
        return self.one.labels

    def asks_for_several(self, features: Sequence[Tensor]) -> Tensor:
        """[B] bool."""
        told = chosen(features, self.places)
        return torch.stack([axis.score(told) < 0 for axis in self.axes]).all(0)

    def scores(self, features: Sequence[Tensor]) -> Tensor:
        """[B,L] float64: each row's by its own kind. TEXT stands as far from the best procedure as it does
        among queries for one."""
        one_BL, several_BL = self.one.scores(features), self.several.scores(features)
        if TEXT in self.labels:
            P = len(self.several.labels)
            ahead_B = several_BL.amax(1) - one_BL[:, :P].amax(1)
            several_BL = torch.cat([several_BL, one_BL[:, P:] + ahead_B[:, None]], 1)
        return torch.where(self.asks_for_several(features)[:, None], several_BL, one_BL)


@dataclass(frozen=True)
class NextSite:
    """Scores of a boundary: of what may follow a segment, and of the END. axis: between the END and all that
    may follow."""

    following: Scorer
    axis: Axis

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.following.labels, END)

    def scores(self, features: Sequence[Tensor]) -> Tensor:
        """[B,L] float64. The END is ahead of the best procedure by the discriminant."""
        next_BP = self.following.scores(features)
        end_B = next_BP.amax(1) + self.following.alpha * self.axis.score(features)
        return torch.cat([next_BP, end_B[:, None]], 1)


AnyScorer = Scorer | FirstSite | NextSite


def first_site(
    sites: Mapping[Kind, Statistics],
    procedures: Sequence[str],
    features: Sequence[Feature],
    shrinkage: float,
    alpha: Mapping[Kind, float],
) -> Scorer | FirstSite:
    """The scores of the first site. Procedures of queries for several are known by those for one too."""
    whole, lead = places_of(features)
    stats = sites["first"].only(whole)
    one = replace(Scorer.of(stats, procedures, shrinkage, alpha.get("first", 1.0)), places=whole)
    known = stats.drop(SPECIALS)
    told = {kind for kind in sites if known.classes and sites[kind].classes}
    if "text" in told:
        one = with_text(one, stats, sites["text"].only(whole), shrinkage)
    if "several" not in told:
        return one
    both = _together(sites, lead)
    several = replace(Scorer.of(both, procedures, shrinkage, alpha.get("several", 1.0)), places=lead)
    forms = [form for form in FACETS if any(c.facet == form for c in known.classes)]
    axes = tuple(Axis.of(known, sites["several"].only(whole), shrinkage, form) for form in forms)
    return FirstSite(one, several, axes, whole)


def boundary(
    stats: Statistics, procedures: Sequence[str], shrinkage: float, alpha: float
) -> Scorer | NextSite:
    """The scores of a boundary: a plain discriminant's where nothing was seen to follow, or to be last."""
    following = stats.drop(SPECIALS)
    if not following.procedures & set(procedures) or END not in stats.procedures:
        return Scorer.of(stats, procedures, shrinkage, alpha)
    end = stats.drop(following.procedures)
    return NextSite(Scorer.of(following, procedures, shrinkage, alpha), Axis.of(end, following, shrinkage))


def scales(
    sites: Mapping[Kind, Statistics], features: Sequence[Feature], shrinkage: float, parted: bool = False
) -> dict[Kind, float]:
    """The scale of the scores of every kind, fitted to the samples that it keeps. parted: of boundaries, that
    of `Parts`."""
    whole, lead = places_of(features)
    found: dict[Kind, float] = {}
    if parted and "first" in sites:
        found["boundary"] = fit_alpha(sites["first"].drop(SPECIALS).only(means_of(features)), shrinkage)
    for kind, stats in sites.items():
        if kind == "first":
            found[kind] = fit_alpha(stats.only(whole), shrinkage)
        elif kind == "several":
            found[kind] = fit_alpha(_together(sites, lead).asking(stats.only(lead)), shrinkage)
        elif kind == "boundary":
            found[kind] = fit_alpha(stats, shrinkage)
    return found


def with_text(one: Scorer, stats: Statistics, none: Statistics, shrinkage: float) -> Scorer:
    """With TEXT among the labels, fitted on queries for no procedure.

    It is a class with the covariance of the others, and what all of them together are not: the discriminant
    of the two kinds is added to the class's own score, both on one scale.
    """
    stats = stats.drop(SPECIALS)
    axis, asked = Axis.of(stats, none, shrinkage), _asked(stats)
    rows, bias, gap = [], 0.0, 0.0
    for f, centre_D in enumerate(one.centre):
        lower_DD = torch.linalg.cholesky(stats.spread(f, shrinkage).covariance_DD)
        mean_D = _whole(none, f)[0]
        apart_CD = stats.moments[f].mean_CD[asked] - mean_D
        gap += float((torch.cholesky_solve(apart_CD.T, lower_DD).T * apart_CD).sum(1).mean())
        rows.append(torch.cholesky_solve((mean_D - centre_D)[:, None], lower_DD)[:, 0])
        bias -= float(rows[f] @ (mean_D - centre_D)) / 2
    scale = gap / axis.gap if axis.gap > 0 else 0.0
    for f, centre_D in enumerate(one.centre):
        rows[f] = rows[f] - scale * axis.weight[f]
        bias += scale * float(axis.weight[f] @ (axis.middle[f] - centre_D))
    labels = one.labels if TEXT in one.labels else (*one.labels, TEXT)
    return replace(
        one,
        labels=labels,
        weight=tuple(torch.cat([w_CD, row_D[None]]) for w_CD, row_D in zip(one.weight, rows, strict=True)),
        bias_C=torch.cat([one.bias_C, torch.tensor([bias], dtype=torch.float64)]),
        label_C=torch.cat([one.label_C, torch.tensor([labels.index(TEXT)])]),
    )


def means_of(features: Sequence[Feature]) -> Places:
    """Where the plain means over the user's tokens lie."""
    return tuple(f for f, feature in enumerate(features) if feature.pool == "user")


def places_of(features: Sequence[Feature]) -> tuple[Places, Places]:
    """Where the features lie that queries for one procedure are scored by, and those for several: the ones
    that lean to the first tokens are for the latter alone. All, where there are none of a sort."""
    lead = tuple(f for f, feature in enumerate(features) if feature.pool == "lead")
    every = tuple(range(len(features)))
    return tuple(f for f in every if f not in lead) or every, lead or every


def _together(sites: Mapping[Kind, Statistics], places: Places) -> Statistics:
    return sites["first"].drop(SPECIALS).merge(sites["several"]).only(places)


def _asked(stats: Statistics, form: str = FACETS[0]) -> list[int]:
    """The classes of prompts of one form; all where there are none."""
    every = range(len(stats.classes))
    return [i for i in every if stats.classes[i].facet == form] or list(every)


def _whole(stats: Statistics, feature: int, form: str = FACETS[0]) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D,D] of prompts of one form, whatever their class; classes count alike."""
    moments = stats.moments[feature]
    mean_CD = moments.mean_CD[_asked(stats, form)]
    mean_D = mean_CD.mean(0)
    apart_CD = mean_CD - mean_D
    within_DD = moments.scatter_DD / max(1.0, stats.freedom)
    return mean_D, within_DD + apart_CD.T @ apart_CD / len(mean_CD)
