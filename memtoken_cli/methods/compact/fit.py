"""Values (and masses) that make the kept keys answer as the whole prompt did.

On-policy and in one forward: at each layer the queries are those of a model that already reads the
compacted earlier layers, and what they are to hear is what the whole prompt told at that layer, so that
later layers repair what earlier ones lost.

Shape suffixes: F query tokens laid flat, R = F times the group's heads, T prompt tokens, M kept tokens of
a head, P those of them that are fitted, N key/value heads, G query heads of each, D head width, U own
tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine import precision
from ...engine.attend import Packing, Site, unseen
from ...engine.backbone import hides
from ...engine.memory import LayerKV, Layers
from .pick import ROWS, pick
from .reference import Reference
from .score import Told
from .view import own

RIDGE = 1e-3
COMMON = 0.5  # of the queries' variance about zero
FITTED = 512  # kept tokens of a head; beyond them a fit costs its square, and gains nothing measurable


@dataclass
class Head:
    """One key/value head, its `query` heads laid flat, at a layer whose memory is being made.

    told: what the undisturbed queries were; own: log mass and answer of the queries' own rows; weight_F: how
    much each counts; unseen_FM: who must not look at which of the keys asked for. step: of the queries only
    every step-th."""

    site: Site
    n: int
    told: Told
    own_HF: Tensor
    own_HFD: Tensor
    weight_F: Tensor
    unseen_FM: Tensor | None
    step: int = 1

    def of(self, x_HF: Tensor) -> Tensor:
        """Of [H,F,...] this head's part, flat: [R,...]."""
        G = self.site.groups
        return x_HF[self.n * G : self.n * G + G, :: self.step].flatten(0, 1)

    @property
    def root_R1(self) -> Tensor:
        return self.weight_F[:: self.step].sqrt().repeat(self.site.groups)[:, None]

    def logits(self, q_HFD: Tensor, k_MD: Tensor, bias_M: Tensor | None = None) -> Tensor:
        """float32 [R,M], -inf where a query must not look."""
        G, unseen_FM = self.site.groups, self.unseen_FM
        with precision.matmul(self.site.q_BHTD.dtype):
            logits_GFM = self.site.memory_logits(
                q_HFD[self.n * G : self.n * G + G, :: self.step],
                k_MD,
                None if unseen_FM is None else unseen_FM[:: self.step],
                bias_M,
            )
        return logits_GFM.flatten(0, 1)

    def weights(self, k_MD: Tensor) -> tuple[Tensor, Tensor]:
        """What keys weigh in units of the prompt's mass [R,M], and the log of that mass [R,1].

        It moves as the mass of these keys does: the others are not asked again."""
        now_RM, then_RM = self.logits(self.site.q_HFD, k_MD), self.logits(self.told.q_HFD, k_MD)
        moved_R1 = now_RM.logsumexp(-1, keepdim=True) - then_RM.logsumexp(-1, keepdim=True)
        mass_R1 = self.of(self.told.mass_HF1) + moved_R1.nan_to_num(0.0)
        return (now_RM - mass_R1).exp().nan_to_num(0.0), mass_R1

    def problem(self, M_RM: Tensor, mass_R1: Tensor, whole: Tensor | float) -> tuple[Tensor, Tensor]:
        """`in_context` for these weights, the memory's mass taken as `whole`."""
        own_R1 = (self.of(self.own_HF)[:, None] - mass_R1).exp().nan_to_num(0.0, 1.0)
        told_RD, own_RD = self.of(self.told.answer_HFD).float(), self.of(self.own_HFD)
        return in_context(M_RM, told_RD, own_R1, own_RD, whole)


