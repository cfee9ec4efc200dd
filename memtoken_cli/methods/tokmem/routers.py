"""Routers that look at the text instead of at the backbone: what retrieval offers in place of an address.

Each is fitted to training queries and ranks procedures for new ones; whose control row then answers is not
decided here. MiniLM comes with the extra `rag`; TF-IDF needs scikit-learn only.

Shape suffixes: N training queries, B queries, P procedures, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from memtoken_cli.methods.tokmem.lda import Scorer
from memtoken_cli.methods.tokmem.statistics import Class, collect
from memtoken_cli.metrics.calibration import fit_scale

RouterName = Literal["minilm-1nn", "minilm-centroid", "minilm-lda", "tfidf-centroid"]

ROUTERS: tuple[RouterName, ...] = ("minilm-1nn", "minilm-centroid", "minilm-lda", "tfidf-centroid")


class Encodes(Protocol):
    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 [N,D], rows of length 1."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Queries and the index of each one's procedure."""

    queries: tuple[str, ...]
    gold: tuple[int, ...]


@dataclass(frozen=True)
class Router:
    """log_probs(queries): float64 [B,P] over `names`."""

    names: tuple[str, ...]
    scores: Callable[[Sequence[str]], Tensor]
    scale: float = 1.0

    def log_probs(self, queries: Sequence[str]) -> Tensor:
        return (self.scores(queries).double() * self.scale).log_softmax(-1)


def fit(
    name: RouterName,
    names: Sequence[str],
    train: Labelled,
    val: Labelled | None = None,
    encoder: Encodes | None = None,
    shrinkage: float = 0.1,
) -> Router:
    """A router over the procedures `names`; the scale of its scores is fitted on `val` where there is one.

    Raises ValueError for a MiniLM router without an encoder, or a procedure without a query.
    """
    if set(train.gold) != set(range(len(names))):
        raise ValueError("a router needs a training query of every procedure, and of no other")
    if name == "tfidf-centroid":
        scores = _tfidf(train, len(names))
    elif encoder is None:
        raise ValueError(f"{name} needs an encoder")
    elif name == "minilm-1nn":
        scores = _nearest(encoder, train, len(names))
    elif name == "minilm-centroid":
        scores = _centroid(encoder.encode, train, len(names))
    else:
        scores = _lda(encoder, train, names, shrinkage)
    scale = fit_scale(scores(val.queries), val.gold) if val is not None and val.queries else 1.0
    return Router(tuple(names), scores, scale)


def _nearest(encoder: Encodes, train: Labelled, count: int) -> Callable[[Sequence[str]], Tensor]:
    """The cosine of a procedure's nearest training query."""
    known_ND = encoder.encode(train.queries)
    gold_N = torch.tensor(train.gold)

    def scores(queries: Sequence[str]) -> Tensor:
        near_BN = encoder.encode(queries) @ known_ND.T
        best_BP = torch.full((len(queries), count), float("-inf"))
        return best_BP.scatter_reduce(1, gold_N.expand_as(near_BN), near_BN, "amax")

    return scores


def _centroid(
    encode: Callable[[Sequence[str]], Tensor], train: Labelled, count: int
) -> Callable[[Sequence[str]], Tensor]:
    """The cosine of a procedure's mean training query."""
    known_ND = encode(train.queries)
    sum_PD = torch.zeros(count, known_ND.shape[1]).index_add_(0, torch.tensor(train.gold), known_ND)
    mean_PD = F.normalize(sum_PD, dim=-1)
    return lambda queries: encode(queries) @ mean_PD.T


def _lda(
    encoder: Encodes, train: Labelled, names: Sequence[str], shrinkage: float
) -> Callable[[Sequence[str]], Tensor]:
    """The bank's own discriminant on the encoder's vectors."""
    classes = [Class(names[k]) for k in train.gold]
    scorer = Scorer.of(collect(classes, (encoder.encode(train.queries),), 0), names, shrinkage)
    return lambda queries: scorer.raw((encoder.encode(queries),))


def _tfidf(train: Labelled, count: int) -> Callable[[Sequence[str]], Tensor]:
    """The centroid of TF-IDF vectors of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # digits and single letters are words too: many queries are nothing else
    vectors = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit(train.queries)

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(vectors.transform(texts).toarray()).float()

    return _centroid(encode, train, count)
