"""The metric of a series: features are compared after whitening by how they change from one moment to the
next.

Neighbouring tokens nearly always share a state, so what differs between them is what a state does not fix:
the within-class scatter of a discriminant analysis, had from the unlabelled series alone. It is the first
half of slow feature analysis (Wiskott & Sejnowski 2002). No weights and no labels here.

Shape suffixes: N tokens, F features, C channels, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor

LAGS = (4, 8, 16)  # tokens
TRIM = 0.9  # share of differences that counts: the largest are changes of state
MOST = 20_000  # differences of each lag
WIDEST = 640  # features; more are whitened channel by channel


def scatter(x_NF: Tensor, kept_N: Tensor, channels: int, pace: float = 1.0) -> Tensor:
    """[F,F] half the mean outer product of differences over LAGS, trimmed, float32; or one block a channel
    [C,f,f] where F is above WIDEST.

    kept_N: tokens that count. pace: how many tokens there are for one of the usual length, so that lags mean
    the same rows. A series that is too short or constant gives the identity.
    """
    N, F = x_NF.shape
    wide = F > WIDEST and F % channels == 0
    blocks = channels if wide else 1
    total = torch.zeros(blocks, F // blocks, F // blocks)
    count = 0
    for lag in (max(1, round(lag * pace)) for lag in LAGS):
        if 2 * lag >= N:
            continue
        both_N = kept_N[lag:] & kept_N[:-lag]
        at = torch.nonzero(both_N)[:, 0]
        at = at[:: -(-len(at) // MOST)] if len(at) > MOST else at
        if not len(at):
            continue
        d_NF = x_NF[at + lag].float() - x_NF[at].float()
        size_N = (d_NF * d_NF).sum(1)
        d_NF = d_NF[size_N <= size_N.quantile(TRIM)]
        d_BNf = d_NF.unflatten(1, (blocks, -1)).transpose(0, 1)
        total += d_BNf.transpose(1, 2) @ d_BNf / (2 * len(d_NF))
        count += 1
    if not count or not float(total.diagonal(dim1=1, dim2=2).sum()) > 0:
        total, count = torch.eye(F // blocks).expand_as(total), 1
    return total / count if wide else total[0] / count


def whitening(scatter_FF: Tensor, shrink: float) -> Tensor:
    """The inverse of a scatter (or of each of its blocks) that is shrunk towards a multiple of the
    identity."""
    size = float(scatter_FF.diagonal(dim1=-2, dim2=-1).mean())
    shrunk = (1 - shrink) * scatter_FF + shrink * size * torch.eye(scatter_FF.shape[-1])
    return torch.cholesky_inverse(torch.linalg.cholesky(shrunk.double())).float()


def applied(inverse: Tensor, x_PF: Tensor) -> Tensor:
    """[P,F]: the points times the metric."""
    if inverse.dim() == 2:
        return x_PF @ inverse
    x_PCf = x_PF.unflatten(1, inverse.shape[:2])
    pulled_PF: Tensor = torch.einsum("pcf,cfg->pcg", x_PCf, inverse).flatten(1)
    return pulled_PF


def root(inverse: Tensor) -> Tensor:
    """A matrix (or one a channel) R with R R^T the metric: x R is whitened."""
    lower: Tensor = torch.linalg.cholesky(inverse.double()).float()
    return lower


def distances(x_NF: Tensor, y_PF: Tensor, inverse: Tensor) -> Tensor:
    """[N,P] squared distances of tokens to points, up to a term of the token alone (which no choice between
    points needs): |y|^2 - 2 x.y in the metric. Linear in memory: x is never whitened."""
    pulled_PF = applied(inverse, y_PF)
    own_P = (pulled_PF * y_PF).sum(1)
    parts = [own_P - 2 * (x.float() @ pulled_PF.T) for x in x_NF.split(65_536)]
    return torch.cat(parts)


def lengths(x_NF: Tensor, inverse: Tensor) -> Tensor:
    """[N] the term of the token alone."""
    parts = [(applied(inverse, x.float()) * x.float()).sum(1) for x in x_NF.split(65_536)]
    return torch.cat(parts)
