"""Values (and masses) that make the kept keys answer as the whole prompt did.

On-policy and in one forward: at each layer the queries are those of a model that already reads the
compacted earlier layers, so that later layers repair what earlier ones lost.

Shape suffixes: F query tokens laid flat, R = F times the group's heads, f a few of F, T prompt
tokens, M kept tokens of a head, P those of them that are fitted, N key/value heads, G query heads of each,
D head width, U own tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine.attend import Packing, Site, attend
from ...engine.backbone import hides
from ...engine.memory import LayerKV, Layers
from .reference import Reference
from .view import View, own

RIDGE = 1e-3
COMMON = 0.5  # of the queries' variance about zero
FITTED = 512  # kept tokens of a head; beyond them a fit costs its square, and gains nothing measurable


@dataclass
class Fit:
    """A reader that compacts each layer when its turn comes, then attends to what it made."""

    memory: Layers
    chosen: list[list[Tensor]]
    reference: Reference
    packing: Packing | None
    position_BT: Tensor | None
    bias: bool = False
    store: torch.dtype = torch.bfloat16
    layers: list[LayerKV] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        hidden_FT = self.reference.hidden_FT.to(self.memory.layers[0].k_XD.device)
        self.hidden = hides(hidden_FT, self.memory)
        self.hidden_kept = hides(hidden_FT, self.memory, self.chosen)

    def __call__(self, site: Site) -> Tensor:
        whole, G = self.memory.layers[site.layer], site.groups
        view, (own_HF, own_HFD) = View(site, whole, self.hidden), own(site)
        keys, values, biases = [], [], []
        error = norm = 0.0
        for n, (k_TD, v_TD, *_) in enumerate(whole.heads()):
            heads, kept_M, v_TD = slice(n * G, n * G + G), self.chosen[site.layer][n], v_TD.float()
            found = []
            for mass_Gf1, A_GfT in view.tiles(n, k_TD):
                # gather, not indexing: five times faster on a CPU
                M_GfM = A_GfT.gather(-1, kept_M.expand(*A_GfT.shape[:2], -1))
                found.append((mass_Gf1, M_GfM, A_GfT @ v_TD))
            mass_R1, M_RM, Y_RD = (torch.cat(part, 1).flatten(0, 1) for part in zip(*found, strict=True))
            own_R1 = (own_HF[heads].flatten()[:, None] - mass_R1).exp().nan_to_num(0.0, 0.0, 0.0)
            own_RD, v_MD, k_MD = own_HFD[heads].flatten(0, 1), v_TD[kept_M], k_TD[kept_M]
            # nothing dropped, nothing to stand for
            some_P = strongest(M_RM, FITTED if len(kept_M) < len(k_TD) else 0)
            M_RP, v_PD = M_RM.gather(1, some_P.expand(len(M_RM), -1)), v_MD[some_P]
            still_R1 = M_RM.sum(-1, keepdim=True) - M_RP.sum(-1, keepdim=True)
            still_RD = M_RM @ v_MD - M_RP @ v_PD
            beta_P = mass(M_RP, 1 - still_R1).log()
            if self.bias:
                biases.append(beta_P.new_zeros(len(kept_M)).index_copy(0, some_P, beta_P))
                M_RP = M_RP * beta_P.exp()
            elif site.softcap is None:
                shift_PD, gain_RP = folded(site.q_HFD[heads].flatten(0, 1).float() * site.scaling, beta_P)
                M_RP, k_MD = M_RP * gain_RP, k_MD.float().index_add(0, some_P, shift_PD)
            keys.append(k_MD.to(self.store))
            norm += float((Y_RD / (1 + own_R1)).square().sum())
            X_RP, Y_RD = in_context(M_RP, Y_RD, own_R1, own_RD, still_R1, still_RD)
            rest_RD = Y_RD - X_RP @ v_PD
            delta_PD = solve(X_RP, rest_RD, RIDGE)
            values.append(v_MD.index_add(0, some_P, delta_PD).to(self.store))
            error += float((rest_RD - X_RP @ delta_PD).square().sum())
        kept = whole.take(self.chosen[site.layer])
        bias_X = torch.cat(biases) if self.bias else None
        self.layers.append(LayerKV(torch.cat(keys), torch.cat(values), kept.sizes, bias_X, kept.pos_X))
        self.errors.append(error / max(norm, 1e-30))
        return attend(site, self.layers[-1], self.hidden_kept)


def in_context(
    M_RM: Tensor,
    Y_RD: Tensor,
    own_R1: Tensor,
    own_RD: Tensor,
    still_R1: Tensor | float = 0.0,
    still_RD: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The exact linear problem when memory shares its softmax with the query's own tokens.

    M: unnormalised weights of the keys whose values are sought, in units of the prompt's mass, Y: what the
    prompt alone answers, own: the own tokens' mass in the same units, and their answer; still: the mass s of
    kept keys that stay as they are, and what they add. The whole answers (Y + own a)/(1 + own), the memory
    (M C + still + own a)/(sum M + s + own); X C = Y' makes them equal."""
    share_R1 = 1 / (M_RM.sum(-1, keepdim=True) + still_R1 + own_R1).clamp(min=1e-12)
    whole_RD = (Y_RD + own_R1 * own_RD) / (1 + own_R1)
    return M_RM * share_R1, whole_RD - share_R1 * (own_R1 * own_RD + still_RD)


