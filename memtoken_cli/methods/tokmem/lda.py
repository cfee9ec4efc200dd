"""Scores of procedures from statistics: linear discriminant analysis with a fitted scale, in float64.

Priors are uniform on purpose: a procedure with more samples is no more likely. Queries that ask for several
procedures, or for none, are told apart in `kinds.py`. Which scores may be chosen is `route.py`'s.

Shape suffixes: B rows, C classes, L labels, D width of a feature, V kept samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.methods.tokmem.statistics import SPECIALS, Statistics

SCALES = (1e-4, 1.0)  # raw posteriors are too sharp, never too flat
UNFITTED = 0.1  # of one feature, where no class has a sample to spare
HALVINGS = 45
MOST_KEPT = 1024  # samples that the scale is fitted on


@dataclass(frozen=True)
class Scorer:
    """labels: procedures as asked for, then TEXT and END where the statistics have them. weight: one [C,D] a
    feature; centre: one [D]; bias_C of all; label_C: the label of each class. places: of these features among
    those that come; None: no others come."""

    labels: tuple[str, ...]
    alpha: float
    weight: tuple[Tensor, ...]
    centre: tuple[Tensor, ...]
    bias_C: Tensor
    label_C: Tensor
    places: tuple[int, ...] | None = None

    @classmethod
    def of(cls, stats: Statistics, procedures: Sequence[str], shrinkage: float, alpha: float = 1.0) -> Scorer:
        """w_c = Sigma^-1 (mean_c - m) and s_c(x) = w_c . (x - m) - w_c . (mean_c - m) / 2, summed over
        features."""
        labels = (*procedures, *(name for name in SPECIALS if name in stats.procedures))
        at = {name: i for i, name in enumerate(labels)}
        used = [i for i, c in enumerate(stats.classes) if c.procedure in at]
        label_C = torch.tensor([at[stats.classes[i].procedure] for i in used], dtype=torch.long)
        bias_C = torch.zeros(len(used), dtype=torch.float64)
        weights, centres = [], []
        for f, moments in enumerate(stats.moments):
            basis = stats.spread(f, shrinkage)
            apart_CD = moments.mean_CD[used] - basis.centre_D
            lower_DD = torch.linalg.cholesky(basis.covariance_DD)
            weight_CD = torch.cholesky_solve(apart_CD.T, lower_DD).T.contiguous()
            bias_C = bias_C - (weight_CD * apart_CD).sum(1) / 2
            weights.append(weight_CD)
            centres.append(basis.centre_D)
        return cls(labels, alpha, tuple(weights), tuple(centres), bias_C, label_C)

    def raw(self, features: Sequence[Tensor]) -> Tensor:
        """[B,L] float64 of one [B,D] a feature: the better of a procedure's facets, unscaled. A label without
        samples gets -inf."""
        score_BC = self.bias_C
        for x_BD, weight_CD, centre_D in zip(
            chosen(features, self.places), self.weight, self.centre, strict=True
        ):
            score_BC = score_BC + (wide(x_BD) - centre_D) @ weight_CD.T
        return _by_label(score_BC, self.label_C, len(self.labels))

    def scores(self, features: Sequence[Tensor]) -> Tensor:
        """`raw`, scaled."""
        return self.alpha * self.raw(features)


@dataclass(frozen=True)
class Gaussian:
    """Pseudo-states of old classes: x ~ N(mean_c, Sigma), for replay without stored text."""

    mean_CD: Tensor
    lower_DD: Tensor

    @classmethod
    def of(cls, stats: Statistics, feature: int, shrinkage: float) -> Gaussian:
        """Of one feature's classes, in the order of `stats.classes`."""
        covariance_DD = stats.spread(feature, shrinkage).covariance_DD
        return cls(stats.moments[feature].mean_CD, torch.linalg.cholesky(covariance_DD))

    def draw(self, class_N: Tensor, generator: torch.Generator) -> Tensor:
        """[N,D] float32, one sample of each class index in class_N."""
        noise_ND = torch.randn(len(class_N), self.mean_CD.shape[1], generator=generator, dtype=torch.float64)
        return (self.mean_CD[class_N] + noise_ND @ self.lower_DD.T).float()


def chosen(features: Sequence[Tensor], places: tuple[int, ...] | None) -> Sequence[Tensor]:
    """The features at these places, or all."""
    return features if places is None else [features[f] for f in places]


def wide(x: Tensor) -> Tensor:
    """As statistics are computed: float64 on the CPU."""
    return x.detach().to("cpu", torch.float64)


def log_softmax(score_BL: Tensor) -> Tensor:
    """[B,L]; a row whose scores are all -inf stays so."""
    total_B1 = score_BL.logsumexp(1, keepdim=True)
    return torch.where(total_B1.isinf(), -math.inf, score_BL - total_B1)


