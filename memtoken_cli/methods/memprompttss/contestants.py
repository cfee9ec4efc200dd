"""What a model is held against: six classical ways to spread prompts over a series, and two mixtures of them.

All see hand features of tokens (`scene.py`). Time counts only where prompts stand on the series asked about;
there the prompted tokens of decoded rows keep their label. A model enters by the same door: `subject.py`.

Shape suffixes: N tokens, K known states, P prompts, M samples, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.ndimage import uniform_filter1d

from memtoken_cli.methods.memprompttss.scene import Contestant, Floats, Given, Ints, Scene

SMOOTH = 24  # tokens of the moving mean
REACH = 6  # tokens on each side of a prompt that a classifier learns from
PULL = 0.1  # C of the logistic regression
FLOOR = 1e-3  # of a forest's probabilities


def time_cost(scene: Scene, given: Given) -> Floats:
    """[N,K] tokens to the nearest prompt of each state."""
    apart_NP = np.abs(np.arange(scene.tokens)[:, None] - given.at_P)
    return _nearest(apart_NP.astype(np.float64), given)


def knn_cost(scene: Scene, given: Given) -> Floats:
    """[N,K] mean squared distance of hand features to the nearest prompt of each state."""
    x_NF, y_PF = scene.hand_NF, given.scene.hand_NF[given.at_P]
    squared_NP = (x_NF**2).sum(1)[:, None] - 2 * x_NF @ y_PF.T + (y_PF**2).sum(1)
    return _nearest(np.maximum(squared_NP, 0) / x_NF.shape[1], given)


def logreg_cost(scene: Scene, given: Given) -> Floats:
    """[N,K] negative log-probabilities of a logistic regression on the tokens around the prompts.

    scikit-learn's with C = .1, solved by `head.py`. Of two states scikit-learn fits one weight vector, which
    is the same as two at half its C.
    """
    import torch

    from memtoken_cli.methods.memprompttss.head import Logistic

    at_M, y_M, prompt_M = given.samples(REACH)
    K = len(given.known)
    x_MF = torch.from_numpy(given.scene.hand_NF[at_M])
    y, prompt = torch.from_numpy(y_M), torch.from_numpy(prompt_M)
    model = Logistic.fit(x_MF, y, prompt, K, C=PULL if K > 2 else PULL / 2, balance=0.0)
    return -model.scores(torch.from_numpy(scene.hand_NF)).double().numpy()


def forest_cost(scene: Scene, given: Given, seed: int = 0) -> Floats:
    """[N,K] negative log-probabilities of 60 trees on the tokens around the prompts."""
    from sklearn.ensemble import RandomForestClassifier

    at_M, y_M, _ = given.samples(REACH)
    model = RandomForestClassifier(60, random_state=seed).fit(given.scene.hand_NF[at_M], y_M)
    return -np.log(np.asarray(model.predict_proba(scene.hand_NF)) + FLOOR)


def smooth(cost_NK: Floats) -> Floats:
    """A moving mean over tokens; edges repeat."""
    found: Floats = uniform_filter1d(cost_NK, SMOOTH, axis=0, mode="nearest")
    return found


def decode(cost_NK: Floats, lam: float, scene: Scene, given: Given) -> Ints:
    """Columns of the cheapest chain; prompts on this series are kept."""
    import torch

    from memtoken_cli.methods.memprompttss import potts

    N = len(cost_NK)
    fixed_N = np.full(N, -1, dtype=np.int64)
    if given.scene is scene:
        fixed_N[given.at_P] = given.columns_P
    hard = potts.Hard(torch.from_numpy(fixed_N), None, torch.zeros(N, dtype=torch.int8))
    cost = torch.from_numpy(np.ascontiguousarray(cost_NK, dtype=np.float32))
    return potts.decode(cost, lam, hard, None).states_N.numpy()


def _nearest(apart_NP: Floats, given: Given) -> Floats:
    return np.stack([apart_NP[:, given.columns_P == k].min(1) for k in range(len(given.known))], 1)


def _row(columns: Callable[[Scene, Given], Ints]) -> Contestant:
    """A contestant out of a function that needs two states or more."""

    def contestant(scene: Scene, given: Given) -> Ints:
        if len(given.known) == 1:
            return np.full(scene.tokens, given.known[0])
        return given.known[columns(scene, given)]

    return contestant


def forest_row(seed: int) -> Contestant:
    """The row `forest-smooth` with trees of this seed."""
    return _row(lambda s, g: smooth(forest_cost(s, g, seed)).argmin(1))


def _mixed(scene: Scene, given: Given) -> Ints:
    cost_NK = 0.5 * logreg_cost(scene, given) + knn_cost(scene, given)
    if given.scene is scene:
        cost_NK = cost_NK + 0.5 * np.log1p(time_cost(scene, given) / 2)
    return decode(cost_NK, 8.0, scene, given)


ROWS: Mapping[str, Contestant] = {
    "time": _row(lambda s, g: time_cost(s, g).argmin(1)),
    "knn": _row(lambda s, g: knn_cost(s, g).argmin(1)),
    "knn-smooth": _row(lambda s, g: smooth(knn_cost(s, g)).argmin(1)),
    "knn-potts": _row(lambda s, g: decode(knn_cost(s, g), 3.0, s, g)),
    "logreg-smooth": _row(lambda s, g: smooth(logreg_cost(s, g)).argmin(1)),
    "forest-smooth": forest_row(0),
    "logreg-potts": _row(lambda s, g: decode(logreg_cost(s, g), 8.0, s, g)),
    "mix": _row(_mixed),
}
