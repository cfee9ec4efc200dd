"""Sums over all paths of the Potts chain, in log space: marginals, partition function, training loss.

The chain itself (energy, hard terms, the best path) is `potts.py`; this file adds a temperature to it. All
sums run in float64 whatever comes in, because a series may have a million tokens.

Shape suffixes: N tokens, K states, B series of a batch, G chunks, L tokens of a chunk, E states on entry to a
chunk, X any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtoken_cli.methods.memprompttss.potts import FORCED, STUCK, Hard, conflict, costs_of, folded

Floats = NDArray[np.float64]
Move = Callable[[Floats], Floats]


def marginals(
    cost_NK: Tensor,
    lam: float,
    temperature: float = 1.0,
    hard: Hard | None = None,
    switch_KK: Tensor | None = None,
) -> Tensor:
    """[N,K] float32, rows sum to 1: the share of each state at each token among all paths that keep the hard
    terms, a path counting exp(-energy / temperature). Raises Infeasible where there is none."""
    p_NK, _ = _forward_backward(cost_NK, lam, temperature, hard, switch_KK, want=True)
    return torch.from_numpy(p_NK)


def log_partition(
    cost_NK: Tensor,
    lam: float,
    temperature: float = 1.0,
    hard: Hard | None = None,
    switch_KK: Tensor | None = None,
) -> float:
    """log of the sum over paths of exp(-energy / temperature). Raises Infeasible where there is no path."""
    return _forward_backward(cost_NK, lam, temperature, hard, switch_KK, want=False)[1]


def _forward_backward(
    cost_NK: Tensor, lam: float, temperature: float, hard: Hard | None, switch_KK: Tensor | None, want: bool
) -> tuple[NDArray[np.float32], float]:
    if temperature <= 0:
        raise ValueError(f"a temperature of {temperature}")
    N, K = cost_NK.shape
    if not N:
        return np.zeros((0, K), np.float32), 0.0
    cost_GLK, edge_GL, price_KK = folded(costs_of(cost_NK, hard), lam, hard, switch_KK)
    G, L, _ = cost_GLK.shape
    forward = _mixing(np.exp(-price_KK / temperature))
    busy_L = (edge_GL != 0).any(0)
    emit = [np.float64(-1 / temperature) * cost_GLK[:, t] for t in range(L)] if L * G * K < 1 << 20 else None

    def emit_at(t: int) -> Floats:
        return emit[t] if emit is not None else np.float64(-1 / temperature) * cost_GLK[:, t]

    with np.errstate(divide="ignore"):
        # what a chunk does to each state it may be entered with; all chunks at once
        a_GEK = np.where(np.eye(K, dtype=bool), 0.0, -np.inf)[None].repeat(G, 0)
        for t in range(L):
            a_GEK = _move(a_GEK, forward, edge_GL[:, t] if busy_L[t] else None) + emit_at(t)[:, None]
        start_GK = np.zeros((G + 1, K))
        for g in range(G):
            start_GK[g + 1] = _log_sum(start_GK[g][:, None] + a_GEK[g], 0)
        total = float(_log_sum(start_GK[G], 0))
        if total == -np.inf:
            raise conflict(hard, N, K)
        if not want:
            return np.zeros((0, K), np.float32), total
        end_GK = np.zeros((G + 1, K))
        for g in range(G - 1, 0, -1):
            end_GK[g] = _log_sum(end_GK[g + 1] + a_GEK[g], 1)
        log_LGK = np.empty((L, G, K), np.float32)
        a_GK = start_GK[:G]
        for t in range(L):
            a_GK = _move(a_GK, forward, edge_GL[:, t] if busy_L[t] else None) + emit_at(t)
            log_LGK[t] = a_GK - _top(a_GK)
        backward = _mixing(np.exp(-price_KK.T / temperature))
        b_GK = end_GK[1:]
        for t in range(L - 1, -1, -1):
            p_GK = log_LGK[t] + (b_GK - _top(b_GK))
            p_GK = np.exp(p_GK - _top(p_GK))
            log_LGK[t] = p_GK / p_GK.sum(-1, keepdims=True)
            b_GK = _move(b_GK + emit_at(t), backward, edge_GL[:, t] if busy_L[t] else None)
    return np.ascontiguousarray(log_LGK.transpose(1, 0, 2)).reshape(G * L, K)[:N], total


def _mixing(weight_KK: Floats) -> Move:
    """A step over a normal edge, log messages in and out; cheaper where all switches weigh the same."""
    K = len(weight_KK)
    off = weight_KK[~np.eye(K, dtype=bool)]
    if K == 1 or (off == off[0]).all():
        r = max(float(off[0]), 1e-300) if K > 1 else 1.0

        def same(a_XK: Floats) -> Floats:
            top_X1 = _top(a_XK)
            x_XK = np.exp(a_XK - top_X1)
            found: Floats = np.log(x_XK * (1 - r) + r * x_XK.sum(-1, keepdims=True)) + top_X1
            return found

        return same

    floor_KK = np.maximum(weight_KK, 1e-300)

    def each(a_XK: Floats) -> Floats:
        top_X1 = _top(a_XK)
        found: Floats = np.log(np.exp(a_XK - top_X1) @ floor_KK) + top_X1
        return found

    return each


def _move(a_XK: Floats, normal: Move, edge_G: NDArray[np.int8] | None) -> Floats:
    """A step over the edges of all chunks (the first axis): normal, stuck or forced."""
    moved_XK = normal(a_XK)
    if edge_G is None:
        return moved_XK
    stuck, forced = edge_G == STUCK, edge_G == FORCED
    moved_XK[stuck] = a_XK[stuck]
    if forced.any():
        # a log of a difference would lose the small ones
        apart_KK = np.where(np.eye(a_XK.shape[-1], dtype=bool), -np.inf, 0.0)
        moved_XK[forced] = _log_sum(a_XK[forced][..., :, None] + apart_KK, -2)
    return moved_XK


def _top(a_XK: Floats) -> Floats:
    """The greatest of the last axis, 0 where all are -inf."""
    top_X1 = a_XK.max(-1, keepdims=True)
    return np.where(top_X1 == -np.inf, 0.0, top_X1)


def _log_sum(a: Floats, axis: int) -> Floats:
    top = a.max(axis, keepdims=True)
    top = np.where(top == -np.inf, 0.0, top)
    found: Floats = np.log(np.exp(a - top).sum(axis)) + top.squeeze(axis)
    return found


def crf_nll(cost_BNK: Tensor, lam_B: Tensor, target_BN: Tensor, mask_BNK: Tensor | None = None) -> Tensor:
    """[B] negative log-likelihood of the target paths, in nats over the whole series (not a mean).

    Differentiable in cost_BNK and lam_B, once: the gradients are closed (target minus marginals), so no graph
    runs over time. O(BNK) in time.

    Args:
        target_BN: states; a token with target -1 is taken out of the chain, its neighbours become neighbours.
        mask_BNK: states that exist, anything that broadcasts to [B,N,K]; None: all.

    Raises ValueError for a target that does not exist, or a negative lam.
    """
    shape = cost_BNK.shape
    exists = torch.ones(shape, dtype=torch.bool) if mask_BNK is None else mask_BNK.bool().expand(shape)
    if bool((lam_B < 0).any()):
        raise ValueError("a negative cost of a switch")
    chosen = exists.gather(2, target_BN.clamp(min=0)[..., None])[..., 0]
    if bool((~chosen & (target_BN >= 0)).any()):
        raise ValueError("a target among states that do not exist")
    found: Tensor = _Nll.apply(  # type: ignore[no-untyped-call]
        cost_BNK, lam_B, target_BN, exists
    )
    return found


class _Nll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cost_BNK, lam_B, target_BN, exists_BNK):  # type: ignore[no-untyped-def]
        emit_BNK = np.where(exists_BNK.numpy(), -cost_BNK.detach().double().numpy(), -np.inf)
        lam = lam_B.detach().double().numpy()
        target = target_BN.numpy()
        kept_BN = target >= 0
        total_B, p_BNK, switches_B = _batch(emit_BNK, lam, kept_BN)
        B, N = target.shape
        hot_BNK = np.zeros_like(p_BNK)
        b, j = np.nonzero(kept_BN)
        hot_BNK[b, j, target[b, j]] = 1
        # the target of the last token kept before each
        last_BN = np.maximum.accumulate(np.where(kept_BN, np.arange(N), -1), 1)
        before_BN = np.concatenate([np.full((B, 1), -1), last_BN[:, :-1]], 1)
        prior_BN = np.take_along_axis(target, before_BN.clip(0), 1)
        changes_B = (kept_BN & (before_BN >= 0) & (prior_BN != target)).sum(1)
        energy_B = -emit_BNK[b, j, target[b, j]]
        energy_B = np.bincount(b, energy_B, minlength=B) + lam * changes_B
        ctx.save_for_backward(
            torch.from_numpy(hot_BNK - p_BNK).to(cost_BNK.dtype),
            torch.from_numpy(changes_B - switches_B).to(lam_B.dtype),
        )
        return torch.from_numpy(energy_B + total_B).to(cost_BNK.dtype)

    @staticmethod
    def backward(ctx, grad_B):  # type: ignore[no-untyped-def]
        by_cost_BNK, by_lam_B = ctx.saved_tensors
        return grad_B[:, None, None] * by_cost_BNK, grad_B * by_lam_B, None, None


def _batch(emit_BNK: Floats, lam_B: Floats, kept_BN: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """log partition [B], marginals [B,N,K] (0 where a token is left out), expected number of switches [B]."""
    B, N, K = emit_BNK.shape
    r_B1 = np.maximum(np.exp(-lam_B), 1e-300)[:, None]
    stay_B1 = 1 - r_B1
    emit_NBK = np.ascontiguousarray(emit_BNK.transpose(1, 0, 2))
    emit_NBK[~kept_BN.T] = 0
    seen_BN = kept_BN.cumsum(1)
    # over these edges a message goes as it is: before the first kept token, and into one that is left out
    still_NB1 = (~kept_BN | (seen_BN == 1)).T[..., None]
    still_N = still_NB1.any((1, 2))
    alpha_NBK, beta_NBK = np.empty((N, B, K)), np.empty((N, B, K))
    with np.errstate(divide="ignore"):

        def mix(a_BK: Floats, j: int) -> Floats:
            top_B1 = a_BK.max(1, keepdims=True)
            x_BK = np.exp(a_BK - top_B1)
            m_BK: Floats = np.log(x_BK * stay_B1 + x_BK.sum(1, keepdims=True) * r_B1)
            m_BK += top_B1
            return np.where(still_NB1[j], a_BK, m_BK) if still_N[j] else m_BK

        a_BK = np.zeros((B, K))
        for j in range(N):
            a_BK = mix(a_BK, j) + emit_NBK[j]
            alpha_NBK[j] = a_BK
        b_BK = np.zeros((B, K))
        for j in range(N - 1, -1, -1):
            beta_NBK[j] = b_BK
            b_BK = mix(b_BK + emit_NBK[j], j)
        total_B = _log_sum(alpha_NBK[-1], 1) if N else np.zeros(B)
    p_NBK = np.exp(alpha_NBK + beta_NBK - total_B[:, None])
    p_NBK[~kept_BN.T] = 0
    beta_NBK += emit_NBK
    stays_NB = np.exp(alpha_NBK[:-1] + beta_NBK[1:] - total_B[:, None]).sum(2)
    switches_B = np.where(still_NB1[1:, :, 0], 0.0, 1 - stays_NB).sum(0)
    return total_B, p_NBK.transpose(1, 0, 2), switches_B
