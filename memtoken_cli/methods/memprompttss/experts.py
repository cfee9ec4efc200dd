"""What each expert of `tss-base` says about every token, and how often it names a prompt it has not seen.

near: distance in the series' own metric; read: the learned read-out; head: logistic regression in that
metric; time: tokens to the nearest prompt of the same series. All are costs, low is likely, from a state's
prompts alone.

Shape suffixes: N tokens, F features, D width, P prompts, Q components, M samples, K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.methods.memprompttss import metric
from memtoken_cli.methods.memprompttss.head import Logistic
from memtoken_cli.methods.memprompttss.read import Reader, pooled

PART = 13  # tokens of a component: a point's neighbourhood
PARTS = 5  # components of an interval at most
HALF = 0.5  # of a state's nearest component against its mean
PULL = 0.1  # C of the head
WHOLE = 65_536  # tokens at once, so that memory does not grow with prompts times tokens
BLOCK = 8192  # the same where they meet every component: such a block stays in the cache
# of the scatter towards a multiple of the identity: a head weighs features itself, a distance cannot
NEAR_SHRINK, HEAD_SHRINK = 0.2, 0.5


@dataclass(frozen=True, eq=False)
class View:
    """One feature space of the series in hand: tokens; the metric of distances; the root of the head's
    metric, and the mean deviation of tokens whitened by it."""

    x_NF: Tensor
    inverse: Tensor
    root: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Told:
    """The label prompts of a level. slot_P: their states; K: how many; span_P2: the tokens [start, end) of
    each that stands on the series in hand, else -1."""

    slot_P: Tensor
    K: int
    span_P2: Tensor


@dataclass(frozen=True, eq=False)
class Said:
    """An expert's costs, and [P,K] costs at each prompt without it."""

    cost_NK: Tensor
    left_PK: Tensor

    def right(self, slot_P: Tensor) -> float:
        """Share of prompts that are named without them, among those whose state has another prompt; one half
        where there is none."""
        count_K = torch.bincount(slot_P, minlength=self.left_PK.shape[1])
        fair_P = count_K[slot_P] > 1
        if not bool(fair_P.any()):
            return 0.5
        return float((self.left_PK.argmin(1) == slot_P)[fair_P].float().mean())


