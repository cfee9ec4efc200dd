"""Calibration of label scores: one number a label, fitted on the shots' leave-one-out scores, never on
queries.

b = argmin of mean cross-entropy(log p + b, label) + lambda * mean(b^2); lambda is chosen by cross-validation
over the shots. (Zhao et al. 2021, "Calibrate before use", motivates a bias a label; the fit is ours.)

Shape suffixes: S shots, K labels, F fits (folds).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAMBDAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FOLDS = 10


@dataclass(frozen=True)
class Calibration:
    """bias_K (float64, mean zero), the lambda it was fitted with, and the cross-entropy per shot that
    cross-validation found with it and without any bias."""

    bias_K: Tensor
    strength: float
    loss: float
    loss_without: float

    def named(self, labels: Sequence[str]) -> dict[str, float]:
        return {label: float(b) for label, b in zip(labels, self.bias_K, strict=True)}


def fit_bias(scores_SK: Tensor, label_S: Tensor, strength: float, used_FS: Tensor | None = None) -> Tensor:
    """The minimiser, float64 [K], by L-BFGS (the objective is strictly convex for strength > 0).

    used_FS: True where fit f may look at shot s; then the fits are solved side by side and come as [F,K].
    """
    scores_SK = scores_SK.double()
    weight_FS = torch.ones(1, len(label_S), dtype=torch.float64) if used_FS is None else used_FS.double()
    weight_FS = weight_FS / weight_FS.sum(1, keepdim=True)
    F, K = len(weight_FS), scores_SK.shape[1]
    bias_FK = torch.zeros(F, K, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [bias_FK], max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = (_losses(scores_SK, label_S, bias_FK) * weight_FS).sum() + strength * bias_FK.square().mean(
            1
        ).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    # cross-entropy does not see a shift of all labels, and the penalty is least at mean zero
    bias_FK = bias_FK.detach() - bias_FK.detach().mean(1, keepdim=True)
    return bias_FK[0] if used_FS is None else bias_FK


def _losses(scores_SK: Tensor, label_S: Tensor, bias_FK: Tensor) -> Tensor:
    """Cross-entropy of every shot under every bias, [F,S]."""
    logp_FSK = (scores_SK + bias_FK[:, None]).log_softmax(-1)
    return -logp_FSK[:, torch.arange(len(label_S)), label_S]


def calibrate(
    scores_SK: Tensor, label_S: Tensor, lambdas: Sequence[float] = LAMBDAS, folds: int = FOLDS
) -> Calibration | None:
    """The bias, its lambda chosen by `folds`-fold cross-validation (one shot a fold where there are no more
    shots than folds); None where there are fewer than two shots or labels, or no lambda beats no bias at
    all.
    """
    S, K = scores_SK.shape
    if S < 2 or K < 2:
        return None
    held_FS = _folds(label_S, min(folds, S))
    losses = {}
    for strength in lambdas:
        bias_FK = fit_bias(scores_SK, label_S, strength, ~held_FS)
        losses[strength] = float(_losses(scores_SK.double(), label_S, bias_FK)[held_FS].mean())
    without = float(torch.nn.functional.cross_entropy(scores_SK.double(), label_S))
    best = min(losses, key=lambda strength: losses[strength])
    if losses[best] >= without:
        return None
    return Calibration(fit_bias(scores_SK, label_S, best), best, losses[best], without)


def _folds(label_S: Tensor, folds: int) -> Tensor:
    """bool [F,S]: each shot in one fold; a label's shots are dealt out in turn, so that few folds lose a
    label."""
    order = label_S.argsort(stable=True)
    fold_S = torch.empty_like(label_S)
    fold_S[order] = torch.arange(len(label_S)) % folds
    return fold_S == torch.arange(folds)[:, None]
