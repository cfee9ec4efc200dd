"""Prompts on a series: rows, ids, conflicts, levels; every error of a record by its message and line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data.prompts import (
    Deletion,
    Prompt,
    Resolved,
    Said,
    canonical,
    from_runs,
    parse_hierarchy,
    parse_prompt,
    parse_prompts,
    resolve,
    settle,
)
from memtoken_cli.data.series import Series, SeriesKeys, read_series, series_of
from memtoken_cli.io.errors import DataError, UsageError

WALK = SeriesKeys(series="walk")
X_TC = np.random.default_rng(0).normal(size=(200, 2))
SERIES = series_of(X_TC, time=np.arange(200) / 10 + 5, keys=WALK)  # 5.0 to 24.9
ROWS = series_of(X_TC, keys=WALK)
GAIT = parse_hierarchy('{"gait": ["walk", "run"]}')


def said(folder: Path, *records: object, series: Series = SERIES, **options: object) -> Resolved:
    path = folder / "p.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    bad = options.get("bad", "fail")
    found = parse_prompts(path, bad)
    return resolve(found, series, options.get("hierarchy"), bad)


def fault(folder: Path, *records: object, **options: object) -> DataError:
    with pytest.raises(DataError) as caught:
        said(folder, *records, **options)
    return caught.value


def spans(found: Resolved) -> list[tuple]:
    return [(p.type, p.start, p.end, p.labels) for p in found.prompts]


def test_every_form_of_a_prompt(tmp_path):
    found = said(
        tmp_path,
        {"t": 12.4, "label": "walk"},
        {"start": 15, "end": 16.5, "label": "walk"},
        {"row": 31, "label": "run", "level": "coarse"},
        {
            "start_row": 190,
            "end_row": 200,
            "label": "run",
            "weight": 2,
            "by": "me",
            "note": "sure",
            "id": "p9",
        },
        {"t": 20.2, "type": "boundary"},
        {"t": 21, "type": "no-boundary"},
        {"start": 22, "end": 23, "type": "same"},
        {"t": 5, "not": "walk"},
        {"t": 6, "not": ["walk", "run"]},
    )
    assert spans(found) == [
        ("label", 31, 32, ("run",)),
        ("not", 0, 1, ("walk",)),
        ("not", 10, 11, ("run", "walk")),
        ("label", 74, 75, ("walk",)),
        ("label", 100, 115, ("walk",)),
        ("boundary", 152, 153, ()),
        ("no-boundary", 160, 161, ()),
        ("same", 170, 180, ()),
        ("label", 190, 200, ("run",)),
    ]
    assert found.prompts[0].level == "coarse" and found.prompts[1].level == "default"
    last = found.prompts[-1]
    assert (last.id, last.weight, last.by, last.note, last.series, last.line) == (
        "p9",
        2,
        "me",
        "sure",
        "walk",
        4,
    )
    assert found.warnings == found.skipped == ()


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ("walk at noon", "not JSON"),
        ('{"t": 6, "label": "walk"', "not JSON"),
        ('{"t": NaN, "label": "walk"}', "not JSON"),
        ('{"t": 6, "t": 7, "label": "walk"}', "stands twice"),
        ({"label": "walk"}, "no time"),
        ({"start": 6, "label": "walk"}, "start without end"),
        ({"end_row": 6, "label": "walk"}, "end_row without start_row"),
        ({"t": 6, "row": 7, "label": "walk"}, "said as t and row"),
        ({"t": 4.9, "label": "walk"}, "time 4.9 is outside the series (column 'time' 5 to 24.9)"),
        ({"t": 25, "label": "walk"}, "time 25 is outside"),
        ({"start": 20, "end": 25.2, "label": "walk"}, "time 25.2 is outside"),
        ({"row": 200, "label": "walk"}, "row 200 is outside the series (rows 0 to 199)"),
        ({"row": -1, "label": "walk"}, "row -1 is outside"),
        ({"start_row": 5, "end_row": 201, "label": "walk"}, "row 201 is outside"),
        ({"row": 1.5, "label": "walk"}, "no row index"),
        ({"t": True, "label": "walk"}, "t is no time but a boolean"),
        ({"t": "noon", "label": "walk"}, "'noon' is no time"),
        ({"t": "2024-05-01", "label": "walk"}, "is a date, but the series' times are numbers"),
        ({"start": 9, "end": 8, "label": "walk"}, "start 9.0 after end 8.0"),
        ({"start_row": 9, "end_row": 8, "label": "walk"}, "start 9 after end 8"),
        ({"t": 6, "label": " "}, "empty label"),
        ({"t": 6, "label": None}, "empty label"),
        ({"t": 6}, "empty label"),
        ({"t": 6, "not": []}, "empty label"),
        ({"t": 6, "label": ["walk"]}, "a label is text, found a list"),
        ({"t": 6, "label": True}, "a label is text, found a boolean"),
        ({"t": 6, "type": "bounday"}, "unknown type 'bounday'"),
        ({"t": 6, "type": "boundary", "label": "walk"}, "a prompt of type boundary has no label"),
        ({"start": 6, "end": 7, "type": "boundary"}, "a boundary is one moment"),
        ({"t": 6, "type": "same"}, "same needs a start and an end"),
        ({"t": 6, "label": "walk", "level": "coars"}, "unknown level 'coars'"),
        ({"t": 6, "label": "walk", "level": ""}, "empty level"),
        ({"t": 6, "label": "walk", "not": "walk"}, "label and not are the same"),
        ({"t": 6, "label": "walk", "not": "run"}, "one prompt says label or not"),
        ({"t": 6, "label": "walk", "weight": 0}, "weight 0 is not above 0"),
        ({"t": 6, "lable": "walk"}, "unknown field 'lable'"),
        ({"delete": True}, "nothing to delete"),
        ({"id": "p7", "delete": False}, '"delete" can only be true'),
        ([1, 2], "expected a JSON object"),
    ],
)
def test_faulty_records(tmp_path, record, what):
    good = {"t": 8, "label": "run"}
    error = fault(tmp_path, good, record, hierarchy=GAIT)
    assert what in error.message
    assert error.where == f"{tmp_path / 'p.jsonl'}:2" and error.hint and error.exit_code == 3
    if what != "label and not of row":
        left = said(tmp_path, good, record, hierarchy=GAIT, bad="skip")
        assert spans(left) == [("label", 30, 31, ("run",))]


def test_hints_name_what_was_meant(tmp_path):
    assert fault(tmp_path, {"t": 6, "lable": "walk"}).hint == "did you mean label?"
    assert fault(tmp_path, {"t": 6, "type": "bounday"}).hint == "did you mean boundary?"
    level = fault(tmp_path, {"t": 6, "label": "x", "level": "corse"}, hierarchy=GAIT)
    assert level.hint == "did you mean coarse?"


def test_all_problems_at_once(tmp_path):
    error = fault(tmp_path, {"t": 6}, {"t": 7, "label": "x"}, {"label": "x"})
    assert [str(e.where)[-2:] for e in error.problems] == [":1", ":3"]
    outside = fault(tmp_path, {"t": 60, "label": "x"}, {"t": 7, "label": "x"}, {"row": 900, "label": "x"})
    assert [str(e.where)[-2:] for e in outside.problems] == [":1", ":3"]


def test_label_and_not_of_one_row(tmp_path):
    clash = [{"start": 6, "end": 9, "label": "walk"}, {"t": 8, "not": ["run", "walk"]}]
    error = fault(tmp_path, *clash)
    path = tmp_path / "p.jsonl"
    assert error.message == f"label and not of row 30 are both 'walk' (see also {path}:1)"
    assert error.where == f"{path}:2"
    kept = said(tmp_path, *clash, bad="skip")
    assert spans(kept) == [("label", 10, 40, ("walk",))] and len(kept.skipped) == 1
    assert len(said(tmp_path, clash[0], {"t": 8, "not": "run"}).prompts) == 2
    assert len(said(tmp_path, clash[0], {"t": 8, "not": "walk", "level": "coarse"}).prompts) == 2


def test_the_later_of_two_labels_wins(tmp_path):
    found = said(tmp_path, {"t": 6, "label": "walk"}, {"t": 6.05, "label": "run"})
    assert spans(found) == [("label", 10, 11, ("run",))]
    path = tmp_path / "p.jsonl"
    assert found.warnings == (f"two labels for row 10: 'run' of {path}:2 wins over 'walk' of {path}:1",)


def test_an_interval_is_cut_by_later_labels(tmp_path):
    interval = {"id": "i", "start": 6, "end": 9, "label": "walk"}
    found = said(tmp_path, interval, {"t": 7, "label": "run"}, {"start": 8.5, "end": 10, "label": "sit"})
    assert [(p.id[:4], p.start, p.end, p.labels[0]) for p in found.prompts if p.labels[0] == "walk"] == [
        ("i", 10, 20, "walk"),
        ("i~21", 21, 35, "walk"),
    ]
    assert len(found.warnings) == 2 and "rows 35 to 39" in found.warnings[1]
    # said first, the point is what loses
    assert spans(said(tmp_path, {"t": 7, "label": "run"}, interval)) == [("label", 10, 40, ("walk",))]
    same = said(tmp_path, interval, {"t": 7, "label": "walk"})
    assert len(same.prompts) == 2 and not same.warnings


labels = st.tuples(st.integers(0, 29), st.integers(1, 12), st.sampled_from("abc"))


@given(st.lists(labels, max_size=12))
def test_settling_equals_painting_rows(spoken):
    prompts = [Prompt(f"{i}", "label", s, min(s + n, 30), (x,)) for i, (s, n, x) in enumerate(spoken)]
    painted: list[str | None] = [None] * 30
    for prompt in prompts:
        painted[prompt.start : prompt.end] = prompt.labels * (prompt.end - prompt.start)
    settled, _ = settle(prompts)
    found: list[str | None] = [None] * 30
    for prompt in settled:
        for row in range(prompt.start, prompt.end):
            assert found[row] in (None, prompt.labels[0])
            found[row] = prompt.labels[0]
    assert found == painted
    assert list(settled) == sorted(settled, key=canonical)


def test_ids(tmp_path):
    walk = {"t": 12.4, "label": "walk"}
    found = said(
        tmp_path, walk, walk, {"row": 74, "label": "walk"}, {"start": 12.4, "end": 12.5, "label": "walk"}
    )
    assert len(found.prompts) == 1 and not found.warnings
    assert found.prompts[0].id == "3cc5ec41b3c6"  # pinned: banks hold it, on every machine
    others = said(
        tmp_path, walk, {"t": 12.5, "label": "walk"}, {"t": 12.4, "label": "walk", "level": "coarse"}
    )
    assert len({p.id for p in (*found.prompts, *others.prompts)}) == 3


def test_a_repeated_id_replaces(tmp_path):
    found = said(tmp_path, {"id": "a", "t": 6, "label": "walk"}, {"id": "a", "t": 7, "label": "run"})
    assert spans(found) == [("label", 20, 21, ("run",))] and "is replaced by" in found.warnings[0]


@given(st.permutations(range(6)))
def test_the_order_of_lines_does_not_matter(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("order")
    records = [
        {"t": 6, "label": "walk"},
        {"t": 6, "not": "run"},
        {"start": 6, "end": 9, "type": "same"},
        {"t": 6, "label": "x", "level": "coarse"},
        {"t": 20, "label": "run"},
        {"t": 10, "type": "boundary"},
    ]
    straight = said(folder, *records)
    mixed = said(folder, *[records[i] for i in order], records[0])
    assert [p.id for p in straight.prompts] == [p.id for p in mixed.prompts]


def test_deletions(tmp_path):
    walk = {"t": 12.4, "label": "walk"}
    found = said(
        tmp_path,
        walk,
        {"id": "p7", "t": 6, "label": "run"},
        {"id": "p7", "delete": True},
        {"label": "walk", "delete": True},
        {"t": 15, "label": "walk"},
    )
    assert found.delete_ids == ("p7",) and found.delete_labels == ("walk",)
    assert spans(found) == [("label", 100, 101, ("walk",))]  # what is said after a deletion stays
    whole = said(tmp_path, {**walk, "delete": True})
    assert whole.delete_ids == (said(tmp_path, walk).prompts[0].id,) and whole.prompts == ()
    assert isinstance(parse_prompt({"id": 7, "delete": True}, "x"), Deletion)


def test_numbers_as_labels_are_kept_as_written(tmp_path):
    lines = [
        '{"t": 6, "label": 1.50}',
        '{"t": 7, "label": 1e3}',
        '{"t": 8, "not": [7, "x"]}',
        '{"t": 9, "label": "1.5"}',
    ]
    assert [p.labels for p in said(tmp_path, *lines).prompts] == [("1.50",), ("1e3",), ("7", "x"), ("1.5",)]


def test_labels_of_any_script(tmp_path):
    found = said(tmp_path, {"t": 6, "label": "  走る 🏃 "}, '{"t": 7, "label": "a\\nb, \\"c\\""}')
    assert [p.labels[0] for p in found.prompts] == ["走る 🏃", 'a\nb, "c"']


def test_suggestions_that_nobody_filled_in(tmp_path):
    open_ = {"t": 6, "label": None, "guess": "walk", "margin": 0.1}
    found = said(tmp_path, open_, {**open_, "label": "run"}, open_)
    assert spans(found) == [("label", 10, 11, ("run",))]
    assert found.warnings == ("2 suggestions have no label yet and are left aside",)


def test_prompts_of_other_series_are_left_aside(tmp_path):
    found = said(
        tmp_path, {"t": 1e9, "label": "x", "series": "other"}, {"t": 6, "label": "x", "series": "walk"}
    )
    assert len(found.prompts) == 1
    assert found.warnings == ("1 prompts of other series than 'walk' are left aside",)


def test_times_as_dates(tmp_path):
    dates = np.datetime64("2024-05-01T12:00:00") + np.arange(200) * np.timedelta64(100, "ms")
    series = series_of(X_TC, time=dates, keys=WALK)
    found = said(
        tmp_path,
        {"t": "2024-05-01T12:00:01Z", "label": "a"},
        {"t": "2024-05-01T14:00:02.34+02:00", "label": "b"},
        {"t": 1714564803.0, "label": "c"},
        {"start": "2024-05-01T12:00:04Z", "end": "2024-05-01T12:00:05Z", "label": "d"},
        series=series,
    )
    assert spans(found) == [
        ("label", 10, 11, ("a",)),
        ("label", 23, 24, ("b",)),
        ("label", 30, 31, ("c",)),
        ("label", 40, 50, ("d",)),
    ]
    late = fault(tmp_path, {"t": "2025-01-01", "label": "a"}, series=series)
    assert "2024-05-01T12:00:00Z to 2024-05-01T12:00:19.9Z" in late.message
    assert "no column of times" in fault(tmp_path, {"t": "2025-01-01", "label": "a"}, series=ROWS).message


def test_rows_of_a_resampled_series_are_the_files(tmp_path):
    time = np.cumsum(np.where(np.arange(300) % 4 == 0, 3.0, 1.0))
    series = series_of(np.sin(time), time=time, keys=WALK)
    assert series.origin_T is not None
    found = said(
        tmp_path, {"row": 299, "label": "x"}, {"start_row": 10, "end_row": 20, "label": "y"}, series=series
    )
    assert spans(found) == [
        ("label", series.row_in_hand(10), series.row_in_hand(20), ("y",)),
        ("label", len(series) - 1, len(series), ("x",)),
    ]
    by_time = said(tmp_path, {"t": float(time[299]), "label": "x"}, series=series)
    assert by_time.prompts[0].id == found.prompts[1].id


@given(st.integers(0, 199), st.integers(1, 199))
def test_segments_written_as_intervals_come_back(start, length):
    end = min(start + length, 200)
    for series in (SERIES, ROWS):
        record = {"start": series.time_of(start), "end": series.time_of(end), "label": "x"}
        spoken = parse_prompt(record, "x")
        [prompt] = resolve(Said((spoken,), "jsonl", "x"), series).prompts
        assert (prompt.start, prompt.end) == (start, end)


def test_label_columns_become_intervals(tmp_path):
    path = tmp_path / "walk.csv"
    path.write_text(
        "a,w\n" + "".join(f"{i % 7},{'walk' if i < 9 else '' if i < 12 else 'run'}\n" for i in range(30))
    )
    series = read_series(path, SeriesKeys(label_col="w"))
    found = from_runs(series)
    assert [(p.start, p.end, p.labels, p.by, p.line) for p in found] == [
        (0, 9, ("walk",), "label_col", 2),
        (12, 30, ("run",), "label_col", 14),
    ]
    assert from_runs(series_of(X_TC)) == ()


def test_hierarchies():
    assert GAIT == {"coarse": {"gait": ("walk", "run")}}
    nested = parse_hierarchy({"mid": {"gait": ["walk"]}, "top": {"moves": ["gait", "lift"]}})
    assert list(nested) == ["mid", "top"]
    for wrong in (
        "{",
        "[]",
        "{}",
        '{"gait": "walk"}',
        '{"a": ["x"], "b": ["x"]}',
        '{"default": {"a": ["x"]}}',
    ):
        with pytest.raises(UsageError, match="hierarchy"):
            parse_hierarchy(wrong)
