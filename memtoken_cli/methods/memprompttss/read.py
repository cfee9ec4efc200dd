"""The in-context read-out of `tss-base`: a prompt is written over its context into one memory token, and
tokens of time query the bank (the paper's cross-attentions, kept small). Labels are slots: a state's score
pools those of its memory tokens, so that unseen labels are the only case there is.

Shape suffixes: N tokens, P prompts, M tokens of a context, D width, K states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TYPES = ("label", "not", "boundary", "no-boundary", "same")


class Reader(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        D = width
        self.type_code = nn.Embedding(len(TYPES), D)
        self.look = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, D, bias=False)
        self.apart = nn.Parameter(torch.tensor(-1.0))  # log of what a token's distance in time costs
        last = nn.Linear(D, D)
        self.correct = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.GELU(), last)
        self.query = nn.Linear(D, D, bias=False)
        self.sharp = nn.Parameter(torch.tensor(-1.0))  # log of the scale of squared distances
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.zeros_(self.look.weight)
        nn.init.eye_(self.query.weight)

    def write(self, context_MD: Tensor, away_M: Tensor, kind: int) -> Tensor:
        """[D] one prompt's memory token: cross-attention over its context. away_M: tokens from the prompt."""
        centre_D = context_MD[away_M.abs().argmin()] + self.type_code.weight[kind]
        score_M = self.key(context_MD) @ self.look(centre_D) / context_MD.shape[1] ** 0.5
        weight_M = (score_M - self.apart.exp() * away_M.abs()).softmax(0)
        pooled_D = weight_M @ context_MD
        corrected: Tensor = pooled_D + self.correct(pooled_D + self.type_code.weight[kind])
        return corrected

    def scores(self, embed_ND: Tensor, token_PD: Tensor) -> Tensor:
        """[N,P] how well a token of time fits a memory token (up to a term of the token of time alone)."""
        q_PD = self.query(token_PD)
        pulled_PD = 2 * q_PD @ self.query.weight  # so that tokens of time need no query of their own
        score_NP = embed_ND.float() @ pulled_PD.T - (q_PD * q_PD).sum(1)
        scaled: Tensor = self.sharp.exp() / q_PD.shape[1] * score_NP
        return scaled


def pooled(score_NP: Tensor, slot_P: Tensor, K: int) -> Tensor:
    """[N,K] logsumexp over a state's memory tokens minus the log of their number. Every state has one."""
    columns: Sequence[Tensor] = [score_NP[:, slot_P == k] for k in range(K)]
    found = [c.logsumexp(1) - torch.tensor(float(c.shape[1])).log() for c in columns]
    return torch.stack(found, 1)