@dataclass
class Fit:
    """A reader that compacts each layer when its turn comes, and goes on with what it made.

    chosen: what each head keeps; where `keep` is given, the candidates for so many places of a head, and
    once a layer is done what was picked of them."""

    memory: Layers
    chosen: list[list[Tensor]]
    told: list[Told]
    reference: Reference
    packing: Packing | None
    position_BT: Tensor | None
    keep: int | None = None
    bias: bool = False
    store: torch.dtype = torch.bfloat16
    layers: list[LayerKV] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        hidden_FT = self.reference.hidden_FT.to(self.memory.layers[0].k_XD.device)
        self.hidden_kept = hides(hidden_FT, self.memory, self.chosen)

    def __call__(self, site: Site) -> Tensor:
        whole, told = self.memory.layers[site.layer], self.told[site.layer]
        own_HF, own_HFD = own(site)
        weight_F = self.reference.weight_F((site.layer + 1) / len(self.told)).to(own_HF.device)

        def head(n: int, pos_M: Tensor | None, step: int = 1) -> Head:
            unseen_FM = unseen(site, n, pos_M, self.hidden_kept, 0, len(weight_F))
            return Head(site, n, told, own_HF, own_HFD, weight_F, unseen_FM, step)

        if self.keep is not None:
            step = max(1, site.groups * len(weight_F) // ROWS)
            for n, (k_CD, v_CD, _, pos_C) in enumerate(whole.take(self.chosen[site.layer]).heads()):
                if len(k_CD) > self.keep:
                    picked_M = self._picked(head(n, pos_C, step), k_CD, v_CD.float(), self.keep)
                    self.chosen[site.layer][n] = self.chosen[site.layer][n][picked_M]
        kept = whole.take(self.chosen[site.layer])
        keys, values, biases, answers = [], [], [], []
        error = norm = 0.0
        for n, (k_MD, v_MD, _, pos_M) in enumerate(kept.heads()):
            made = self._made(head(n, pos_M), k_MD, v_MD.float(), len(k_MD) < whole.sizes[n])
            keys.append(made.k_MD)
            values.append(made.v_MD)
            biases += [made.bias_M] if made.bias_M is not None else []
            told_RD = told.answer_HFD[n * site.groups : (n + 1) * site.groups].float()
            missed_GFD = made.missed_RD.view_as(told_RD)
            answers.append(told_RD - missed_GFD)
            norm += float(told_RD.square().sum())
            error += float(missed_GFD.square().sum())
        bias_X = torch.cat(biases) if self.bias else None
        self.layers.append(LayerKV(torch.cat(keys), torch.cat(values), kept.sizes, bias_X, kept.pos_X))
        self.errors.append(error / max(norm, 1e-30))
        return site.place(torch.cat(answers).to(site.q_BHTD.dtype))

    def _picked(self, head: Head, k_CD: Tensor, v_CD: Tensor, keep: int) -> Tensor:
        X_RC, Y_RD = head.problem(*head.weights(k_CD), 1.0)
        return pick(X_RC * head.root_R1, Y_RD * head.root_R1, v_CD, keep, RIDGE)

    def _made(self, head: Head, k_MD: Tensor, v_MD: Tensor, dropped: bool) -> "Entry":
        root_R1, (M_RM, mass_R1) = head.root_R1, head.weights(k_MD)
        # nothing dropped, nothing to stand for
        some_P = strongest(M_RM, FITTED if dropped else 0)
        M_RP = M_RM.gather(1, some_P.expand(len(M_RM), -1))
        lacking_R1 = 1 - (M_RM.sum(-1, keepdim=True) - M_RP.sum(-1, keepdim=True))
        beta_P = mass(M_RP * root_R1, lacking_R1 * root_R1).log()
        bias_M = None
        if self.bias:
            bias_M = beta_P.new_zeros(len(k_MD)).index_copy(0, some_P, beta_P)
        elif head.site.softcap is None:
            shift_PD = folded(head.of(head.site.q_HFD).float() * head.site.scaling, beta_P)
            k_MD = k_MD.float().index_add(0, some_P, shift_PD)
        k_MD = k_MD.to(self.store)
        M_RM = (head.logits(head.site.q_HFD, k_MD, bias_M) - mass_R1).exp().nan_to_num(0.0)
        X_RM, Y_RD = head.problem(M_RM, mass_R1, M_RM.sum(-1, keepdim=True))
        X_RP = X_RM.gather(1, some_P.expand(len(X_RM), -1))
        delta_PD = solve(X_RP * root_R1, (Y_RD - X_RM @ v_MD) * root_R1, RIDGE)
        v_MD = v_MD.index_add(0, some_P, delta_PD).to(self.store)
        return Entry(k_MD, v_MD, bias_M, Y_RD - X_RM @ v_MD.float())


@dataclass(frozen=True)
class Entry:
    """What a head keeps, and what its queries then miss of what they were told, [R,D]."""

    k_MD: Tensor
    v_MD: Tensor
    bias_M: Tensor | None
    missed_RD: Tensor


def in_context(
    M_RM: Tensor, told_RD: Tensor, own_R1: Tensor, own_RD: Tensor, whole: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The exact linear problem when memory shares its softmax with the query's own tokens.

    M: unnormalised weights of the kept keys in units of the prompt's mass, whole: the memory's mass (sum M;
    1, the prompt's, while keys are only candidates), told: what prompt and own tokens answered together, own:
    the own tokens' mass in the same units, and their answer. The memory answers (M C + own a)/(whole + own);
    X C = Y makes that what was told."""
    share_R1 = 1 / (whole + own_R1).clamp(min=1e-12)
    return M_RM * share_R1, told_RD - share_R1 * own_R1 * own_RD


def strongest(M_RM: Tensor, most: int) -> Tensor:
    """The `most` keys of greatest squared weight, in order: [P]."""
    if M_RM.shape[1] <= most:
        return torch.arange(M_RM.shape[1], device=M_RM.device)
    norm_M: Tensor = torch.linalg.vector_norm(M_RM, dim=0)
    return norm_M.topk(most).indices.sort().values


def folded(q_RD: Tensor, beta_M: Tensor) -> Tensor:
    """A bias without a place of its own: what to add to the keys, [M,D], for (scaled) queries q.

    Queries of a head share a large mean, so that a key moved by beta along the direction that all of them
    have in common gains about beta in its logit. Nothing moves where they have little in common."""
    unit_D = solve(q_RD, q_RD.new_ones(len(q_RD), 1), 1e-3)[:, 0]
    if (q_RD @ unit_D).mean() < COMMON:
        beta_M = torch.zeros_like(beta_M)
    return beta_M[:, None] * unit_D


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
