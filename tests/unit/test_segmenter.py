"""`Segmenter`: the laws of a memory in Python. An empty bank is none, retraction and order are exact,
levels, undo."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny_segment import NAMES, Stub, walk

import memtoken_cli
from memtoken_cli.data.series import SeriesKeys, series_of
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods import memprompttss
from memtoken_cli.methods.memprompttss import bank_file, cache, model, plot
from memtoken_cli.methods.memprompttss.bank import Bank
from memtoken_cli.methods.memprompttss.page import page
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys
from memtoken_cli.methods.memprompttss.segmenter import Prediction, Segmenter

X_TC, TRUTH_T = walk(3000)
SAID = [{"row": 250, "label": "walk"}, {"row": 750, "label": "run"}, {"row": 1250, "label": "rest"}]


def seg(bank: Bank | None = None, **keys: object) -> Segmenter:
    return Segmenter(Stub(), bank, SegmentKeys.model_validate({"cache": "off", **keys}))


def bits(found: Prediction) -> list[object]:
    rows = [segment.row() for segment in found.segments]
    return [
        rows,
        found.states_T.tolist(),
        found.confidence_T.tobytes(),
        next(lv.p_NK for lv in found.levels) is None,
    ]


def test_a_few_prompts_name_the_states() -> None:
    found = seg().fit(X_TC).prompt(*SAID).predict()
    right = np.array([found.states_T[i] == NAMES[k] for i, k in enumerate(TRUTH_T)])
    assert right.mean() > 0.98
    assert [s.state for s in found.segments] == [NAMES[k] for k, _ in itertools.groupby(TRUTH_T.tolist())]
    assert len(found.evidence) == len(found.segments) and all(0 < len(e) <= 3 for e in found.evidence)
    assert [s.prompts for s in found.segments] == [1, 1, 1, 0, 0, 0]


def test_rows_of_one_token_that_were_said_to_differ_are_certain() -> None:
    said = [{"row": 1250, "label": "rest"}, {"row": 1251, "label": "run"}, {"row": 1252, "label": "walk"}]
    found = seg().fit(X_TC).prompt(*said).predict()
    assert found.states_T[1250:1253].tolist() == ["rest", "run", "walk"]
    assert found.confidence_T[1250:1253].tolist() == [1.0, 1.0, 1.0]
    assert [s.confidence for s in found.segments if s.start_row in (1250, 1251)] == [1.0, 1.0]


def test_an_empty_bank_is_no_bank() -> None:
    alone = seg().fit(X_TC)
    again = seg().fit(X_TC).prompt(*SAID)
    for row in list(again.bank.rows):
        again.retract(row.key[1])
    assert bits(alone.predict()) == bits(again.predict())
    assert bank_file.to_bytes(alone.memory) == bank_file.to_bytes(again.memory)


def test_order_repetition_and_names_change_nothing_but_the_names() -> None:
    whole = seg().fit(X_TC).prompt(*SAID)
    data, found = bank_file.to_bytes(whole.memory), bits(whole.predict())
    for order in itertools.permutations(SAID):
        other = seg().fit(X_TC)
        for said in (*order, order[0]):
            other.prompt(said)
        assert bank_file.to_bytes(other.memory) == data and bits(other.predict()) == found


def test_retraction_and_undo_are_exact() -> None:
    never = seg().fit(X_TC).prompt(*SAID[:2])
    had = seg().fit(X_TC).prompt(*SAID[:2]).prompt({**SAID[2], "id": "p7"})
    before = bits(had.predict())
    had.retract("p7")
    assert bank_file.to_bytes(had.memory) == bank_file.to_bytes(never.memory)
    assert bits(had.predict()) == bits(never.predict())
    assert bits(had.undo().predict()) == before
    with pytest.raises(UsageError, match="nothing to undo"):
        never.undo().undo()
    with pytest.raises(DataError, match="no prompt nobody"):
        had.retract("nobody")


def test_saved_and_loaded_it_says_the_same_also_of_another_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "load_model", lambda name: Stub(name))
    first = Segmenter.load("stub").fit(X_TC).prompt(*SAID)
    first.memory.save(tmp_path / "bank")
    other, _ = walk(3000, seed=3)
    options = {"series": "other"}
    again = Segmenter.load("stub", memory=tmp_path / "bank", options=options).fit(other)
    warm = seg(first.memory, series="other").fit(other)
    assert bits(again.predict()) == bits(warm.predict())
    assert again.memory.levels == ("default",) and set(again.predict().states_T) == set(NAMES)
    assert Segmenter.load("stub", memory=tmp_path / "none").memory.rows == ()
    assert memprompttss.Segmenter is Segmenter is memtoken_cli.Segmenter
    for package in (memprompttss, memtoken_cli):
        with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
            package.Segmentor  # noqa: B018


def test_dense_states_by_first_appearance() -> None:
    states = seg().fit_predict(X_TC)
    assert states.dtype == np.int64 and len(states) == len(X_TC)
    assert list(dict.fromkeys(states.tolist())) == list(range(states.max() + 1))
    assert seg(states=2).fit_predict(X_TC).max() == 1
    with pytest.raises(UsageError, match="no series yet"):
        seg().predict()


def test_rows_a_token_are_the_users_choice() -> None:
    plain = seg().fit(X_TC).prompt(*SAID)
    assert bits(seg(stride=6).fit(X_TC).prompt(*SAID).predict()) == bits(plain.predict())
    fine = seg(stride=2).fit(X_TC).prompt(*SAID)
    found = fine.predict()
    assert found.stride == 2 and {written.stride for written in fine.memory.written} == {2}
    assert (found.states_T == plain.predict().states_T).mean() > 0.95
    # a bank of other tokens is encoded again, and back again it is what it was
    other = seg(fine.memory).fit(X_TC)
    assert other.changes.encoded_again == len(SAID)
    assert bank_file.to_bytes(other.memory) == bank_file.to_bytes(plain.memory)
    with pytest.raises(UsageError, match="stride=188 leaves fewer than 16 tokens of 3000 rows") as caught:
        seg(stride=188).fit(X_TC)
    assert caught.value.hint == "stride=187, or less"
    assert len(seg(stride=187).fit(X_TC).predict().states_T) == len(X_TC)
    assert len(seg(stride=1).fit(X_TC[:20]).predict().states_T) == 20


def test_levels_are_independent_or_derived() -> None:
    both = [
        *SAID,
        {"row": 250, "label": "a", "level": "coarse"},
        {"row": 750, "label": "b", "level": "coarse"},
    ]
    found = seg().fit(X_TC).prompt(*both).predict()
    assert [level.name for level in found.levels] == ["default", "coarse"]
    assert bits(found)[1] == bits(seg().fit(X_TC).prompt(*SAID).predict())[1]
    tree = '{"gait": ["walk", "run"]}'
    made = seg(hierarchy=tree).fit(X_TC).prompt(*SAID).predict()
    fine, coarse = made.levels
    parents = {"walk": "gait", "run": "gait", "rest": "rest"}
    assert [parents[fine.labels[k]] for k in fine.states_T] == [coarse.labels[k] for k in coarse.states_T]
    assert all(s.evidence for s in made.segments)


def test_one_label_is_said_and_boundaries_alone_cut() -> None:
    found = seg().fit(X_TC).prompt(SAID[0]).predict()
    assert set(found.states_T) == {"walk"} and "one label only" in found.notes[0]
    cut = seg().fit(X_TC).prompt(SAID[0], {"row": 1333, "type": "boundary"}).predict()
    assert cut.states_T[1332] != cut.states_T[1333] and set(cut.states_T) == {"walk", "?"}
    none = seg(states=1).fit(X_TC).prompt({"row": 1333, "type": "boundary"}).predict()
    assert none.states_T[1332] != none.states_T[1333]


def test_boundaries_alone_cut_what_was_found_without_them() -> None:
    plain = seg().fit(X_TC).predict()
    before = [s.start_row for s in plain.segments]
    inside = before[2] + (before[3] - before[2]) // 3
    cut = seg().fit(X_TC).prompt({"row": inside, "type": "boundary"}).predict()
    assert [s.start_row for s in cut.segments] == [*before[:3], inside, *before[3:]]
    # the shorter side is a state of its own; all else is what it was
    new = cut.segments[2].state
    assert new not in set(plain.states_T) and (cut.states_T == new).sum() == inside - before[2]
    assert (cut.states_T[cut.states_T != new] == plain.states_T[cut.states_T != new]).all()
    # a change that was found nearby is moved, not doubled
    moved = seg().fit(X_TC).prompt({"row": before[2] + 20, "type": "boundary"}).predict()
    assert [s.start_row for s in moved.segments] == [*before[:2], before[2] + 20, *before[3:]]
    assert set(moved.states_T) == set(plain.states_T)
    kept = seg(states=3).fit(X_TC).prompt({"row": inside, "type": "boundary"}).predict()
    assert len(set(kept.states_T)) <= 3 and inside in [s.start_row for s in kept.segments]


def test_what_is_unlike_every_memory_is_unknown() -> None:
    two = seg(unknown="auto").fit(X_TC).prompt(*SAID[:2]).predict()
    rest = NAMES.index("rest") == TRUTH_T
    assert (two.states_T[rest] == "?").mean() > 0.9 and (two.states_T[~rest] == "?").mean() < 0.1
    one = seg(unknown="auto", states=2).fit(X_TC).prompt(SAID[0]).predict()
    assert {"?1", "?2", "walk"} == set(one.states_T)


def test_a_handful_of_rows() -> None:
    tiny = seg().fit(np.arange(10.0)).prompt({"row": 2, "label": "a"}, {"row": 8, "label": "b"}).predict()
    assert list(tiny.states_T) == ["a"] * 6 + ["b"] * 4
    assert list(seg().fit(np.arange(10.0)).predict().states_T) == ["s1"] * 10


def test_suggestions_look_for_new_states_first() -> None:
    first = seg().fit(X_TC).prompt(SAID[0])
    asked = first.suggest(3)
    assert len(asked) == 3 and {NAMES[TRUTH_T[s.row]] for s in asked[:2]} <= {"run", "rest"}
    assert asked[0].record(True)["label"] is None and set(asked[0].record(False)) >= {
        "row",
        "guess",
        "margin",
    }
    assert len(seg().fit(X_TC).suggest(4)) == 4


def test_the_cache_says_the_same_and_encodes_nothing(tmp_path: Path) -> None:
    series = series_of(X_TC, keys=SeriesKeys(series="a"))
    plain = seg().fit_series(series).prompt(*SAID)
    cold = seg(cache=str(tmp_path)).fit_series(series).prompt(*SAID)
    warm = seg(cache=str(tmp_path)).fit_series(series).prompt(*SAID)
    assert (cold.cache.encoded, warm.cache.encoded) == (1, 0)
    assert bits(plain.predict()) == bits(cold.predict()) == bits(warm.predict())
    [file] = tmp_path.glob(f"*{cache.SUFFIX}")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    hurt = seg(cache=str(tmp_path)).fit_series(series).prompt(*SAID)
    assert hurt.cache.encoded == 1 and bits(hurt.predict()) == bits(plain.predict())
    assert file.read_bytes() == data


def test_the_cache_forgets_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        seg(cache=str(tmp_path)).fit(walk(600, seed=seed)[0])
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(cache, "LIMIT", size)
    seg(cache=str(tmp_path)).fit(walk(600, seed=9)[0])
    assert len(list(tmp_path.glob(f"*{cache.SUFFIX}"))) == 3
    with pytest.raises(UsageError, match="not a directory"):
        cache.folder_of(str(next(tmp_path.iterdir())))


def test_the_page_loads_nothing_and_escapes_labels() -> None:
    evil = "<img onerror=alert(1) src=x>"
    made = seg().fit(X_TC, channels=["a", "<b>", "c&"]).prompt({**SAID[0], "label": evil}, SAID[1])
    text = page(plot.gathered(made.predict()))
    assert "http" not in text and "<script src" not in text and "<img" not in text and "<b>" not in text
    assert "&lt;img" in text and "c&amp;" in text and len(text) < 200_000
    assert text == page(plot.gathered(made.predict()))


def test_extremes_hold_every_value_and_gaps_stay_open() -> None:
    x_TC = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    x_TC[400:600] = np.nan
    low, high = plot.extremes(x_TC, 10)
    assert np.isnan(low[:, 4:6]).all() and np.isfinite(low[:, :4]).all()
    assert low[0, 0] == x_TC[:100, 0].min() and high[1, 9] == x_TC[900:, 1].max()


def test_tokens_are_kept_by_device_and_length(tmp_path: Path) -> None:
    kept, series = cache.Cache(tmp_path), series_of(X_TC)
    for model_, stride in ((Stub(), None), (Stub(), None), (Stub().on("cuda:1"), None), (Stub(), 2)):
        assert kept.get(model_, series, stride).stride == (stride or 6)
    assert kept.encoded == 3 and len(list(tmp_path.iterdir())) == 3
    kept.get(Stub().on("cuda"), series)  # which of several GPUs does not matter
    assert kept.encoded == 3
