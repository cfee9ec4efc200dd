"""What addresses are computed from: count, mean and pooled scatter of every class, streaming, in float64.

Scores are `lda.py`'s; where features come from is `features.py`'s. Any order and partition of the samples
gives the same numbers but for rounding, and the same kept samples.

Shape suffixes: N samples, C classes, D width of a feature, V kept samples, K classes of both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.tokmem.kept import kept

FACETS = ("query", "instruction+query")
TEXT, END = "\0TEXT", "\0END"  # no procedure, and the end after a segment; no name can be one of these
SPECIALS = (TEXT, END)
KEEP_ALL = 2**31 - 1
# the first site's queries for one procedure, for several (by the first of them) and for none, and boundaries
Kind = Literal["first", "boundary", "several", "text"]
KINDS: tuple[Kind, ...] = ("first", "boundary", "several", "text")


class Class(NamedTuple):
    """A procedure (or TEXT, END) asked in one form."""

    procedure: str
    facet: str = "query"


@dataclass(frozen=True)
class Moments:
    """Of one feature: mean_CD of every class and scatter_DD pooled within classes, both float64."""

    mean_CD: Tensor
    scatter_DD: Tensor


@dataclass(frozen=True)
class Basis:
    """A covariance (shrinkage included) and a centre that further samples no longer change."""

    covariance_DD: Tensor
    centre_D: Tensor


@dataclass(frozen=True)
class Statistics:
    """Of one part of a bank.

    classes: sorted, whatever the order they came in. count_C float64. moments: one a feature. freedom:
    samples less classes of the pooled scatter; a class that is dropped leaves its share. val: one [V,D]
    float32 a feature, the same samples of each class in each, val_class_V their classes; a class keeps the
    `keep_val` samples of the smallest digests, which depends on no order. basis: one a feature, or None.
    """

    classes: tuple[Class, ...]
    count_C: Tensor
    moments: tuple[Moments, ...]
    freedom: float
    val: tuple[Tensor, ...]
    val_class_V: Tensor
    keep_val: int
    basis: tuple[Basis, ...] | None = None

    @classmethod
    def empty(cls, widths: Sequence[int], keep_val: int) -> Statistics:
        """Of no sample; `widths` of the features."""
        return cls(
            (),
            torch.zeros(0, dtype=torch.float64),
            tuple(Moments(_zeros(0, D), _zeros(D, D)) for D in widths),
            0.0,
            tuple(torch.zeros(0, D) for D in widths),
            torch.zeros(0, dtype=torch.long),
            keep_val,
        )

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(m.scatter_DD.shape[0] for m in self.moments)

    @property
    def procedures(self) -> frozenset[str]:
        """Names of the classes, specials among them."""
        return frozenset(c.procedure for c in self.classes)

    def index(self, of: Class) -> int | None:
        """Where a class stands, or None."""
        return self.classes.index(of) if of in self.classes else None

    def merge(self, other: Statistics) -> Statistics:
        """Of the samples of both. Raises DataError where the features differ.

        A class of both: d = mean_a - mean_b, S = S_a + S_b + d d' n_a n_b / (n_a + n_b).
        """
        if self.widths != other.widths:
            raise DataError(f"statistics of features {self.widths} and {other.widths} wide do not add up")
        classes = tuple(sorted({*self.classes, *other.classes}))
        at = {c: i for i, c in enumerate(classes)}
        mine_C = torch.tensor([at[c] for c in self.classes], dtype=torch.long)
        theirs_C = torch.tensor([at[c] for c in other.classes], dtype=torch.long)
        a_C, b_C = (torch.zeros(len(classes), dtype=torch.float64) for _ in range(2))
        a_C[mine_C], b_C[theirs_C] = self.count_C, other.count_C
        count_C = a_C + b_C
        both_K = ((a_C > 0) & (b_C > 0)).nonzero()[:, 0]
        moments = []
        for m, o in zip(self.moments, other.moments, strict=True):
            mean_CD, theirs_CD = (_zeros(len(classes), m.mean_CD.shape[1]) for _ in range(2))
            mean_CD[mine_C], theirs_CD[theirs_C] = m.mean_CD, o.mean_CD
            apart_KD = theirs_CD[both_K] - mean_CD[both_K]
            # a class of one side keeps its mean to the bit
            alone = (a_C == 0).nonzero()[:, 0]
            mean_CD[alone] = theirs_CD[alone]
            mean_CD[both_K] += apart_KD * (b_C / count_C)[both_K, None]
            tied_KD = apart_KD * (a_C * b_C / count_C)[both_K, None].sqrt()
            moments.append(Moments(mean_CD, m.scatter_DD + o.scatter_DD + tied_KD.T @ tied_KD))
        keep_val = min(self.keep_val, other.keep_val)
        val, val_class_V = kept(
            tuple(torch.cat(pair) for pair in zip(self.val, other.val, strict=True)),
            torch.cat([mine_C[self.val_class_V], theirs_C[other.val_class_V]]),
            keep_val,
        )
        freedom = self.freedom + other.freedom + len(both_K)
        basis = self.basis or other.basis
        return Statistics(classes, count_C, tuple(moments), freedom, val, val_class_V, keep_val, basis)

    def drop(self, procedures: Collection[str], exact: bool = False) -> Statistics:
        """Without the classes of these procedures. Their share of the pooled scatter stays, so that scores of
        the rest keep their differences; `exact` takes it out of classes whose samples are all kept."""
        gone = [i for i, c in enumerate(self.classes) if c.procedure in set(procedures)]
        left = [i for i, c in enumerate(self.classes) if c.procedure not in set(procedures)]
        moments, freedom = list(self.moments), self.freedom
        for i in gone if exact else ():
            mine_V = self.val_class_V == i
            if int(mine_V.sum()) != int(self.count_C[i]):
                continue
            freedom -= float(self.count_C[i]) - 1
            for f, m in enumerate(moments):
                apart_VD = self.val[f][mine_V].double() - m.mean_CD[i]
                moments[f] = replace(m, scatter_DD=m.scatter_DD - apart_VD.T @ apart_VD)
        return replace(self, moments=tuple(moments), freedom=freedom)._chosen(left, self.classes)

    def rename(self, names: Mapping[str, str]) -> Statistics:
        """With procedures under new names."""
        renamed = tuple(Class(names.get(c.procedure, c.procedure), c.facet) for c in self.classes)
        if len(set(renamed)) < len(renamed):
            raise DataError("two classes would have one name")
        order = sorted(range(len(renamed)), key=renamed.__getitem__)
        return self._chosen(order, renamed)

    def only(self, features: Sequence[int]) -> Statistics:
        """Of these features alone, by their places."""
        return replace(
            self,
            moments=tuple(self.moments[f] for f in features),
            val=tuple(self.val[f] for f in features),
            basis=None if self.basis is None else tuple(self.basis[f] for f in features),
        )

    def asking(self, other: Statistics) -> Statistics:
        """With the kept samples of `other`, whose classes are among these, instead of its own."""
        at = torch.tensor([self.classes.index(c) for c in other.classes], dtype=torch.long)
        return replace(self, val=other.val, val_class_V=at[other.val_class_V])

    def unpooled(self) -> Statistics:
        """Counts and means alone: no share in any scatter."""
        bare = tuple(Moments(m.mean_CD, torch.zeros_like(m.scatter_DD)) for m in self.moments)
        # a class that meets nobody of its own name adds nothing, so its samples are no freedom either
        return replace(self, moments=bare, freedom=0.0)

    def same(self, other: Statistics, procedure: str) -> bool:
        """Whether a procedure's classes, counts and means are equal to the bit."""
        a, b = ([(c, i) for i, c in enumerate(s.classes) if c.procedure == procedure] for s in (self, other))
        return [c for c, _ in a] == [c for c, _ in b] and all(
            torch.equal(self.count_C[i], other.count_C[j])
            and all(
                torch.equal(m.mean_CD[i], o.mean_CD[j])
                for m, o in zip(self.moments, other.moments, strict=True)
            )
            for (_, i), (_, j) in zip(a, b, strict=True)
        )

    def pooled(self, feature: int) -> bool:
        """Whether there are samples enough for a covariance within classes."""
        return self.freedom >= max(16, self.widths[feature] / 16)

    def spread(self, feature: int, shrinkage: float) -> Basis:
        """The covariance and the centre that scores of a feature are computed with.

        Within classes, S / (N - C) + shrinkage * its mean variance * I; the total, shrinkage 1, where samples
        are too few (one-shot banks), about the centre of each form: how far queries are from queries with
        their instruction says nothing about procedures.
        """
        if self.basis is not None:
            return self.basis[feature]
        m, D = self.moments[feature], self.widths[feature]
        centre_D = m.mean_CD.mean(0) if len(self.classes) else torch.zeros(D, dtype=torch.float64)
        if self.pooled(feature):
            sigma_DD = m.scatter_DD / self.freedom
        else:
            shrinkage = 1.0
            apart_CD = m.mean_CD - _centres(self.classes, m.mean_CD)
            between_DD = (apart_CD * self.count_C[:, None]).T @ apart_CD
            sigma_DD = (m.scatter_DD + between_DD) / max(1.0, self.freedom + len(self.classes))
        return Basis(shrunk(sigma_DD, shrinkage), centre_D)

    def frozen(self, shrinkage: float) -> Statistics:
        """With the covariances and centres of now kept for good."""
        return replace(self, basis=tuple(self.spread(f, shrinkage) for f in range(len(self.moments))))

    def _chosen(self, order: Sequence[int], classes: Sequence[Class]) -> Statistics:
        """The classes of `order`, by index, called as `classes` says."""
        index_C = torch.tensor(list(order), dtype=torch.long)
        new = torch.full((len(classes),), -1, dtype=torch.long)
        new[index_C] = torch.arange(len(order))
        class_V = new[self.val_class_V] if len(classes) else self.val_class_V
        place_V = torch.argsort(class_V, stable=True)
        place_V = place_V[class_V[place_V] >= 0]
        return replace(
            self,
            classes=tuple(classes[i] for i in order),
            count_C=self.count_C[index_C],
            moments=tuple(replace(m, mean_CD=m.mean_CD[index_C]) for m in self.moments),
            val=tuple(x_VD[place_V] for x_VD in self.val),
            val_class_V=class_V[place_V],
        )


