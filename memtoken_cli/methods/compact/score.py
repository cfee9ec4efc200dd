"""Which prompt tokens matter: squared attention of the reference queries times what a token adds.

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
from .view import View, own


@dataclass
class Score:
    """A reader that attends as usual and scores every prompt token on the way, in one forward:

    score(l,n,j) = mean_i A_ij^2 * mean_g |W_O[head g of n] v_j|^2, A the softmax over the prompt alone.
    """

    backbone: CausalLM
    memory: Layers
    reference: Reference
    packing: Packing | None
    position_BT: Tensor | None
    squared: list[Tensor] = field(default_factory=list)
    grams: list[Callable[[], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hidden = hides(self.reference.hidden_FT.to(self.backbone.device), self.memory)

    def __call__(self, site: Site) -> Tensor:
        kv = self.memory.layers[site.layer]
        self.grams.append(self.backbone.output_gram(site))
        view, (own_HF, own_HFD) = View(site, kv, self.hidden), own(site)
        squared, masses, answers = [], [], []
        for n, (k_TD, v_TD, *_) in enumerate(kv.heads()):
            squared_T, v_TD = torch.zeros(len(k_TD), device=k_TD.device), v_TD.float()
            for mass_Gf1, A_GfT in view.tiles(n, k_TD):
                masses.append(mass_Gf1)
                answers.append(A_GfT @ v_TD)
                squared_T += A_GfT.square_().flatten(0, 1).sum(0)
            squared.append(squared_T / (site.groups * own_HF.shape[1]))
        self.squared.append(torch.stack(squared))
        mass_HF1, prompt_HFD = (_heads(parts, len(kv.sizes)) for parts in (masses, answers))
        share_HF1 = torch.sigmoid(mass_HF1 - own_HF[..., None])
        return site.place((own_HFD + share_HF1 * (prompt_HFD - own_HFD)).to(site.q_BHTD.dtype))

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
