"""How many tokens each head keeps, and which: the total is exactly L*N*m, never more.

Shape suffixes: L layers, N key/value heads, T prompt tokens.
"""

import torch
from torch import Tensor

FLOOR = 0.3


def uniform(score_LNT: list[Tensor], slots: int) -> list[list[Tensor]]:
    """The `slots` best of each head, the attention sink (token 0) always among them: sorted indices."""
    chosen = []
    for score_NT in score_LNT:
        score_NT = score_NT.clone()
        score_NT[:, 0] = float("inf")
        chosen.append([row.topk(min(slots, len(row))).indices.sort().values for row in score_NT])
    return chosen


def adaptive(
    score_LNT: list[Tensor], slots: int, *, share: str = "layer", cap: float | None = None
) -> list[list[Tensor]]:
    """Each head its best FLOOR*m, the rest to the largest scores anywhere until L*N*m are spent.

    Scores are compared as roots, divided by the root of the sum of squares over the layer
    (share="layer", so that a large residual scale does not take everything) or over the head
    (share="head"). cap: no head holds more than cap*m, the sink included; where the others have no more
    tokens to give (a short sliding window), less than the total is kept.
    """
    total = slots * sum(len(s) for s in score_LNT)
    flat = []
    for score_NT in score_LNT:
        root_NT = score_NT.clamp(min=0).sqrt()
        over = (0, 1) if share == "layer" else (1,)
        root_NT = root_NT / root_NT.square().sum(over, keepdim=True).sqrt().clamp(min=1e-30)
        N, T = root_NT.shape
        # a stable descending order: equal scores go to the earlier token
        order = root_NT.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(T).expand(N, T).to(order))
        root_NT[:, 0] = float("inf")
        root_NT[rank < int(FLOOR * slots)] = float("inf")
        if cap is not None:
            before_sink = rank < rank[:, :1]
            rank = rank.where(~before_sink, rank + 1)
            rank[:, 0] = 0
            root_NT[rank >= int(cap * slots)] = -1.0
        flat.append(root_NT.reshape(-1))
    scores = torch.cat(flat)
    keep = torch.zeros(len(scores), dtype=torch.bool)
    total = min(total, int((scores != -1).sum()))
    keep[scores.argsort(descending=True, stable=True)[:total].cpu()] = True
    chosen: list[list[Tensor]] = []
    start = 0
    for score_NT in score_LNT:
        N, T = score_NT.shape
        mine_NT = keep[start : start + N * T].view(N, T)
        chosen.append([row.nonzero().flatten().to(score_NT.device) for row in mine_NT])
        start += N * T
    return chosen
