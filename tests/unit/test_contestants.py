"""Classical rows beside slow or foreign versions of themselves."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from memtoken_cli.data.labelled import Labelled
from memtoken_cli.methods.memprompttss.contestants import (
    REACH,
    ROWS,
    SMOOTH,
    decode,
    forest_row,
    knn_cost,
    logreg_cost,
    smooth,
    time_cost,
)
from memtoken_cli.methods.memprompttss.scene import Given, Scene


def series(name: str = "a", seed: int = 0, states: int = 3) -> Scene:
    """Six segments of noise with a level and a spread for each state."""
    rng = np.random.default_rng(seed)
    states_T = np.repeat(np.arange(6) % states, 160)
    values_TC = rng.normal(states_T[:, None], 0.3 + 0.3 * states_T[:, None], (960, 2))
    return Scene(Labelled(name, values_TC.astype(np.float32), states_T + 10, ("x", "y")))


def prompted(scene: Scene, at: list[int]) -> Given:
    at_P = np.array(at)
    return Given(scene, at_P, scene.truth_N[at_P])


def test_features_are_standardised_once() -> None:
    scene = series()
    assert scene.hand_NF.shape == (120, 2 * (5 + 7))  # a channel has 5 features at window 16 and 7 at 64
    assert scene.hand_NF is scene.hand_NF
    assert scene.hand_NF.mean(0) == pytest.approx(0, abs=1e-5)
    assert scene.hand_NF.std(0) == pytest.approx(1, abs=1e-3)


def test_costs_are_loops() -> None:
    scene = series()
    given = prompted(scene, [10, 30, 70, 95])
    x = scene.hand_NF
    for k, state in enumerate(given.known):
        of_it = given.at_P[given.states_P == state]
        for j in (0, 33, 119):
            assert knn_cost(scene, given)[j, k] == pytest.approx(
                min(((x[j] - x[p]) ** 2).mean() for p in of_it)
            )
            assert time_cost(scene, given)[j, k] == min(abs(j - p) for p in of_it)


def test_smoothing_is_a_moving_mean_with_repeated_edges() -> None:
    cost_NK = np.random.default_rng(0).normal(size=(60, 2))
    padded = np.pad(cost_NK, ((SMOOTH, SMOOTH), (0, 0)), mode="edge")
    for j in (0, 29, 59):
        window = padded[j + SMOOTH - SMOOTH // 2 : j + SMOOTH + SMOOTH // 2]
        assert smooth(cost_NK)[j] == pytest.approx(window.mean(0))


def test_samples_stay_on_the_series_and_overlap() -> None:
    scene = series()
    at_M, column_M, prompt_M = prompted(scene, [2, 118, 60]).samples(REACH)
    assert at_M[prompt_M == 0].tolist() == list(range(9))
    assert at_M[prompt_M == 1].tolist() == list(range(112, 120))
    assert len(at_M[prompt_M == 2]) == 2 * REACH + 1
    assert set(column_M[prompt_M == 0].tolist()) == {0}


@pytest.mark.parametrize("at", [[10, 30], [10, 30, 70, 95, 50]], ids=["two states", "three"])
def test_logistic_regression_is_scikit_learns(at: list[int]) -> None:
    scene = series()
    given = prompted(scene, at)
    at_M, y_M, _ = given.samples(REACH)
    theirs = LogisticRegression(C=0.1, max_iter=2000, tol=1e-8).fit(scene.hand_NF[at_M], y_M)
    found = np.exp(-logreg_cost(scene, given))
    assert found == pytest.approx(theirs.predict_proba(scene.hand_NF), abs=2e-3)


def test_decoding_keeps_prompts_of_its_own_series_only() -> None:
    scene, other = series(), series("b", 1)
    given = prompted(scene, [10, 30])
    cost_NK = np.zeros((120, 2))
    cost_NK[:, 1] = 0.2
    assert decode(cost_NK, 3.0, scene, given)[[10, 30]].tolist() == [0, 1]
    assert decode(cost_NK, 3.0, other, given).tolist() == [0] * 120


def test_mixture_reads_another_series_without_time() -> None:
    scene, other = series(), series("b", 1)
    given = prompted(scene, [10, 30, 50, 70, 90, 110])
    states_N = ROWS["mix"](other, given)
    assert (states_N == other.truth_N).mean() > 0.7


def test_a_forest_is_the_same_for_the_same_seed() -> None:
    scene = series()
    given = prompted(scene, [10, 30, 50])
    assert forest_row(1)(scene, given).tolist() == forest_row(1)(scene, given).tolist()