def collect(classes_N: Sequence[Class], features: Sequence[Tensor], keep_val: int) -> Statistics:
    """Of a batch: one [N,D] tensor a feature, and the class of every sample.

    Raises DataError for features that are not finite.
    """
    if any(x_ND.shape[0] != len(classes_N) for x_ND in features):
        raise DataError(f"{len(classes_N)} classes for features of {[x.shape[0] for x in features]} samples")
    classes = tuple(sorted(set(classes_N)))
    at = {c: i for i, c in enumerate(classes)}
    class_N = torch.tensor([at[c] for c in classes_N], dtype=torch.long)
    count_C = torch.bincount(class_N, minlength=len(classes)).double()
    moments = []
    for x_ND in features:
        if not bool(x_ND.isfinite().all()):
            raise DataError("a feature is not finite: the backbone overflows", hint="load it in float32")
        wide_ND = x_ND.detach().to("cpu", torch.float64)
        mean_CD = _zeros(len(classes), wide_ND.shape[1]).index_add_(0, class_N, wide_ND)
        mean_CD = mean_CD / count_C[:, None]
        apart_ND = wide_ND - mean_CD[class_N]
        moments.append(Moments(mean_CD, apart_ND.T @ apart_ND))
    val, val_class_V = kept(tuple(x.detach().to("cpu", torch.float32) for x in features), class_N, keep_val)
    freedom = float(len(classes_N) - len(classes))
    return Statistics(classes, count_C, tuple(moments), freedom, val, val_class_V, keep_val)


def shrunk(sigma_DD: Tensor, shrinkage: float) -> Tensor:
    """With `shrinkage` times its mean variance on the diagonal."""
    D = len(sigma_DD)
    variance = sigma_DD.trace() / D
    if not variance > 0:  # one class of one sample: every direction is as good
        variance, shrinkage = torch.ones((), dtype=torch.float64), 1.0
    return sigma_DD + shrinkage * variance * torch.eye(D, dtype=torch.float64)


def merged(parts: Iterable[Statistics]) -> Statistics:
    """Of all parts, of which there is at least one."""
    first, *rest = parts
    for part in rest:
        first = first.merge(part)
    return first


def _centres(classes: Sequence[Class], mean_CD: Tensor) -> Tensor:
    """[C,D]: the mean of all classes that are asked in a class's form."""
    facets = torch.tensor([FACETS.index(c.facet) for c in classes], dtype=torch.long)
    count_F = torch.bincount(facets, minlength=len(FACETS)).clamp(min=1)
    sum_FD = _zeros(len(FACETS), mean_CD.shape[1]).index_add_(0, facets, mean_CD)
    return (sum_FD / count_F[:, None])[facets]


def _zeros(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, columns, dtype=torch.float64)