def view(x_NF: Tensor, gap_N: Tensor, channels: int, pace: float = 1.0) -> View:
    scatter = metric.scatter(x_NF, ~gap_N, channels, pace)
    inverse = metric.whitening(scatter, NEAR_SHRINK)
    half = metric.root(metric.whitening(scatter, HEAD_SHRINK))
    some = x_NF[:: max(1, len(x_NF) // 4096)].float()
    white = metric.applied(half, some)
    return View(x_NF, inverse, half, max(float(white.std(0, correction=0).mean()), 1e-6))


def components(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means over pieces of each prompt's neighbourhood [Q,F], and whose they are [Q]."""
    found, owner = [], []
    for p, x_MF in enumerate(features):
        pieces = min(PARTS, max(1, len(x_MF) // PART))
        for part in x_MF.float().tensor_split(pieces):
            found.append(part.mean(0))
            owner.append(p)
    return torch.stack(found), torch.tensor(owner)


def ask(
    reader: Reader, embed_NE: Tensor, token_PD: Tensor, space: View, features: Sequence[Tensor], told: Told
) -> tuple[Said, Said, Said, Said]:
    """All four, in the order of `mix.EXPERTS`. features: each prompt's neighbourhood in the view."""
    return (
        near(space, told, features),
        read(reader, embed_NE, token_PD, told),
        head(space, told, features),
        time(told, len(embed_NE)),
    )


def near(space: View, told: Told, features: Sequence[Tensor]) -> Said:
    """Half the squared distance to a state's nearest component and half that to its mean, over two."""
    x_QF, owner_Q = components(features)
    slot_Q = told.slot_P[owner_Q]
    order_Q = slot_Q.argsort(stable=True)
    counts = torch.bincount(slot_Q, minlength=told.K).tolist()
    mean_KF = torch.stack([part.mean(0) for part in x_QF[order_Q].split(counts)])
    to_QF = torch.cat([x_QF[order_Q], mean_KF])
    parts = []
    for x_NF in space.x_NF.split(BLOCK):
        *own, to_mean_NK = metric.distances(x_NF, to_QF, space.inverse).split([*counts, told.K], 1)
        nearest_NK = torch.stack([apart_NQ.amin(1) for apart_NQ in own], 1)
        parts.append((HALF * nearest_NK + (1 - HALF) * to_mean_NK) / 2)
    return Said(torch.cat(parts), _near_left(space, told, x_QF, owner_Q))


def _near_left(space: View, told: Told, x_QF: Tensor, owner_Q: Tensor) -> Tensor:
    """[P,K] the same at each prompt (over its components), without it; infinite where nothing is left."""
    P, K, Q = len(told.slot_P), told.K, len(owner_Q)
    slot_Q = told.slot_P[owner_Q]
    sum_PF = torch.zeros(P, x_QF.shape[1]).index_add_(0, owner_Q, x_QF)
    sum_KF = torch.zeros(K, x_QF.shape[1]).index_add_(0, told.slot_P, sum_PF)
    count_P, count_K = torch.bincount(owner_Q, minlength=P), torch.bincount(slot_Q, minlength=K)
    others_P = count_K[told.slot_P] - count_P
    rest_PF = (sum_KF[told.slot_P] - sum_PF) / others_P.clamp(min=1)[:, None]
    to_QF = torch.cat([x_QF, sum_KF / count_K[:, None], rest_PF])
    apart_QQ, mean_QK, rest_QP = metric.distances(x_QF, to_QF, space.inverse).split([Q, K, P], 1)
    # its own state is what the other prompts of it are
    mean_QK = mean_QK.scatter(1, slot_Q[:, None], rest_QP.gather(1, owner_Q[:, None]))
    apart_QQ = apart_QQ.masked_fill(owner_Q[:, None] == owner_Q, torch.inf)
    least_QK = torch.full((Q, K), torch.inf).scatter_reduce(1, slot_Q.expand(Q, Q), apart_QQ, "amin")
    cost_QK = (HALF * least_QK + (1 - HALF) * mean_QK) / 2
    return torch.zeros(P, K).index_add_(0, owner_Q, cost_QK) / count_P[:, None]


def head(space: View, told: Told, features: Sequence[Tensor]) -> Said:
    """Negative log-probabilities of a logistic regression on the prompts' neighbourhoods, whitened."""
    x_MF = torch.cat([x.float() for x in features])
    owner_M = torch.repeat_interleave(torch.arange(len(features)), torch.tensor([len(x) for x in features]))
    white_MF = metric.applied(space.root, x_MF) / space.scale
    fitted = Logistic.fit(white_MF, told.slot_P[owner_M], owner_M, told.K, C=PULL)
    pull_FK = metric.applied(space.root.transpose(-1, -2), fitted.weight_FK.T).T / space.scale
    logit = torch.cat([x.float() @ pull_FK for x in space.x_NF.split(WHOLE)]) + fitted.bias_K
    left_MK = fitted.leave_out()
    left_PK = torch.stack([-part.mean(0) for part in left_MK.split([len(x) for x in features])])
    return Said(-logit.log_softmax(1), left_PK)


def read(reader: Reader, embed_NE: Tensor, token_PD: Tensor, told: Told) -> Said:
    """The learned read-out's scores, negated."""
    with torch.no_grad():
        own_PP = reader.scores(token_PD, token_PD)
        parts = [
            -pooled(reader.scores(e_NE, token_PD), told.slot_P, told.K) for e_NE in embed_NE.split(WHOLE)
        ]
    return Said(torch.cat(parts), _left(own_PP, told))


def time(told: Told, tokens: int) -> Said:
    """log(1 + tokens to a state's nearest prompt / 2) on the same series; 0 where a prompt stands
    elsewhere."""
    own_P = told.span_P2[:, 0] >= 0
    if not bool(own_P.any()):
        flat = torch.zeros(tokens, told.K)
        return Said(flat, torch.zeros(len(told.slot_P), told.K))
    start_P, end_P = told.span_P2[:, 0], told.span_P2[:, 1]
    far = float(tokens)
    here_K = torch.tensor([bool((own_P & (told.slot_P == k)).any()) for k in range(told.K)])

    def nearest(at_X: Tensor, without: Tensor | None = None) -> Tensor:
        """[X,K]; without [X,P]: prompts that do not count."""
        columns = []
        for k in range(told.K):
            mine = torch.nonzero(own_P & (told.slot_P == k))[:, 0]
            if not len(mine):
                columns.append(torch.full((len(at_X),), far))
                continue
            away_XP = torch.maximum(start_P[mine] - at_X[:, None], at_X[:, None] - end_P[mine] + 1).clamp(
                min=0
            )
            away_XP = away_XP.float()
            if without is not None:
                away_XP = away_XP.masked_fill(without[:, mine], far)
            columns.append(away_XP.amin(1))
        return torch.stack(columns, 1)

    def log(away_XK: Tensor) -> Tensor:
        # a state that only other series show is neither near nor far
        cost_XK = (away_XK / 2).log1p()
        cost_XK[:, ~here_K] = cost_XK[:, here_K].mean(1, keepdim=True)
        return cost_XK

    middle_P = (start_P + end_P) // 2
    left_PK = nearest(middle_P, torch.eye(len(middle_P), dtype=torch.bool))
    parts = [log(nearest(at_X)) for at_X in torch.arange(tokens).split(WHOLE)]
    return Said(torch.cat(parts), log(left_PK))


def _left(score_PP: Tensor, told: Told) -> Tensor:
    """[P,K] costs from pairwise scores with each prompt's own left out."""
    others_PP = score_PP.masked_fill(torch.eye(len(score_PP), dtype=torch.bool), -torch.inf)
    columns = [others_PP[:, told.slot_P == k].logsumexp(1) for k in range(told.K)]
    return -torch.stack(columns, 1)
