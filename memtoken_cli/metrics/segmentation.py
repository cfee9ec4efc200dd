"""How good a segmentation is: covering and change-point F1, agreement of labels, and curves over clicks.

Agreement is scikit-learn's. Labels may be integers or strings; a row is a row, whatever its time.

Shape suffixes: T rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLICKS = 30
MARGIN = 0.01  # of the rows, within which a change point is found


def changes(labels_T: ArrayLike) -> NDArray[np.int64]:
    """The rows whose label is not that of the row before, ascending; never row 0."""
    label_T = np.asarray(labels_T)
    return np.nonzero(label_T[1:] != label_T[:-1])[0] + 1


def covering(true_T: ArrayLike, found_T: ArrayLike) -> float:
    """Mean over rows of the overlap (intersection over union) of a row's true segment with the found segment
    that fits it best (van den Burg & Williams 2020, 2003.06222). Raises ValueError for unequal or no rows."""
    n = _rows(true_T, found_T)
    true = np.concatenate([[0], changes(true_T), [n]])
    found = np.concatenate([[0], changes(found_T), [n]])
    total = 0.0
    for start, end in pairwise(true):
        # only found segments that touch it count
        first = np.searchsorted(found, start, "right") - 1
        last = np.searchsorted(found, end, "left")
        low, high = found[first:last], found[first + 1 : last + 1]
        shared = np.minimum(high, end) - np.maximum(low, start)
        joined = np.maximum(high, end) - np.minimum(low, start)
        total += (end - start) * float((shared / joined).max())
    return float(total / n)


def cp_f1(true_T: ArrayLike, found_T: ArrayLike, margin: float = MARGIN) -> float:
    """F1 of change points, row 0 added to both sets: a true one is found where a change point not yet taken
    lies within `margin` of the rows (van den Burg & Williams 2020). Raises ValueError as `covering`."""
    n = _rows(true_T, found_T)
    true, found = [0, *changes(true_T).tolist()], [0, *changes(found_T).tolist()]
    reach = int(margin * n)
    left = list(found)
    hits = 0
    for at in true:
        near = [(abs(at - other), other) for other in left if abs(at - other) <= reach]
        if near:
            left.remove(min(near)[1])
            hits += 1
    return 2 * hits / (len(true) + len(found))


def accuracy(true_T: ArrayLike, found_T: ArrayLike) -> float:
    """The share of rows with the right label. Raises ValueError for unequal or no rows."""
    _rows(true_T, found_T)
    return float((np.asarray(true_T) == np.asarray(found_T)).mean())


def macro_f1(true_T: ArrayLike, found_T: ArrayLike) -> float:
    """Unweighted mean of F1 over the labels in either. Raises ValueError for unequal or no rows."""
    from sklearn.metrics import f1_score

    _rows(true_T, found_T)
    return float(f1_score(np.asarray(true_T), np.asarray(found_T), average="macro", zero_division=0))


def ami(true_T: ArrayLike, found_T: ArrayLike) -> float:
    """Mutual information of two labellings, adjusted for chance."""
    from sklearn.metrics import adjusted_mutual_info_score

    _rows(true_T, found_T)
    return float(adjusted_mutual_info_score(np.asarray(true_T), np.asarray(found_T)))


def ari(true_T: ArrayLike, found_T: ArrayLike) -> float:
    """Rand index of two labellings, adjusted for chance."""
    from sklearn.metrics import adjusted_rand_score

    _rows(true_T, found_T)
    return float(adjusted_rand_score(np.asarray(true_T), np.asarray(found_T)))


def nmi(true_T: ArrayLike, found_T: ArrayLike) -> float:
    """Mutual information of two labellings, normalised."""
    from sklearn.metrics import normalized_mutual_info_score

    _rows(true_T, found_T)
    return float(normalized_mutual_info_score(np.asarray(true_T), np.asarray(found_T)))


def auc30(accuracies: Sequence[float], clicks: int = CLICKS) -> float:
    """Mean accuracy over clicks 1 to 30; a curve that ended early stays where it ended. Raises ValueError for
    no click."""
    return float(np.mean(carried_on(accuracies, clicks)))


def noc90(accuracies: Sequence[float], level: float = 0.9, clicks: int = CLICKS) -> int:
    """The first click at which accuracy is at least `level`, else one more than there are clicks. Raises
    ValueError for no click."""
    for click, value in enumerate(carried_on(accuracies, clicks), 1):
        if value >= level:
            return click
    return clicks + 1


def carried_on(accuracies: Sequence[float], clicks: int = CLICKS) -> list[float]:
    """A curve of exactly `clicks` values, the last repeated. Raises ValueError for no click."""
    if not len(accuracies):
        raise ValueError("a curve of no clicks")
    kept = [float(value) for value in accuracies[:clicks]]
    return kept + [kept[-1]] * (clicks - len(kept))


def _rows(true_T: ArrayLike, found_T: ArrayLike) -> int:
    true, found = np.asarray(true_T), np.asarray(found_T)
    if true.shape != found.shape or true.ndim != 1 or not len(true):
        raise ValueError(f"labels of shape {true.shape} beside {found.shape}")
    return len(true)
