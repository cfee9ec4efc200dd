"""What reference queries see at one layer: the whole prompt, and their own row.

Shape suffixes: F query tokens of all rows laid flat, f a few of them, T prompt tokens, H query heads,
G query heads of a key/value head, D head width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...engine import precision
from ...engine.attend import Hidden, Site, unseen
from ...engine.memory import LayerKV

TILE = 128


class View:
    """The prompt as the queries see it, in every head alike: a shot's own copy is behind a wall."""

    def __init__(self, site: Site, whole: LayerKV, hidden: Hidden) -> None:
        self.site, self.whole = site, whole
        F = site.q_BHTD.shape[2]
        pos_T = None if whole.pos_X is None else whole.pos_X[: whole.sizes[0]]
        unseen_FT = unseen(site, 0, pos_T, hidden, 0, F)
        assert unseen_FT is not None, "something is hidden"
        # adding -inf is an order faster than masked_fill_
        self.wall_FT = torch.zeros(unseen_FT.shape, device=unseen_FT.device)
        self.wall_FT.masked_fill_(unseen_FT, float("-inf"))
        self.blind = bool(unseen_FT.all(-1).any())

    def tiles(self, n: int, k_TD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(log of the prompt's mass [G,f,1], softmax over the prompt alone [G,f,T]) of key/value head n.

        A few queries at a time: whole logits of long prompts fall out of the processor's cache. A query
        that sees none of the prompt attends to nothing."""
        G = self.site.groups
        q_GFD = self.site.q_HFD[n * G : n * G + G]
        for q_GfD, wall_fT in zip(q_GFD.split(TILE, 1), self.wall_FT.split(TILE), strict=True):
            with precision.matmul(self.site.q_BHTD.dtype):
                logits_GfT = self.site.memory_logits(q_GfD, k_TD, None).add_(wall_fT)
            A_GfT = logits_GfT.softmax(-1)
            if self.blind:
                A_GfT.nan_to_num_(0.0)
            # the log-normaliser from the largest entries: cheaper than another logsumexp
            mass_Gf1 = logits_GfT.amax(-1, keepdim=True) - A_GfT.amax(-1, keepdim=True).log()
            if self.blind:
                mass_Gf1.nan_to_num_(nan=float("-inf"))
            yield mass_Gf1, A_GfT


def own(site: Site) -> tuple[Tensor, Tensor]:
    """What queries get from their own rows, float32: log mass [H,F] and answer [H,F,D]; a sink adds mass."""
    logits_HFU = site.own_logits()
    mass_HF, answer_HFD = logits_HFU.logsumexp(-1), site.own_output(logits_HFU.softmax(-1)).float()
    if site.sink_H is None:
        return mass_HF, answer_HFD
    sunk_HF = torch.logaddexp(mass_HF, site.sink_H[:, None].float())
    return sunk_HF, answer_HFD * (mass_HF - sunk_HF).exp()[..., None]
