"""The head on the tokens around prompts: class-balanced multinomial logistic regression.

It knows, for every sample, what it would have said without the prompt it came from (`leave_out`), because
that is the only honest evidence a handful of prompts gives. Which tokens become samples is the reader's.

Solved in float64, in whichever of samples and features there are fewer; scores are float32.

Shape suffixes: M samples, N tokens, F features, K classes, D the smaller of M and F, P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
STEPS = 200  # of L-BFGS at most; it takes about 25


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression: least |W|^2 / 2 + C sum_i w_i ce_i, scikit-learn's objective (weights
    of mean 1, no penalty on the intercept). `scores` are log-probabilities."""

    weight_FK: Tensor
    bias_K: Tensor
    left_MK: Tensor

    @classmethod
    def fit(
        cls,
        x_MF: Tensor,
        y_M: Tensor,
        group_M: Tensor,
        K: int,
        weight_M: Tensor | None = None,
        C: float = 0.1,
        balance: float = 1.0,
    ) -> Logistic:
        """group_M: the prompt of each sample. balance: 1 gives every class the same total weight, 0 every
        sample. Solved by L-BFGS to a slope of 1e-5. Raises ValueError for no sample, a class without one, or
        a C that is not above 0."""
        x, y, w_M = _samples(x_MF, y_M, K, weight_M, balance)
        if C <= 0:
            raise ValueError(f"C is {C}")
        middle_F = (w_M / w_M.sum()) @ x
        x = x - middle_F
        M, F = x.shape
        if M > F:
            z_MD = x
        else:
            # the solution lies in the samples' span: coordinates in an orthonormal basis of it
            basis_FM, upper_MM = np.linalg.qr(x.T)
            z_MD = upper_MM.T
        beta_DK, bias_K = _minimise(z_MD, y, w_M, C)
        weight_FK = beta_DK if M > F else basis_FM @ beta_DK
        logit_MK = z_MD @ beta_DK + bias_K
        left_MK = _without(logit_MK, y, w_M, group_M, z_MD, C)
        return cls(_single(weight_FK), _single(bias_K - middle_F @ weight_FK), _single(left_MK))

    def scores(self, x_NF: Tensor) -> Tensor:
        """[N,K] float32 log-probabilities."""
        return (x_NF.float() @ self.weight_FK + self.bias_K).log_softmax(1)

    def leave_out(self) -> Tensor:
        """[M,K] float32: about the log-probabilities from a fit without the sample's group: one Newton step
        from the fit, with one curvature for all classes (Rad & Maleki 2020, 1801.10243). With one group:
        uniform."""
        return self.left_MK


def _samples(
    x_MF: Tensor, y_M: Tensor, K: int, weight_M: Tensor | None, balance: float
) -> tuple[Floats, Floats, Floats]:
    """Samples [M,F], indicators [M,K], weights [M] of mean 1."""
    x, label_M = x_MF.detach().double().numpy(), y_M.numpy()
    if not len(x):
        raise ValueError("a head of no samples")
    w_M = np.ones(len(x)) if weight_M is None else weight_M.detach().double().numpy()
    y = np.zeros((len(x), K))
    y[np.arange(len(x)), label_M] = 1
    total_K = w_M @ y
    if not (total_K > 0).all():
        raise ValueError("a class without samples")
    w_M = w_M * total_K[label_M] ** -balance
    return x, y, w_M * (len(x) / w_M.sum())


def _groups(group_M: Tensor) -> list[NDArray[np.int64]]:
    """The samples of each group."""
    group = group_M.numpy()
    order = np.argsort(group, kind="stable")
    cuts = np.nonzero(np.diff(group[order]))[0] + 1
    return np.split(order, cuts)


def _half(gram_DD: Floats, ridge: float, right: Floats) -> Floats:
    """L^-1 right, with L L^T = gram + ridge."""
    from scipy.linalg import solve_triangular

    lower_DD = np.linalg.cholesky(gram_DD + ridge * np.eye(len(gram_DD)))
    found: Floats = solve_triangular(lower_DD, right, lower=True)
    return found


def _minimise(z_MD: Floats, y: Floats, w_M: Floats, C: float) -> tuple[Floats, Floats]:
    """Coefficients [D,K] and intercepts [K]. The objective is scaled to a mean, as scikit-learn does, so that
    the tolerance means the same at any number of samples."""
    from scipy.optimize import minimize

    D, K = z_MD.shape[1], y.shape[1]
    share_M = w_M / w_M.sum()
    pull = 1 / (C * w_M.sum())

    def loss(flat: Floats) -> tuple[float, Floats]:
        beta_DK, bias_K = flat[: D * K].reshape(D, K), flat[D * K :]
        log_p_MK = _log_softmax(z_MD @ beta_DK + bias_K)
        value = 0.5 * pull * (beta_DK * beta_DK).sum() - share_M @ (log_p_MK * y).sum(1)
        slope_MK = share_M[:, None] * (np.exp(log_p_MK) - y)
        return value, np.concatenate([(pull * beta_DK + z_MD.T @ slope_MK).ravel(), slope_MK.sum(0)])

    options = {"maxiter": STEPS, "gtol": 1e-5, "ftol": 1e-13}
    found = minimize(loss, np.zeros(D * K + K), jac=True, method="L-BFGS-B", options=options)
    return found.x[: D * K].reshape(D, K), found.x[D * K :]


def _without(logit_MK: Floats, y: Floats, w_M: Floats, group_M: Tensor, z_MD: Floats, C: float) -> Floats:
    """Log-probabilities of every group after one step away from its own samples."""
    log_p_MK = _log_softmax(logit_MK)
    p_MK = np.exp(log_p_MK)
    K = y.shape[1]
    curve = max(float(w_M @ (p_MK * (1 - p_MK)).mean(1) / w_M.sum()), 1e-3)
    heavy_M = C * curve * w_M
    half_DM = _half((z_MD * heavy_M[:, None]).T @ z_MD, 1.0, z_MD.T)
    left_MK = logit_MK.copy()
    groups = _groups(group_M)
    for size in {len(at) for at in groups}:
        at_GM = np.stack([at for at in groups if len(at) == size])
        if size == len(y):
            left_MK[:] = 0
            continue
        half_GMD = half_DM.T[at_GM]
        block_GMM = half_GMD @ half_GMD.transpose(0, 2, 1) + 1 / heavy_M.sum()
        pull_GMK = (C * w_M[at_GM])[..., None] * (p_MK[at_GM] - y[at_GM])
        near_GMM = np.eye(size) - heavy_M[at_GM][..., None] * block_GMM
        left_MK[at_GM] += block_GMM @ np.linalg.solve(near_GMM, pull_GMK)
    return _log_softmax(left_MK) if K > 1 else np.zeros_like(left_MK)


def _log_softmax(logit_MK: Floats) -> Floats:
    top_M1 = logit_MK.max(1, keepdims=True)
    found: Floats = logit_MK - top_M1 - np.log(np.exp(logit_MK - top_M1).sum(1, keepdims=True))
    return found


def _single(values: Floats) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
