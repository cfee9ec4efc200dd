"""Which prompt tokens matter: squared attention of the reference queries times what a token adds.

The reference queries are the shots themselves, each read as a query while its own copy is hidden
(leave-one-out): that is what the memory will be asked.

Shape suffixes: S reference rows, F query tokens of all rows laid flat, R scored ones among them,
T prompt tokens, N key/value heads, G query heads of each, D head width, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine.attend import Hidden, Packing, Site, attend
from ...engine.backbone import CausalLM, hides
from ...engine.memory import Layers
from .reference import Reference


@dataclass
class Score:
    """A reader that attends as usual and scores every prompt token on the way, in one forward:

    score(l,n,j) = mean_i A_ij^2 * mean_g |W_O[head g of n] v_j|^2, A the softmax over the prompt alone.
    """

    backbone: CausalLM
    memory: Layers
    reference: Reference
    packing: Packing
    position_BT: Tensor
    squared: list[Tensor] = field(default_factory=list)
    grams: list[Callable[[], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hidden = hides(self.reference.hidden_FT.to(self.position_BT.device), self.memory)

    def __call__(self, site: Site) -> Tensor:
        kv, G, fitted_R = self.memory.layers[site.layer], site.groups, self.reference.fitted_R.to(site.q_BHTD.device)
        self.grams.append(self.backbone.output_gram(site))
        squared = []
        for n, (k_TD, _v, _bias, pos_T) in enumerate(kv.heads()):
            unseen_RT = out_of_sight(site, n, pos_T, self.hidden, fitted_R)
            q_GRD = site.q_HFD[n * G : n * G + G, fitted_R]
            A_GRT = site.memory_logits(q_GRD, k_TD, unseen_RT).softmax(-1).nan_to_num_(0.0)
            squared.append(A_GRT.square_().mean((0, 1)))
        self.squared.append(torch.stack(squared))
        return attend(site, kv, self.hidden)

    def score_LNT(self) -> list[Tensor]:
        """[N,T] float32 a layer; call after the forward."""
        scores = []
        for kv, squared_NT, gram in zip(self.memory.layers, self.squared, self.grams, strict=True):
            gram_HDD, N = gram(), len(kv.sizes)
            gram_NDD = gram_HDD.view(N, -1, *gram_HDD.shape[1:]).mean(1)
            v_NTD = kv.v_XD.float().view(N, -1, kv.v_XD.shape[1])
            scores.append(squared_NT * ((v_NTD @ gram_NDD) * v_NTD).sum(-1))
        return scores


def out_of_sight(site: Site, n: int, pos_T: Tensor | None, hidden: Hidden, fitted_R: Tensor) -> Tensor:
    """True [R,T] where a fitted query does not see a prompt token of head n."""
    F = site.q_BHTD.shape[2]
    hidden_RT = hidden(site.layer, n, 0, F)[fitted_R]
    far_FT = site.far_FM(pos_T, 0, F)
    return hidden_RT if far_FT is None else hidden_RT | far_FT[fitted_R]
