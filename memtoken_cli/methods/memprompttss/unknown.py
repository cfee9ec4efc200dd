"""Rows that are unlike every memory: one more state, `?`, in the chain, and `?1`, `?2`, ... where it falls
apart.

Shape suffixes: N tokens, K states, E embedding width, S segments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from memtoken_cli.methods.memprompttss.model import Encoded, Model, Unary

if TYPE_CHECKING:
    from memtoken_cli.methods.memprompttss.bank import Bank

NAME = "?"
APART = 1.0  # distance of z-scored segment means, a feature, beyond which they are different states
STEEP = 2.0  # cost of a threshold's worth of strangeness


def extended(model: Model, encoded: Encoded, bank: Bank, level: str, unary: Unary) -> Unary:
    """With the state `?`: as dear as the best state where a token is exactly at the model's threshold."""
    strange = model.strangeness(encoded, bank.written, level)
    best_N = unary.cost_NK.amin(1)
    beyond_N = strange.value_N.float() - strange.threshold
    cost_N = best_N - STEEP * beyond_N / max(abs(strange.threshold), 1e-6)
    labels = (*unary.labels, NAME)
    switch_KK = unary.switch_KK
    if switch_KK is not None:
        switch_KK = torch.nn.functional.pad(switch_KK, (0, 1, 0, 1))
    cost_NK = torch.cat([unary.cost_NK, cost_N[:, None]], 1)
    free_NK = None if unary.free_NK is None else torch.cat([unary.free_NK, cost_N[:, None]], 1)
    return replace(unary, labels=labels, cost_NK=cost_NK, switch_KK=switch_KK, free_NK=free_NK)


def clustered(
    encoded: Encoded, labels: tuple[str, ...], states_N: Tensor, p_NK: Tensor, states: int | None
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """The runs of `?` told apart by what they look like; one kind keeps the plain name."""
    k = labels.index(NAME)
    is_N = (states_N == k).numpy()
    cuts = np.flatnonzero(np.diff(np.concatenate([[0], is_N.astype(np.int8), [0]])))
    spans = cuts.reshape(-1, 2)
    groups = _groups(encoded, spans, states)
    kinds = int(groups.max()) + 1
    if kinds == 1:
        return labels, states_N, p_NK
    names = (*labels[:k], *labels[k + 1 :], *(f"{NAME}{number + 1}" for number in range(kinds)))
    moved_N = torch.where(states_N > k, states_N - 1, states_N)
    new_p = torch.cat([p_NK[:, :k], p_NK[:, k + 1 :], torch.zeros(len(p_NK), kinds)], 1)
    new_p[:, len(labels) - 1] = p_NK[:, k]
    for (a, b), group in zip(spans, groups, strict=True):
        at = len(labels) - 1 + int(group)
        moved_N[a:b] = at
        new_p[a:b, len(labels) - 1] = 0
        new_p[a:b, at] = p_NK[a:b, k]
    return names, moved_N, new_p


def _groups(encoded: Encoded, spans: np.ndarray, states: int | None) -> np.ndarray:
    """[S] the cluster of every run, numbered by first appearance."""
    if len(spans) == 1:
        return np.zeros(1, np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage

    seen = encoded.embed_NE if encoded.hand_NF is None else encoded.hand_NF
    mean_SE = np.stack([seen[a:b].float().mean(0).numpy() for a, b in spans]) / seen.shape[1] ** 0.5
    tree = linkage(mean_SE.astype(np.float64), "average")
    found = fcluster(tree, states, "maxclust") if states else fcluster(tree, APART, "distance")
    order = {group: number for number, group in enumerate(dict.fromkeys(found.tolist()))}
    return np.array([order[group] for group in found.tolist()])
