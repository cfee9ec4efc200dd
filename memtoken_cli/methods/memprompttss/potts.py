"""The chain over a series' tokens: the path of least energy under hard terms, exactly.

Energy of a path: sum_j cost[j, s_j] + sum_j [s_j != s_{j-1}] (lam + switch[s_{j-1}, s_j]). Sums over all
paths (confidence, the training loss) are `potts_sums.py`'s; which prompts make hard terms is the caller's.

Shape suffixes: N tokens, K states, G chunks, L tokens of a chunk, E states on entry to a chunk, X any leading
axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.io.errors import DataError

FORCED, STUCK = 1, -1  # what an edge may be besides normal (0)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hard:
    """What a path must keep.

    fixed_N: int64, the state of a token, -1 where free. forbidden_NK: bool, states that a token may not have,
    or None. switch_N: int8, the edge before token j: 1 a switch is forced there and costs nothing, -1 no
    switch, 0 normal; its first entry means nothing.
    """

    fixed_N: Tensor
    forbidden_NK: Tensor | None
    switch_N: Tensor

    @classmethod
    def none(cls, tokens: int) -> Hard:
        """No hard term, to be filled in."""
        return cls(torch.full((tokens,), -1, dtype=torch.long), None, torch.zeros(tokens, dtype=torch.int8))


@dataclass(frozen=True)
class Path:
    """states_N: int64. energy: float, with the costs of switches."""

    states_N: Tensor
    energy: float


class Infeasible(DataError):
    """No path keeps all hard terms: those on tokens `start` to `end` (both included, edges into them too)
    contradict each other. The caller knows whose they are."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(
            f"prompts on tokens {start} to {end} contradict each other", hint="take one of them back"
        )
        self.start, self.end = start, end


def decode(cost_NK: Tensor, lam: float, hard: Hard | None = None, switch_KK: Tensor | None = None) -> Path:
    """The path of least energy. switch_KK: what a switch costs besides lam, row: from.

    Chunks are first passed with every state on entry, all at once, and joined; then passed again with what
    really enters them, keeping back-pointers. Ties: stay, else the first state. Raises Infeasible, and
    ValueError for costs that are not finite or a negative price of a switch.
    """
    N, K = cost_NK.shape
    if not N:
        return Path(torch.zeros(0, dtype=torch.long), 0.0)
    cost_GLK, edge_GL, price_KK = folded(costs_of(cost_NK, hard), lam, hard, switch_KK)
    G, L, _ = cost_GLK.shape
    busy_L = (edge_GL != 0).any(0)
    lam_all = _one_price(price_KK)
    v_GEK = np.where(np.eye(K, dtype=bool), 0.0, np.inf)[None].repeat(G, 0)
    for t in range(L):
        v_GEK = _cheapest(v_GEK, price_KK, lam_all, edge_GL[:, t] if busy_L[t] else None)
        v_GEK += cost_GLK[:, t, None]
    start_GK = np.zeros((G + 1, K))
    for g in range(G):
        start_GK[g + 1] = (start_GK[g][:, None] + v_GEK[g]).min(0)
    if not np.isfinite(start_GK[G]).any():
        raise conflict(hard, N, K)

    back_LGK = np.empty((L, G, K), np.int8 if K <= 127 else np.int16)
    v_GK = start_GK[:G].copy()
    for t in range(L):
        v_GK, back_LGK[t] = _arrive(v_GK, price_KK, lam_all, edge_GL[:, t] if busy_L[t] else None)
        v_GK += cost_GLK[:, t]
    # backwards from every state on exit: each chunk becomes a map from its exit to its entry
    trace_LGK = np.empty_like(back_LGK)
    at_GK = np.broadcast_to(np.arange(K), (G, K))
    base_G1 = np.arange(G)[:, None] * K
    for t in range(L - 1, -1, -1):
        trace_LGK[t] = at_GK
        at_GK = back_LGK[t].ravel()[base_G1 + at_GK]
    states_GL = np.empty((G, L), np.int64)
    end = int(start_GK[G].argmin())
    for g in range(G - 1, -1, -1):
        states_GL[g] = trace_LGK[:, g, end]
        end = int(at_GK[g, end])
    return Path(torch.from_numpy(states_GL.ravel()[:N].copy()), float(start_GK[G].min()))


