"""Which prompt tokens matter: squared attention of the reference queries times what a token adds.

The reference queries are the shots themselves, each read as a query while its own copy is hidden
(leave-one-out): that is what the memory will be asked.

Shape suffixes: S reference rows, F query tokens of all rows laid flat, R scored ones among them,
T prompt tokens, N key/value heads, G query heads of each, D head width, L layers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine.attend import Hidden, Packing, Site, attend
from ...engine.backbone import CausalLM, hides
from ...engine.memory import LayerKV, Layers
from .reference import Reference

TILE = 128


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
        kv, G, N = self.memory.layers[site.layer], site.groups, len(self.memory.layers[site.layer].sizes)
        scored_R = self.reference.fitted_R.to(site.q_BHTD.device)
        self.grams.append(self.backbone.output_gram(site))
        unseen_RT = out_of_sight(site, kv, self.hidden, scored_R)
        squared_NT = torch.zeros(N, unseen_RT.shape[1], device=unseen_RT.device)
        for n, (k_TD, *_) in enumerate(kv.heads()):
            q_GRD = site.q_HFD[n * G : n * G + G, scored_R]
            for part, unseen in tiles(q_GRD, unseen_RT):
                A_GRT = softmax(site.memory_logits(part, k_TD, unseen), unseen)
                squared_NT[n] += torch.linalg.vector_norm(A_GRT, dim=(0, 1)).square_() / (G * len(scored_R))
        self.squared.append(squared_NT)
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


def out_of_sight(site: Site, kv: LayerKV, hidden: Hidden, query_R: Tensor) -> Tensor:
    """True [R,T] where a query does not see a token of the whole prompt, in every head alike."""
    F = site.q_BHTD.shape[2]
    hidden_RT = hidden(site.layer, 0, 0, F)[query_R]
    far_FT = site.far_FM(None if kv.pos_X is None else kv.pos_X[: kv.sizes[0]], 0, F)
    return hidden_RT if far_FT is None else hidden_RT | far_FT[query_R]


def softmax(logits_GRT: Tensor, unseen_RT: Tensor) -> Tensor:
    """Over the prompt alone; a query that sees none of it attends to nothing."""
    blind_R = unseen_RT.all(-1)
    weights = logits_GRT.softmax(-1)
    return weights.masked_fill_(blind_R[:, None], 0.0) if blind_R.any() else weights


def tiles(q_GRD: Tensor, unseen_RT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries and what they do not see, a few at a time: whole logits of long prompts fall out of the cache."""
    return zip(q_GRD.split(TILE, 1), unseen_RT.split(TILE), strict=True)
