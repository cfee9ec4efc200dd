"""Which of a head's candidates it keeps: those that the others cannot stand in for.

Backward elimination. All candidates answer the queries by ridge regression; those go first without which
the squared error grows least, c_j^2 / (H^-1)_jj (optimal brain surgeon, Hassibi and Stork 1993), a share of
what is left in each round, and the rest takes over what they said. Scores see every token alone, and keep
two that say the same.

Shape suffixes: R queries, C candidates, D head width.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

TIMES, MOST = 4, 512  # candidates: so many times what is kept, at most so many
ROUNDS = 5
ROWS = 1024  # queries that are asked: more cost time and change little


def candidates(slots: int) -> int:
    """How many tokens of a head compete for `slots` places; few more would change nothing."""
    many = min(TIMES * slots, MOST)
    return many if many >= 2 * slots else slots


def pick(X_RC: Tensor, Y_RD: Tensor, v_CD: Tensor, keep: int, ridge: float) -> Tensor:
    """Sorted indices of the `keep` candidates that X C = Y needs most; the first is always among them.

    C is drawn to v by the ridge, in units of the mean square of a column."""
    gram_CC = X_RC.T @ X_RC
    pull = ridge * gram_CC.diagonal().mean() + 1e-12
    rest_CD = X_RC.T @ (Y_RD - X_RC @ v_CD)
    gram_CC.diagonal().add_(pull)
    inverse_CC = torch.cholesky_inverse(torch.linalg.cholesky(gram_CC))
    c_CD = v_CD + inverse_CC @ rest_CD
    alive_C = torch.arange(len(v_CD), device=v_CD.device)
    for left in _sizes(len(v_CD), keep):
        loss_C = c_CD.square().sum(-1) / inverse_CC.diagonal()
        loss_C[0] = torch.inf
        order_C = loss_C.argsort(descending=True, stable=True)
        stay_S, go_G = order_C[:left].sort().values, order_C[left:]
        inverse_SG = inverse_CC[stay_S][:, go_G]
        over_SG = torch.linalg.solve(inverse_CC[go_G][:, go_G], inverse_SG, left=False)
        c_CD = c_CD[stay_S] - over_SG @ c_CD[go_G]
        inverse_CC = inverse_CC[stay_S][:, stay_S] - over_SG @ inverse_SG.T
        alive_C = alive_C[stay_S]
    return alive_C


def _sizes(count: int, keep: int) -> Iterable[int]:
    """How many are left after each round: always the same share."""
    return [*(round(count * (keep / count) ** (i / ROUNDS)) for i in range(1, ROUNDS)), keep]
