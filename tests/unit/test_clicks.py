"""Click simulation on a toy by hand, its ceiling, and the reference figures where the data are at hand."""

from pathlib import Path

import numpy as np
import pytest

from memtoken_cli.data.labelled import Labelled
from memtoken_cli.methods.memprompttss.clicks import (
    Courses,
    ceiling,
    longest,
    macro_f1,
    next_click,
    on_folder,
    over,
    simulate,
)
from memtoken_cli.methods.memprompttss.contestants import ROWS
from memtoken_cli.methods.memprompttss.scene import Given, Scene

A, B, C = 3, 5, 9
SEGMENTS = ((A, 10), (B, 6), (A, 4), (C, 8), (B, 4))  # tokens


def toy() -> Scene:
    states_T = np.repeat([state for state, _ in SEGMENTS], [8 * length for _, length in SEGMENTS])
    values_TC = np.random.default_rng(0).normal(size=(len(states_T), 2)).astype(np.float32)
    return Scene(Labelled("toy", values_TC, states_T.astype(np.int64), ("a", "b")))


def test_tokens_are_judged_at_their_centre() -> None:
    states_T = np.array([0] * 4 + [1] * 13)
    scene = Scene(Labelled("short", np.zeros((17, 1), np.float32), states_T, ("a",)))
    assert scene.at_N.tolist() == [4, 12, 16]  # the last token has one row
    assert scene.truth_N.tolist() == [1, 1, 1]


def test_nearest_in_time_by_hand() -> None:
    course = simulate(toy(), ROWS["time"], 5)
    assert course.at_P.tolist() == [5, 24, 13, 18, 30]
    assert (course.accuracy_R * 32).tolist() == [14, 18, 24, 26, 29]
    assert course.noc == 5  # 29 of 32
    assert simulate(toy(), ROWS["time"], 4).noc == 5  # one more than there were
    assert course.auc == pytest.approx((14 + 18 + 24 + 26 + 29) / 32 / 5)


def test_ceiling_is_one_when_every_state_is_clicked() -> None:
    course = simulate(toy(), ceiling, 6)
    assert course.at_P.tolist() == [5, 24, 13]
    assert (course.accuracy_R * 32).tolist() == [14, 22, 32, 32, 32, 32]
    assert course.macro_f1_R.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert course.noc == 3


def test_a_centre_that_is_prompted_already_is_drawn_by_the_click() -> None:
    truth_N = np.array([1, 1, 1, 2])
    wrong_N = np.array([True, True, True, False])
    assert next_click(truth_N, wrong_N, [0], 4) == 1
    drawn = next_click(truth_N, wrong_N, [1], 4)
    assert drawn == np.random.default_rng(4).choice([0, 1, 2])


def test_the_longest_run_is_of_one_state_and_the_first_of_several() -> None:
    states_N = np.array([1, 1, 2, 2, 2, 1, 1])
    assert longest(states_N, np.array([True] * 7)) == (2, 5)
    assert longest(states_N, np.array([True, True, False, True, True, True, True])) == (0, 2)


def test_macro_f1_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(1)
    true, said = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    assert macro_f1(true, said) == pytest.approx(f1_score(true, said, average="macro"))


def test_every_contestant_keeps_to_what_was_clicked() -> None:
    scene = toy()
    at_P = np.array([5, 13])
    given = Given(scene, at_P, scene.truth_N[at_P])
    for name, contestant in ROWS.items():
        assert set(contestant(scene, given).tolist()) <= {A, B}, name
    alone = Given(scene, at_P[:1], scene.truth_N[at_P[:1]])
    for name, contestant in ROWS.items():
        assert contestant(scene, alone).tolist() == [A] * 32, name


def test_means_are_over_series() -> None:
    found = over([toy(), toy()], ceiling, 3)
    assert isinstance(found, Courses)
    assert found.row() == {
        "auc": pytest.approx((14 + 22 + 32) / 96),
        "noc90": 3,
        "acc@1": 14 / 32,
        "f1@1": pytest.approx(1 / 3),
    }


REFERENCES = {
    ("mocap", "time"): 0.873,
    ("mocap", "knn"): 0.864,
    ("mocap", "knn-smooth"): 0.884,
    ("mocap", "knn-potts"): 0.899,
    ("mocap", "mix"): 0.907,
    ("mocap", "ceiling"): 0.932,
    ("actrectut", "time"): 0.766,
    ("actrectut", "knn"): 0.852,
    ("actrectut", "knn-potts"): 0.902,
    ("actrectut", "logreg-potts"): 0.909,
    ("actrectut", "ceiling"): 0.954,
    ("synthetic_tss", "ceiling"): 0.950,
}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("folder", "name"), list(REFERENCES))
def test_reference_figures(data_folder: Path, folder: str, name: str) -> None:
    channels = "0-22" if folder == "actrectut" else None
    found = on_folder(data_folder / folder, {"ceiling": ceiling, **ROWS}[name], channels=channels)
    assert found.auc == pytest.approx(REFERENCES[folder, name], abs=0.005)
