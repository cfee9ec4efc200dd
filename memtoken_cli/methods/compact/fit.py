"""Values (and masses) that make the kept keys answer as the whole prompt did.

On-policy and in one forward: at each layer the queries are those of a model that already reads the
compacted earlier layers, so that later layers repair what earlier ones lost.

Shape suffixes: F query tokens laid flat, R fitted rows (fitted tokens x the group's heads), T prompt
tokens, M kept tokens of a head, N key/value heads, G query heads of each, D head width, U own tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine.attend import Packing, Site, attend
from ...engine.backbone import hides
from ...engine.memory import LayerKV, Layers
from .reference import Reference
from .score import out_of_sight, softmax, tiles

RIDGE = 1e-2


@dataclass
class Fit:
    """A reader that compacts each layer when its turn comes, then attends to what it made."""

    memory: Layers
    chosen: list[list[Tensor]]
    reference: Reference
    packing: Packing
    position_BT: Tensor
    bias: bool = True
    store: torch.dtype = torch.bfloat16
    layers: list[LayerKV] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        hidden_FT = self.reference.hidden_FT.to(self.position_BT.device)
        self.hidden = hides(hidden_FT, self.memory)
        self.hidden_kept = hides(hidden_FT, self.memory, self.chosen)

    def __call__(self, site: Site) -> Tensor:
        whole, chosen = self.memory.layers[site.layer], self.chosen[site.layer]
        fitted_R, G = self.reference.fitted_R.to(site.q_BHTD.device), site.groups
        own_HR, own_HRD = _own(site, fitted_R)
        unseen_RT = out_of_sight(site, whole, self.hidden, fitted_R)
        values, biases = [], []
        error = norm = 0.0
        for n, (k_TD, v_TD, *_) in enumerate(whole.heads()):
            heads = slice(n * G, n * G + G)
            found = []
            for q_GRD, unseen in tiles(site.q_HFD[heads, fitted_R], unseen_RT):
                logits_GRT = site.memory_logits(q_GRD, k_TD, unseen)
                A_GRT = softmax(logits_GRT, unseen)
                top_GR1, at = A_GRT.max(-1, keepdim=True)
                mass_GR1 = logits_GRT.gather(-1, at) - top_GR1.log()  # cheaper than a second logsumexp
                found.append((mass_GR1, A_GRT[..., chosen[n]], A_GRT @ v_TD.float()))
            mass_R1, M_RM, Y_RD = (torch.cat(part, 1).flatten(0, 1) for part in zip(*found, strict=True))
            own_R1 = (own_HR[heads].flatten()[:, None] - mass_R1).exp().nan_to_num(0.0, 0.0, 0.0)
            v_MD = v_TD[chosen[n]].float()
            if self.bias:
                biases.append(mass(M_RM).log())
                M_RM = M_RM * biases[-1].exp()
            X_RM, Y_RD = in_context(M_RM, Y_RD, own_R1, own_HRD[heads].flatten(0, 1))
            rest_RD = Y_RD - X_RM @ v_MD
            delta_MD = solve(X_RM, rest_RD, RIDGE)
            values.append((v_MD + delta_MD).to(self.store))
            error += float((rest_RD - X_RM @ delta_MD).square().sum())
            norm += float(Y_RD.square().sum())
        kept = whole.take(chosen)
        bias_X = torch.cat(biases) if self.bias else None
        self.layers.append(LayerKV(kept.k_XD.to(self.store), torch.cat(values), kept.sizes, bias_X, kept.pos_X))
        self.errors.append(error / max(norm, 1e-30))
        return attend(site, self.layers[-1], self.hidden_kept)


def _own(site: Site, fitted_R: Tensor) -> tuple[Tensor, Tensor]:
    """What fitted queries get from their own rows: log mass [H,R] and answer [H,R,D]; a sink adds mass alone."""
    logits_HFU = site.own_logits()
    answer_HRD = site.own_output(logits_HFU.softmax(-1))[:, fitted_R].float()
    mass_HR = logits_HFU[:, fitted_R].logsumexp(-1)
    if site.sink_H is not None:
        sunk_HR = torch.logaddexp(mass_HR, site.sink_H[:, None].float())
        return sunk_HR, answer_HRD * (mass_HR - sunk_HR).exp()[..., None]
    return mass_HR, answer_HRD


def in_context(M_RM: Tensor, Y_RD: Tensor, own_R1: Tensor, own_RD: Tensor) -> tuple[Tensor, Tensor]:
    """The exact linear problem when memory shares its softmax with the query's own tokens.

    M: unnormalised weights of the kept keys in units of the prompt's mass, Y: what the prompt alone
    answers, own: the own tokens' mass in the same units, and their answer. The whole answers
    (Y + own a)/(1 + own), the memory (M C + own a)/(sum M + own); X C = Y' makes them equal."""
    share_R1 = 1 / (M_RM.sum(-1, keepdim=True) + own_R1).clamp(min=1e-12)
    whole_RD = (Y_RD + own_R1 * own_RD) / (1 + own_R1)
    return M_RM * share_R1, whole_RD - own_R1 * share_R1 * own_RD


def solve(X_RM: Tensor, Y_RD: Tensor, ridge: float) -> Tensor:
    """(X^T X + ridge * mean(diag) I)^-1 X^T Y in float32 by Cholesky: [M,D]."""
    gram = X_RM.T @ X_RM
    gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
    return torch.cholesky_solve(X_RM.T @ Y_RD, torch.linalg.cholesky(gram))


def mass(M_RM: Tensor, ridge: float = 1e-3, steps: int = 20) -> Tensor:
    """b = argmin |M b - 1|^2 over [e^-3, e^3], a ridge start and projected gradient steps: [M]."""
    low, high = float(torch.e**-3), float(torch.e**3)
    ones = M_RM.new_ones(M_RM.shape[0], 1)
    b = solve(M_RM, ones, ridge).clamp(low, high)
    gram, target = M_RM.T @ M_RM, M_RM.T @ ones
    step = 1.0 / torch.linalg.matrix_norm(gram, 1).clamp(min=1e-12)
    for _ in range(steps):
        b = (b - step * (gram @ b - target)).clamp(low, high)
    return b[:, 0]
