"""Exams of segmentation: what each task measures, on small series."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memtoken_cli.data.labelled import Labelled
from memtoken_cli.data.states import make
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss import (
    exams,
    prompt_exam,
    transfer,
    transfer_exam,
    unknown_exam,
    unsup_exam,
)
from memtoken_cli.methods.memprompttss.boundary_clicks import boundary_clicks, worst_miss
from memtoken_cli.methods.memprompttss.config import GeneratedSection
from memtoken_cli.methods.memprompttss.exam_config import PROMPT_ROWS, EvaluateKeys
from memtoken_cli.methods.memprompttss.exam_data import Source, chained, reordered
from memtoken_cli.methods.memprompttss.exam_plot import curves
from memtoken_cli.methods.memprompttss.model import load_model
from memtoken_cli.methods.memprompttss.scene import Given, Scene
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys
from memtoken_cli.methods.memprompttss.segmenter import Segmenter
from memtoken_cli.methods.memprompttss.subject import Subject, points, relabelled

RECIPES = Path(__file__).parents[2] / "recipes" / "memprompttss"


@dataclass
class Told:
    """A run that keeps its notes."""

    out: Path = Path(".")
    fresh: bool = False
    device: str | None = "cpu"
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)


def levels(name: str = "a", seed: int = 0, order: tuple[int, ...] = (1, 2, 3, 1, 2, 3)) -> Scene:
    """Segments of 200 rows whose level is their state: easy for anything that looks."""
    rng = np.random.default_rng(seed)
    states_T = np.repeat(np.array(order), 200)
    values_TC = rng.normal(3.0 * states_T[:, None], 0.3, (len(states_T), 2)).astype(np.float32)
    return Scene(Labelled(name, values_TC, states_T.astype(np.int64), ("x", "y")))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(load_model("tss-base"))


def source(path: str | None = None, **keys: Any) -> Source:
    return Source(EvaluateKeys(**keys), path, GeneratedSection(series=3, rows=600, channels=2, states=3), 0)


def test_subject_says_what_the_product_says(subject: Subject) -> None:
    sample = make(np.random.default_rng(3), 4800, 3, 4)
    scene = Scene(Labelled("s", sample.values_TC, sample.states_T, ("a", "b", "c")))
    given = transfer.drawn(scene, 2, 0)
    answer = subject.ask(scene, scene, points(given))
    segmenter = Segmenter(subject.model, keys=SegmentKeys(cache="off", series="s"))
    segmenter.fit(sample.values_TC, channels=("a", "b", "c"))
    segmenter.prompt(*({"row": int(p.start), "label": p.labels[0]} for p in points(given)))
    theirs = segmenter.predict()
    assert theirs.states_T[scene.at_N].tolist() == answer.states_N.astype(str).tolist()
    assert theirs.confidence_T[scene.at_N] == pytest.approx(answer.confidence_N, abs=1e-5)


def test_a_prompt_is_written_and_a_series_encoded_once(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, asked = levels(), []
    fresh = Subject(subject.model)
    whole = subject.model.write
    monkeypatch.setattr(
        subject.model, "write", lambda e, prompts, s: asked.append(len(prompts)) or whole(e, prompts, s)
    )
    for k in (3, 5, 5):
        at_P = np.arange(k) * 10
        fresh(scene, Given(scene, at_P, scene.truth_N[at_P]))
    assert asked == [3, 2]
    assert fresh.encoded(scene) is fresh.encoded(scene)


def test_labels_change_places(subject: Subject) -> None:
    scene = levels()
    rows = subject.written(scene, points(transfer.drawn(scene, 1, 0)))
    moved = relabelled(rows, np.random.default_rng(0))
    before = [row.prompt.labels for row in rows]
    after = [row.prompt.labels for row in moved]
    assert sorted(before) == sorted(after)
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a.token_D, b.token_D) for a, b in zip(rows, moved, strict=True))


def test_draws_are_per_state_and_by_seed() -> None:
    scene = levels(order=(1, 2, 2, 2, 3))
    given = transfer.drawn(scene, 4, 5)
    assert np.unique(given.states_P, return_counts=True)[1].tolist() == [4, 4, 4]
    assert (scene.truth_N[given.at_P] == given.states_P).all()
    assert given.at_P.tolist() == transfer.drawn(scene, 4, 5).at_P.tolist()
    assert given.at_P.tolist() != transfer.drawn(scene, 4, 6).at_P.tolist()


def test_transfer_table(subject: Subject) -> None:
    pairs = [(levels("a"), levels("b", 1)), (levels("b", 1), levels("c", 2))]
    subjects = {"off": subject, "auto": Subject(subject.model, "auto")}
    wanted = exams.chosen("transfer", EvaluateKeys(task="transfer"))
    rows = transfer_exam.table(pairs, subjects, wanted, EvaluateKeys(k=(1, 3), seeds=2), 0)
    found = {(row["method"], row["k"]): row for row in rows}
    assert found["tss-off", 3]["accuracy"] > 0.9
    assert found["tss-off", 3]["accuracy"] - found["tss-shuffled", 3]["accuracy"] > 0.2
    assert found["tss-empty", 3]["accuracy"] == pytest.approx(1 / 3, abs=0.05)
    assert found["majority", 1]["accuracy"] == pytest.approx(1 / 3, abs=0.05)
    assert found["tss-home-shuffled", 1]["accuracy"] < found["tss-home-shuffled", 1]["unsupervised"]
    assert found["forest-full", "all"]["accuracy"] > 0.9
    knn = found["knn", 1]
    assert knn["over_acc"] == pytest.approx(found["tss-off", 1]["accuracy"] - knn["accuracy"])
    assert knn["over_acc_low"] <= knn["over_acc"] <= knn["over_acc_high"]
    assert len(knn["pairs"]) == 2
    assert {"tss-auto-reordered", "tss-off-reordered"} <= {name for name, _ in found}


def test_pairs() -> None:
    series = [levels(name).series for name in ("p1_a1", "p1_a2", "p2_a1", "p2_a2", "p3_a1")]
    assert chained(series, "next") == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert chained(series, "same") == [(0, 1), (2, 3)]
    assert chained(series, "other") == [(0, 2), (2, 4)]


def test_reordered_segments_are_whole() -> None:
    series = levels(order=(1, 2, 3, 4)).series
    other = reordered(series, 0)
    assert other.states_T.tolist() != series.states_T.tolist()
    assert np.unique(other.states_T, return_counts=True)[1].tolist() == [200] * 4
    first = other.states_T[0]
    assert (other.values_TC[:200] == series.values_TC[series.states_T == first]).all()


def test_generated_pairs_share_states_and_smoke_is_short() -> None:
    (a, b), *_ = source(task="transfer", smoke=True, limit=1).pairs()
    assert set(b.truth_N.tolist()) & set(a.truth_N.tolist())
    assert a.series.name == "series00a"
    assert len(source(limit=2).scenes()) == 2


def test_states_without_names_are_matched() -> None:
    assert transfer_exam.matched(np.array([1, 1, 2, 2, 3]), np.array([7, 7, 7, 5, 5])) == 3 / 5


def test_misses_of_change_points() -> None:
    scene = levels(order=(1, 2, 1))
    found = scene.truth_N.copy()
    assert worst_miss(scene, found, set()) is None
    found[:] = 1
    assert worst_miss(scene, found, set()) == 200  # the first of two as long
    assert worst_miss(scene, found, {200}) == 400
    assert worst_miss(scene, found, {200, 400}) is None


def test_boundary_clicks_show_changes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, types = levels(), []
    whole = Subject.ask
    monkeypatch.setattr(
        Subject,
        "ask",
        lambda self, s, o, said, deranged=None: types.append(said[-1].type) or whole(self, s, o, said),
    )
    monkeypatch.setattr("memtoken_cli.methods.memprompttss.boundary_clicks.MARGIN", -1.0)  # nothing is near
    boundary_clicks(scene, subject, 6)
    assert types[:3] == ["label", "label", "label"]
    assert "boundary" in types[3:]
    rare, types[:] = levels(order=(1, 2, 1, 2, 1, 2, 3)), []
    boundary_clicks(rare, subject, 3)  # the third state has no name yet
    assert set(types) == {"label"}


def test_prompt_table(subject: Subject) -> None:
    keys = EvaluateKeys(task="prompts", smoke=True, clicks=6)
    rows = prompt_exam.table([levels()], subject, exams.chosen("prompts", keys), keys, 0)
    by_part = {row["part"]: row for row in rows}
    assert tuple(by_part) == PROMPT_ROWS
    assert by_part["unknown"]["found"] > 0.9 and by_part["unknown"]["false"] < 0.2
    assert by_part["unknown"]["method"] == "5 points" and by_part["unknown"]["cases"] == 3
    assert by_part["interval"]["value"] > 0.9
    assert by_part["levels"]["consistent"] > 0.9
    assert 0 <= by_part["calibration"]["ece"] < 0.2
    assert 1 <= by_part["suggest"]["clicks90"] <= 7
    noise = [row["accuracy"] for row in rows if row["part"] == "noise"]
    assert len(noise) == 3


def test_states_are_held_out_in_turn() -> None:
    assert unknown_exam.left_out(levels(order=(1, 2)), 0) == []
    assert sorted(unknown_exam.left_out(levels(), 0)) == [1, 2, 3]
    many = levels(order=(1, 2, 3, 4, 5))
    assert len(unknown_exam.left_out(many, 0)) == 3
    assert unknown_exam.left_out(many, 0) != unknown_exam.left_out(many, 1)


def test_more_points_ask_for_less_to_be_unknown(subject: Subject) -> None:
    scene = levels()
    limits = []
    for k in (1, 3, 5):
        rows = subject.written(scene, points(transfer.drawn(scene, k, 0)))
        strange = subject.model.strangeness(subject.encoded(scene), rows, "default")
        limits.append(strange.threshold)
        assert strange.known == 2.0
    assert limits[0] == pytest.approx(3.2) and limits[0] > limits[1] > limits[2]


def test_wrong_labels() -> None:
    given = transfer.drawn(levels(), 10, 0)
    assert prompt_exam.spoilt(given, 0.0, 1).states_P.tolist() == given.states_P.tolist()
    assert not (prompt_exam.spoilt(given, 1.0, 1).states_P == given.states_P).any()
    assert 0 < (prompt_exam.spoilt(given, 0.3, 1).states_P != given.states_P).mean() < 0.6


def test_coarse_states() -> None:
    scene = levels(order=(4, 7, 5, 4))
    assert prompt_exam.parents(scene, None) == {4: 0, 5: 1, 7: 0}
    assert prompt_exam.parents(scene, {4: 1, 5: 1}) == {4: 1, 5: 1, 7: 7}


def test_interval_is_the_middle_half() -> None:
    prompt = prompt_exam.interval(levels(order=(1, 2)), 2, 0)
    assert (prompt.start, prompt.end, prompt.labels) == (250, 350, ("2",))


def test_unsupervised_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsup_exam.importlib.util, "find_spec", lambda name: None)
    series = [levels(name, seed).series for seed, name in enumerate("ab")]
    rows = unsup_exam.table(series, ("tss", "whole", "pelt", "clap"), EvaluateKeys(), 0)
    found = {row["method"]: row for row in rows}
    assert found["pelt"] == {"method": "pelt", "skipped": "pip install 'memtok[segmentation]'"}
    assert found["clap"] == {"method": "clap", "skipped": "pip install claspy"}
    assert found["whole"]["covering"] == pytest.approx(1 / 6)
    assert found["whole"]["ami"] == pytest.approx(0)
    assert found["whole"]["over_covering"] == pytest.approx(found["tss"]["covering"] - 1 / 6)
    assert [one["name"] for one in found["tss"]["series"]] == ["a", "b"]


def test_other_packages_get_no_long_series(monkeypatch: pytest.MonkeyPatch) -> None:
    series = [levels("a").series, levels("b", order=(1, 2, 3)).series]
    asked: list[int] = []
    slow = (lambda x_TC: asked.append(len(x_TC)) or np.zeros(len(x_TC), np.int64), "numpy")
    monkeypatch.setattr(unsup_exam, "ENTRANTS", {**unsup_exam.ENTRANTS, "pelt": slow})
    notes: list[str] = []
    keys = EvaluateKeys(longest=600)
    rows = unsup_exam.table(series, ("tss", "pelt"), keys, 0, notes.append)
    ours, theirs = rows
    assert asked == [600] and (ours["of"], theirs["of"]) == (2, 1)
    assert "the 1 series of at most 600 rows" in notes[0]
    alone = next(one for one in ours["series"] if one["name"] == "b")
    assert theirs["over_covering"] == pytest.approx(alone["covering"] - theirs["covering"])
    assert len(unsup_exam.table(series, ("tss", "pelt"), EvaluateKeys(longest=1), 0)) == 1


def test_pieces_of_change_points() -> None:
    assert unsup_exam.pieces(np.array([3, 0, 5, 9]), 6).tolist() == [0, 0, 0, 1, 1, 2]


def test_an_unknown_contestant_is_named() -> None:
    with pytest.raises(UsageError, match="logreg-pots") as error:
        exams.chosen("clicks", EvaluateKeys(contestants=("logreg-pots",)))
    assert "did you mean logreg-potts?" in str(error.value)
    with pytest.raises(UsageError, match="no curve"):
        exams.rows("unsup", source(), EvaluateKeys(plot="a.png"), 0, Told())


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_curves_are_the_same_bytes_again(tmp_path: Path, ending: str) -> None:
    lines = {"tss": [0.2, 0.9], "time": [0.2, 0.5]}
    for name in "ab":
        curves(lines, str(tmp_path / (name + ending)))
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_recipes_are_checked() -> None:
    from memtoken_cli.recipe.schema import load

    tasks = {name: load(RECIPES / f"{name}.yaml").data.task for name in exams.EXAMS}
    assert tasks == {name: name for name in exams.EXAMS}


def test_coarse_map_in_a_recipe() -> None:
    from memtoken_cli.recipe.schema import parse

    recipe = parse("method: memprompttss\ndata: {task: prompts, coarse: {1: 1, 2: 1, 3: 2}}\n")
    assert recipe.data.coarse == {1: 1, 2: 1, 3: 2}


def test_ruptures_hears_a_change_of_pitch():
    """A rival that looks at means alone would find nothing here, and flatter ours."""
    pytest.importorskip("ruptures")
    t = np.arange(6000)
    x_T = np.where(t < 3000, np.sin(t / 3), np.sin(t / 11)) + 0.1 * np.random.default_rng(0).normal(size=6000)
    for find in (unsup_exam.pelt, unsup_exam.binseg, unsup_exam.window):
        changes = np.flatnonzero(np.diff(find(x_T[:, None].astype(np.float32))))
        assert len(changes) and np.abs(changes - 3000).min() < 150
