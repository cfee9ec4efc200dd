"""Expected attention: how much queries yet to come should look at each token, from the prompt's own queries.

Devoto, Jeblick and Jegou 2025, 2510.00636. Before rotation the queries of a head are taken to be Gaussian,
with the mean and covariance of the prompt's; the rotation of the next 512 positions is averaged; then what a
query gives to a key, exp of their product, has its expectation in closed form:

    mu = R mean,  S = R cov R',  z_j = exp(scale k_j mu + scale^2 k_j' S k_j / 2)
    score_j = (mean over the group's heads of z_j / sum_i z_i + 0.01) |v_j|

Queries before rotation are read where nothing is rotated: the prompt is laid twice in one row, at its
positions and all of it at position 0, and the second copy gets the attention output of the first, so that
both have the same states. What rotation does is asked of the model too (`turn.py`). A soft cap is not in the
closed form, and left out of it; a learned sink takes its share of the sum.

Shape suffixes: T tokens of the prompt, M tokens of a layer's memory, L layers, H query heads, N key/value
heads, G query heads of each, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .attend import Packing, Site, attend
from .backbone import CausalLM
from .memory import LayerKV, Layers
from .packed import Packed
from .trie import empty_memory
from .turn import Turning

FUTURE = 512  # positions that the rotation is averaged over: a power of two
SINKS = 4  # first tokens, whose outlying states count in no statistics, and which are kept
EPSILON = 0.01


@dataclass
class Queries:
    """Of one layer's heads: mean_HD and cov_HDD of the prompt's queries before rotation, the logits' scale,
    and the learned sinks, if any."""

    mean_HD: Tensor
    cov_HDD: Tensor
    scaling: float
    sink_H: Tensor | None


@dataclass
class Unturned:
    """A reader of a prompt of T tokens, alone in its row or laid twice; notes the queries of its last T."""

    nothing: Sequence[LayerKV]
    packing: Packing | None
    position_BT: Tensor | None
    layers: list[Queries] = field(default_factory=list)

    def __call__(self, site: Site) -> Tensor:
        assert self.packing is not None
        T, width = self.packing.lengths[0], site.q_BHTD.shape[2]
        first = replace(
            site, q_BHTD=site.q_BHTD[:, :, :T], k_BNUD=site.k_BNUD[:, :, :T], v_BNUD=site.v_BNUD[:, :, :T]
        )
        out_BTHD = attend(first, self.nothing[site.layer])
        q_HTD = site.q_HFD[:, width - T :][:, SINKS:].float()
        mean_H1D = q_HTD.mean(1, keepdim=True)
        centred_HTD = q_HTD - mean_H1D
        cov_HDD = centred_HTD.transpose(1, 2) @ centred_HTD / q_HTD.shape[1]
        self.layers.append(Queries(mean_H1D[:, 0], cov_HDD, site.scaling, site.sink_H))
        return torch.cat([out_BTHD] * (width // T), 1)


@torch.no_grad()
def statistics(backbone: CausalLM, ids: Sequence[int], turning: bool) -> list[Queries]:
    """The queries of every layer while `ids` (more than SINKS) are read; turning: keys are rotated."""
    ids_T, here_T = torch.tensor(list(ids)), torch.arange(len(ids))
    once = Packed(ids_T, here_T, (len(ids),))
    laid = Packed(ids_T.repeat(2), torch.cat([here_T, here_T * 0]), (len(ids),) * 2) if turning else once
    reader = Unturned(
        empty_memory(backbone).to(backbone.device).layers,
        once.packing(backbone.device),
        here_T[None].to(backbone.device),
    )
    backbone.run_with(laid, reader, once.last_B)
    return reader.layers


def ahead(turning: Turning, t: int) -> Tensor:
    """[L,D,D], a row vector times it: the mean rotation of the FUTURE positions from t on. The mean of the
    first 2n powers of one step is that of the first n, times half of what n steps do and nothing."""
    mean_LDD = turning.by(t)
    for i in range(FUTURE.bit_length() - 1):
        mean_LDD = mean_LDD @ ((turning.by(0) + turning.by(2**i)) / 2)
    return mean_LDD


def expected_attention(backbone: CausalLM, memory: Layers, ids: Sequence[int]) -> list[Tensor]:
    """score [N,M] of every token that is left of the whole prompt `ids`, a layer; sinks above all others."""
    t = len(ids)
    if t <= SINKS:
        return [torch.ones(len(kv.sizes), kv.sizes[0], device=kv.k_XD.device) for kv in memory.layers]
    turning = Turning.of(backbone, max(t, FUTURE), FUTURE)
    found = statistics(backbone, ids, turning is not None)
    if turning is not None:
        mean_LDD = ahead(turning, t).to(found[0].mean_HD)
        found = [
            replace(q, mean_HD=q.mean_HD @ R_DD, cov_HDD=R_DD.T @ q.cov_HDD @ R_DD)
            for q, R_DD in zip(found, mean_LDD, strict=True)
        ]
    return [score(kv, queries) for kv, queries in zip(memory.layers, found, strict=True)]


def score(kv: LayerKV, queries: Queries) -> Tensor:
    """(expected attention + EPSILON) * |v|, [N,M], for heads of equal length."""
    N, M = len(kv.sizes), kv.sizes[0]
    k_NMD, norm_NM = kv.k_XD.float().view(N, M, -1), kv.v_XD.float().norm(dim=-1).view(N, M)
    mean_NGD, cov_NGDD = (x.unflatten(0, (N, -1)) for x in (queries.mean_HD, queries.cov_HDD))
    scaled_N1MD = k_NMD[:, None] * queries.scaling
    logits_NGM = (scaled_N1MD @ mean_NGD[..., None])[..., 0]
    logits_NGM += ((scaled_N1MD @ cov_NGDD) * scaled_N1MD).sum(-1) / 2
    begins = kv.pos_X is None or int(kv.pos_X[0]) == 0
    sinks = SINKS if begins else 0
    rest_NGM = logits_NGM[..., sinks:]
    if queries.sink_H is not None:
        rest_NGM = torch.cat([rest_NGM, queries.sink_H.float().view(N, -1, 1)], -1)
    share_NM = rest_NGM.softmax(-1)[..., : M - sinks].mean(1)
    score_NM = (share_NM + EPSILON) * norm_NM[:, sinks:]
    return torch.nn.functional.pad(score_NM, (sinks, 0), value=float(score_NM.max()) + 1)