def strongest(M_RM: Tensor, most: int) -> Tensor:
    """The `most` keys of greatest squared weight, in order: [P]."""
    if M_RM.shape[1] <= most:
        return torch.arange(M_RM.shape[1], device=M_RM.device)
    norm_M: Tensor = torch.linalg.vector_norm(M_RM, dim=0)
    return norm_M.topk(most).indices.sort().values


def folded(q_RD: Tensor, beta_M: Tensor) -> tuple[Tensor, Tensor]:
    """A bias without a place of its own: what to add to the keys [M,D], and by how much each (scaled) query
    then weighs each key more [R,M].

    Queries of a head share a large mean, so that a key moved by beta along the direction that all of them
    have in common gains about beta in its logit. Nothing moves where they have little in common."""
    unit_D = solve(q_RD, q_RD.new_ones(len(q_RD), 1), 1e-3)[:, 0]
    heard_R = q_RD @ unit_D
    if heard_R.mean() < COMMON:
        beta_M = torch.zeros_like(beta_M)
    return beta_M[:, None] * unit_D, (heard_R[:, None] * beta_M).exp()


def solve(X_RM: Tensor, Y_RD: Tensor, ridge: float) -> Tensor:
    """(X^T X + ridge * mean(diag) I)^-1 X^T Y in float32 by Cholesky: [M,D]."""
    gram, right = normal(X_RM, Y_RD)
    return ridged(gram, right, ridge)


def normal(X_RM: Tensor, Y_RD: Tensor) -> tuple[Tensor, Tensor]:
    """X^T X and X^T Y."""
    return X_RM.T @ X_RM, X_RM.T @ Y_RD


def ridged(gram_MM: Tensor, right_MD: Tensor, ridge: float) -> Tensor:
    gram_MM = gram_MM.clone()
    gram_MM.diagonal().add_(ridge * gram_MM.diagonal().mean() + 1e-12)
    return torch.cholesky_solve(right_MD, torch.linalg.cholesky(gram_MM))


def mass(M_RM: Tensor, lacking_R1: Tensor | None = None, ridge: float = 1e-3, steps: int = 20) -> Tensor:
    """b = argmin |M b - lacking|^2 over [e^-3, e^3], a ridge start and projected gradient steps: [M].

    lacking: the mass that M is to have; left out: all of the prompt's, 1."""
    low, high = float(torch.e**-3), float(torch.e**3)
    gram, target = normal(M_RM, M_RM.new_ones(M_RM.shape[0], 1) if lacking_R1 is None else lacking_R1)
    b = ridged(gram, target, ridge).clamp(low, high)
    step = 1.0 / torch.linalg.matrix_norm(gram, 1).clamp(min=1e-12)
    for _ in range(steps):
        b = (b - step * (gram @ b - target)).clamp(low, high)
    return b[:, 0]