def plain_decode(
    cost_NK: Tensor, lam: float, hard: Hard | None = None, switch_KK: Tensor | None = None
) -> Path:
    """The oracle of `decode`: one token after the other."""
    N, K = cost_NK.shape
    if not N:
        return Path(torch.zeros(0, dtype=torch.long), 0.0)
    cost = costs_of(cost_NK, hard).astype(np.float64)
    price_KK = _prices(K, lam, switch_KK)
    edge_N = np.zeros(N, np.int8) if hard is None else hard.switch_N.numpy()
    v_K, back_NK = cost[0], np.zeros((N, K), np.int64)
    for j in range(1, N):
        move_KK = v_K[:, None] + price_KK
        if edge_N[j] == STUCK:
            move_KK = np.where(np.eye(K, dtype=bool), move_KK, np.inf)
        if edge_N[j] == FORCED:
            move_KK = np.where(np.eye(K, dtype=bool), np.inf, v_K[:, None])
        back_NK[j] = np.where(np.diag(move_KK) <= move_KK.min(0), np.arange(K), move_KK.argmin(0))
        v_K = move_KK.min(0) + cost[j]
    if not np.isfinite(v_K).any():
        raise conflict(hard, N, K)
    states_N = np.empty(N, np.int64)
    states_N[-1] = v_K.argmin()
    for j in range(N - 1, 0, -1):
        states_N[j - 1] = back_NK[j, states_N[j]]
    return Path(torch.from_numpy(states_N), float(v_K.min()))


def conflict(hard: Hard | None, N: int, K: int) -> Infeasible:
    """The error that names the shortest stretch of tokens, ending as early as possible, that has no path."""
    if hard is None:
        raise ValueError("no path, and no hard terms: costs are infinite")
    may_NK = np.isfinite(costs_of(torch.zeros(N, K), hard))
    edge_N = hard.switch_N.numpy()

    def reach(may_K: NDArray[np.bool_], j: int) -> NDArray[np.bool_]:
        if edge_N[j] == STUCK:
            into_K = may_K
        elif edge_N[j] == FORCED:
            into_K = may_K.sum() - may_K > 0
        else:
            into_K = np.full(K, may_K.any())
        found: NDArray[np.bool_] = into_K & may_NK[j]
        return found

    now_K = may_NK[0]
    for end in range(N):
        now_K = reach(now_K, end) if end else now_K
        if not now_K.any():
            break
    for start in range(end, -1, -1):
        now_K = may_NK[start]
        for j in range(start + 1, end + 1):
            now_K = reach(now_K, j)
        if not now_K.any():
            return Infeasible(start, end)
    raise ValueError("no path, yet the hard terms allow one: costs are infinite")


def costs_of(cost_NK: Tensor, hard: Hard | None) -> NDArray[np.float32]:
    """Costs with what is forbidden at infinity; a copy. Raises ValueError for costs that are not finite."""
    cost: NDArray[np.float32] = cost_NK.detach().to("cpu", torch.float32, copy=True).numpy()
    if not np.isfinite(cost).all():
        raise ValueError("costs that are not finite")
    if not cost.shape[1]:
        raise ValueError("a chain of no states")
    if hard is not None:
        if hard.forbidden_NK is not None:
            cost[hard.forbidden_NK.numpy()] = np.inf
        fixed_N = hard.fixed_N.numpy()
        (at,) = np.nonzero(fixed_N >= 0)
        kept = cost[at, fixed_N[at]]
        cost[at] = np.inf
        cost[at, fixed_N[at]] = kept
    return cost