def fit_alpha(stats: Statistics, shrinkage: float) -> float:
    """The scale under which the kept samples' own labels are likeliest, each scored with itself left out.

    Query-only samples decide where there are any: with their instruction they are told apart so easily that
    the scale would not fit the rest.
    """
    kept = _asked(stats)
    labels = sorted(stats.procedures)
    fallback = UNFITTED / max(1, len(stats.moments))
    if not len(kept) or len(labels) < 2:
        return fallback
    at = {name: i for i, name in enumerate(labels)}
    label_C = torch.tensor([at[c.procedure] for c in stats.classes], dtype=torch.long)
    score_VC = torch.zeros(len(kept), len(stats.classes), dtype=torch.float64)
    for f in range(len(stats.moments)):
        score_VC += left_out(stats, f, shrinkage, kept)
    score_VL = _by_label(score_VC, label_C, len(labels))
    return likeliest(score_VL, label_C[stats.val_class_V[kept]])


def left_out(stats: Statistics, feature: int, shrinkage: float, kept_V: Tensor) -> Tensor:
    """[V,C] scores of kept samples, up to a constant a row, each as if its class had never seen it.

    In the eigenbasis of the scatter one sample less is a diagonal and a matrix of rank one, so that no
    covariance is factored again.
    """
    moments, D = stats.moments[feature], stats.widths[feature]
    x_VD, class_V = stats.val[feature][kept_V].double(), stats.val_class_V[kept_V]
    more_V = (stats.count_C / (stats.count_C - 1))[class_V]
    own_VD = x_VD - moments.mean_CD[class_V]
    downdates = stats.basis is None and stats.pooled(feature)
    matrix_DD = moments.scatter_DD if downdates else stats.spread(feature, shrinkage).covariance_DD
    value_D, vector_DD = torch.linalg.eigh(matrix_DD)
    value_D = value_D.clamp(min=0)
    mean_CD, own_VD, x_VD = moments.mean_CD @ vector_DD, own_VD @ vector_DD, x_VD @ vector_DD
    away_VD = own_VD * more_V[:, None]  # from its class's mean as that was without it
    if not downdates:
        gone_VD, weight_VD = torch.zeros_like(own_VD), (1 / value_D).expand(len(x_VD), D)
    else:
        freedom = stats.freedom - 1
        gone_VD = own_VD * (more_V / freedom).sqrt()[:, None]
        variance_V = (value_D.sum() / freedom - gone_VD.square().sum(1)) / D
        weight_VD = 1 / (value_D / freedom + shrinkage * variance_V[:, None])
    tilted_VD = gone_VD * weight_VD
    # |x - mean|^2 under the weights, and along what is gone, multiplied out
    square_VC = (
        (x_VD.square() * weight_VD).sum(1)[:, None]
        - 2 * (x_VD * weight_VD) @ mean_CD.T
        + weight_VD @ mean_CD.square().T
    )
    along_VC = (x_VD * tilted_VD).sum(1)[:, None] - tilted_VD @ mean_CD.T
    at_V = torch.arange(len(x_VD))
    square_VC[at_V, class_V] = (away_VD.square() * weight_VD).sum(1)
    along_VC[at_V, class_V] = (away_VD * tilted_VD).sum(1)
    left_V = 1 - (gone_VD * tilted_VD).sum(1)
    score_VC: Tensor = -(square_VC + along_VC.square() / left_V[:, None]) / 2
    return score_VC


def likeliest(score_VL: Tensor, label_V: Tensor) -> float:
    """The scale in SCALES that makes the labels likeliest: the likelihood is concave in it.

    One sample more is counted that goes to its runner-up: without it a few samples that are all right would
    ask for certainty.
    """
    score_VL = score_VL - score_VL.gather(1, label_V[:, None])
    others_VL = score_VL.scatter(1, label_V[:, None], float("-inf"))
    wrong = float(others_VL.amax(1).nan_to_num(neginf=0.0).mean()) / (len(score_VL) + 1)

    def slope(alpha: float) -> float:
        p_VL = (alpha * score_VL).softmax(1)
        return float((p_VL * score_VL.nan_to_num(neginf=0.0)).sum(1).mean()) - wrong

    low, high = (math.log(alpha) for alpha in SCALES)
    if slope(SCALES[1]) < 0:
        return SCALES[1]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(low)


def _asked(stats: Statistics) -> Tensor:
    """Indices of the kept samples that the scale is fitted on, none of a class that has no other sample."""
    spare_V = stats.count_C[stats.val_class_V] > 1
    bare_C = torch.tensor([c.facet == "query" for c in stats.classes], dtype=torch.bool)
    bare_V = bare_C[stats.val_class_V] if len(stats.classes) else spare_V
    chosen_V = (spare_V & bare_V).nonzero()[:, 0]
    if not len(chosen_V):
        chosen_V = spare_V.nonzero()[:, 0]
    step = math.ceil(len(chosen_V) / MOST_KEPT)
    return chosen_V[:: max(1, step)]


def _by_label(score_BC: Tensor, label_C: Tensor, labels: int) -> Tensor:
    """[B,L]: the best of each label's classes, -inf where it has none."""
    out_BL = torch.full((score_BC.shape[0], labels), -math.inf, dtype=torch.float64)
    return out_BL.scatter_reduce(1, label_C.expand_as(score_BC), score_BC, "amax")
