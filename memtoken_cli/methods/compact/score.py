"""Which prompt tokens matter: squared attention of the reference queries times what a token adds.

The same forward notes what the whole prompt tells the queries: what a memory of fewer tokens is fitted to.

Shape suffixes: F query tokens of all rows laid flat, f a few of them, T prompt tokens, N key/value heads,
G query heads of each, H = N G, D head width, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine.attend import Packing, Site
from ...engine.backbone import CausalLM, hides
from ...engine.memory import Layers
from .reference import Reference
from .view import TILE, View, own


@dataclass(frozen=True)
class Told:
    """One layer of the model that reads the whole prompt: its queries q_HFD, the log of the prompt's mass in
    their softmax [H,F,1], and what they got from the prompt and their own row together, answer_HFD."""

    q_HFD: Tensor
    mass_HF1: Tensor
    answer_HFD: Tensor


@dataclass
class Score:
    """A reader that attends as usual and scores every prompt token on the way, in one forward:

    score(l,n,j) = mean_i w_i A_ij^2 * mean_g |W_O[head g of n] v_j|^2, A the softmax over the prompt alone,
    w the weight of a query (`Reference.weight_F`).
    """

    backbone: CausalLM
    memory: Layers
    reference: Reference
    packing: Packing | None
    position_BT: Tensor | None
    told: list[Told] = field(default_factory=list)
    squared: list[Tensor] = field(default_factory=list)
    grams: list[Callable[[], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hidden = hides(self.reference.hidden_FT.to(self.backbone.device), self.memory)

    def __call__(self, site: Site) -> Tensor:
        kv = self.memory.layers[site.layer]
        self.grams.append(self.backbone.output_gram(site))
        view, (own_HF, own_HFD) = View(site, kv, self.hidden), own(site)
        depth = (site.layer + 1) / len(self.memory.layers)
        weights = self.reference.weight_F(depth).to(own_HF.device).split(TILE)
        squared, masses, answers = [], [], []
        for n, (k_TD, v_TD, *_) in enumerate(kv.heads()):
            squared_T, v_TD = torch.zeros(len(k_TD), device=k_TD.device), v_TD.float()
            for (mass_Gf1, A_GfT), weight_f in zip(view.tiles(n, k_TD), weights, strict=True):
                masses.append(mass_Gf1)
                answers.append(A_GfT @ v_TD)
                squared_T += weight_f.repeat(site.groups) @ A_GfT.square_().flatten(0, 1)
            squared.append(squared_T / (site.groups * own_HF.shape[1]))
        self.squared.append(torch.stack(squared))
        mass_HF1, prompt_HFD = (_heads(parts, len(kv.sizes)) for parts in (masses, answers))
        share_HF1 = torch.sigmoid(mass_HF1 - own_HF[..., None])
        answer_HFD = (own_HFD + share_HF1 * (prompt_HFD - own_HFD)).to(site.q_BHTD.dtype)
        self.told.append(Told(site.q_HFD, mass_HF1, answer_HFD))
        return site.place(answer_HFD)

    def score_LNT(self) -> list[Tensor]:
        """[N,T] float32 a layer; call after the forward."""
        scores = []
        for kv, squared_NT, gram in zip(self.memory.layers, self.squared, self.grams, strict=True):
            gram_HDD, N = gram(), len(kv.sizes)
            gram_NDD = gram_HDD.view(N, -1, *gram_HDD.shape[1:]).mean(1)
            v_NTD = kv.v_XD.float().view(N, -1, kv.v_XD.shape[1])
            scores.append(squared_NT * ((v_NTD @ gram_NDD) * v_NTD).sum(-1))
        return scores


def _heads(parts: list[Tensor], N: int) -> Tensor:
    """Tiles [G,f,E] of one head after the other, as [H,F,E]."""
    each = len(parts) // N
    return torch.cat([torch.cat(parts[n * each : n * each + each], 1) for n in range(N)])