def folded(
    cost_NK: NDArray[np.float32], lam: float, hard: Hard | None, switch_KK: Tensor | None
) -> tuple[NDArray[np.float32], NDArray[np.int8], Floats]:
    """Costs [G,L,K] and edges [G,L] cut into chunks of about sqrt(N) tokens, and the price of every move.

    The tail is filled with free tokens and no switches; the edge before the first token is stuck, so that a
    message may enter there like anywhere else.
    """
    N, K = cost_NK.shape
    L = min(max(1 << round(math.log2(math.sqrt(N))), 16), 1024)
    G = -(-N // L)
    cost = np.zeros((G * L, K), np.float32)
    cost[:N] = cost_NK
    edge = np.full(G * L, STUCK, np.int8)
    edge[:N] = 0 if hard is None else hard.switch_N.numpy()
    edge[0] = STUCK
    return cost.reshape(G, L, K), edge.reshape(G, L), _prices(K, lam, switch_KK)


def _prices(K: int, lam: float, switch_KK: Tensor | None) -> Floats:
    price_KK = np.full((K, K), float(lam))
    if switch_KK is not None:
        price_KK += switch_KK.detach().double().numpy()
    np.fill_diagonal(price_KK, 0)
    if not (price_KK >= 0).all():
        raise ValueError("a negative price of a switch")
    return price_KK


def _one_price(price_KK: Floats) -> float | None:
    """The price of every switch, where it is one."""
    K = len(price_KK)
    if K == 1:
        return 0.0
    off = price_KK[~np.eye(K, dtype=bool)]
    return float(off[0]) if (off == off[0]).all() else None


def _cheapest(v_XK: Floats, price_KK: Floats, lam: float | None, edge_G: NDArray[np.int8] | None) -> Floats:
    """The cost of being in each state after the edges of all chunks (the first axis). lam: the price of every
    switch, where they have one."""
    if lam is None:
        moved_XK: Floats = (v_XK[..., :, None] + price_KK).min(-2)
    else:
        moved_XK = np.minimum(v_XK, v_XK.min(-1, keepdims=True) + lam)
    if edge_G is None:
        return moved_XK
    stuck, forced = edge_G == STUCK, edge_G == FORCED
    moved_XK[stuck] = v_XK[stuck]
    if forced.any():
        moved_XK[forced] = (v_XK[forced][..., :, None] + _apart(len(price_KK))).min(-2)
    return moved_XK


def _arrive(
    v_GK: Floats, price_KK: Floats, lam: float | None, edge_G: NDArray[np.int8] | None
) -> tuple[Floats, NDArray[np.int64]]:
    """As `_cheapest`, with the state that each came from."""
    G, K = v_GK.shape
    here_K = np.arange(K)
    if lam is None:
        jump_GKK = v_GK[:, :, None] + (price_KK + _apart(K))
        from_GK = jump_GKK.argmin(1)
        jump_GK = jump_GKK.min(1)
    else:
        first_G = v_GK.argmin(1)
        jump_GK = v_GK[np.arange(G), first_G][:, None] + lam
        from_GK = first_G[:, None]
    stay_GK = v_GK <= jump_GK
    moved_GK, back_GK = np.where(stay_GK, v_GK, jump_GK), np.where(stay_GK, here_K, from_GK)
    if edge_G is None:
        return moved_GK, back_GK
    stuck, forced = edge_G == STUCK, edge_G == FORCED
    moved_GK[stuck], back_GK[stuck] = v_GK[stuck], here_K
    if forced.any():
        away_XKK = v_GK[forced][:, :, None] + _apart(K)
        moved_GK[forced], back_GK[forced] = away_XKK.min(1), away_XKK.argmin(1)
    return moved_GK, back_GK


def _apart(K: int) -> Floats:
    return np.where(np.eye(K, dtype=bool), np.inf, 0.0)
