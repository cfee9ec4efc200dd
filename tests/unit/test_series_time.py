"""Times: dates, zones, equal and irregular steps; from the rows of a file to the rows in hand and back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data import series_time
from memtoken_cli.data.series import Run, SeriesKeys, read_series, series_of
from memtoken_cli.io.errors import DataError


def read(folder: Path, times: list, values: list | None = None, name: str = "time", **keys: object):
    path = folder / "clock.csv"
    values = values or [i % 7 for i in range(len(times))]
    path.write_text(f"{name},a\n" + "".join(f"{t},{v}\n" for t, v in zip(times, values, strict=True)))
    return read_series(path, SeriesKeys(**keys))


@pytest.mark.parametrize(
    ("like", "written"),
    [
        ("2024-05-01T12:00:00", "2024-05-01T14:30:00.25"),
        ("2024-05-01 12:00:00", "2024-05-01 14:30:00.25"),
        ("2024-05-01T12:00:00.5Z", "2024-05-01T14:30:00.25Z"),
        ("2024-05-01 12:00:00+02:00", "2024-05-01 16:30:00.25+02:00"),
        ("2024-05-01T12:00:00-03:30", "2024-05-01T11:00:00.25-03:30"),
        ("", "2024-05-01T14:30:00.25Z"),
    ],
)
def test_a_time_is_written_like_its_neighbours(like, written):
    seconds = series_time.parse_iso("2024-05-01T14:30:00.25Z")
    assert series_time.format_like(seconds, like) == written
    assert series_time.parse_iso(written) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01 01:00:00.25+01:00", 0.25),
        ("1970-01-01T00:00:00.000001", 1e-6),
        ("2024-02-29T12:00:00-0230", 1709217000),
        ("20240229T143000Z", 1709217000),
        ("12.5", None),
        ("12:30", None),
        ("01/02/2024", None),
        ("2024-02-30", None),
        ("walk", None),
        ("", None),
    ],
)
def test_iso_8601(text, seconds):
    assert series_time.parse_iso(text) == seconds


@given(st.integers(-62135596800 * 10**6, 253402300799 * 10**6))
def test_dates_survive_writing(microseconds):
    seconds = microseconds / 1e6
    again = series_time.parse_iso(series_time.format_iso(seconds))
    assert again == pytest.approx(seconds, abs=1e-6 + 4 * np.spacing(abs(seconds)))


def test_dates_beyond_the_calendar_are_told():
    with pytest.raises(DataError, match="years 1 to 9999"):
        series_time.format_iso(1e15)


ZONES = {
    "none": ["2024-05-01 12:00:00", "2024-05-01 12:00:01.5", "2024-05-01 12:00:03"],
    "Z": ["2024-05-01T12:00:00Z", "2024-05-01T12:00:01.500Z", "2024-05-01T12:00:03.000000Z"],
    "offset": ["2024-05-01T14:00:00+02:00", "2024-05-01T14:00:01.5+02:00", "2024-05-01T14:00:03+02:00"],
    "changing offset": [
        "2024-05-01T14:00:00+02:00",
        "2024-05-01T13:00:01.5+01:00",
        "2024-05-01T12:00:03+00:00",
    ],
    "no seconds at first": ["2024-05-01 12:00", "2024-05-01 12:00:01.5", "2024-05-01 12:00:03"],
}


@pytest.mark.parametrize("zone", ZONES)
def test_zones(tmp_path, zone):
    series = read(tmp_path, ZONES[zone])
    assert series.iso and series.unit == 1.0
    assert (series.time_T - 1714564800).tolist() == [0, 1.5, 3]
    assert list(series.time_text()) == ZONES[zone]


def test_the_compiled_reader_rounds_dates_as_the_plain_one(tmp_path):
    times = [f"2024-05-01T12:00:{i / 1000:09.6f}Z" for i in range(500)]
    series = read(tmp_path, times)
    assert series.time_T.tolist() == [series_time.parse_iso(t) for t in times]


def test_daylight_saving(tmp_path):
    autumn = ["2024-10-27T02:59:58", "2024-10-27T02:59:59", "2024-10-27T02:00:00"]
    with pytest.raises(DataError, match="backwards") as caught:
        read(tmp_path, autumn)
    assert "write the zone" in str(caught.value.hint) and str(caught.value.where).endswith(":4")
    zoned = [f"{t}{z}" for t, z in zip(autumn, ("+02:00", "+02:00", "+01:00"), strict=True)]
    assert np.diff(read(tmp_path, zoned).time_T).tolist() == [1, 1]
    spring = [f"2024-03-31T01:59:{s:02d}" for s in range(60)] + [
        f"2024-03-31T03:00:{s:02d}" for s in range(60)
    ]
    series = read(tmp_path, spring)
    assert series.irregular and series.gap_T.sum() == series_time.HOLE - 1
    assert np.array_equal(series.time_T[series.origin_T], [series_time.parse_iso(t) for t in spring])


@pytest.mark.parametrize("start", [1e9, 1.7e9, 1.7e12, 1.7e18])
def test_epochs(tmp_path, start):
    step = 0.01 * start / 1e9
    series = read(tmp_path, [f"{start + step * i:.3f}" for i in range(200)], name="timestamp")
    assert not series.irregular and series.step == pytest.approx(step, rel=1e-3)
    for row in (0, 57, 199):
        assert series.row_of(series.time_of(row)) == row == series.edge_of(series.time_of(row))


def test_equal_times(tmp_path):
    times = [0, 0, *range(1, 200)]
    series = read(tmp_path, times)
    assert series.counts["equal_times"] == 1 and series.notes[0].startswith("1 row has the time")
    assert series.time_T.tolist() == times


@pytest.mark.parametrize("first", [50, 17, 1])
def test_a_coarse_clock_is_regular(tmp_path, first):
    series = read(tmp_path, [(i + 50 - first) // 50 for i in range(1000)])
    assert not series.irregular and series.origin_T is None
    assert series.step == pytest.approx(0.02) and series.end_time == pytest.approx((1050 - first) / 50)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_spreading_equal_times(steps):
    time_T = np.cumsum(np.array(steps, dtype=float))
    even_T = series_time.spread(time_T)
    assert (even_T >= time_T).all() and (np.diff(even_T) >= 0).all()
    if len(set(time_T)) > 1:
        assert (np.diff(even_T) > 0).all()


def test_small_jitter_is_left_alone(tmp_path):
    rng = np.random.default_rng(0)
    series = read(tmp_path, list(np.arange(300) + rng.uniform(-0.05, 0.05, 300)))
    assert series.origin_T is None and not series.irregular and series.notes == ()


def test_irregular_sampling(tmp_path):
    rng = np.random.default_rng(0)
    time = np.cumsum(rng.choice([0.5, 1.0, 1.0, 2.0], 500))
    values = np.sin(time / 20)
    series = read(tmp_path, time.tolist(), values.tolist())
    assert series.irregular and series.step == 1.0 and series.rows == 500
    np.testing.assert_allclose(np.diff(series.time_T), 1.0)
    # the last row may lie beyond the last time, where the value is held
    np.testing.assert_allclose(series.values_TC[:-1, 0], np.sin(series.time_T[:-1] / 20), atol=2e-3)
    # each row of the file lies within half a step of its row in hand
    assert np.abs(series.time_T[series.origin_T] - time).max() <= 0.5 + 1e-9
    assert len(series.on_rows(series.time_T)) == 500
    assert "500 rows are resampled" in series.notes[0]
    assert len(list(series.time_text())) == 500
    for row in (0, 1, 250, 499):
        assert series.original_row(series.row_in_hand(row)) <= row
    assert series.row_in_hand(500) == len(series) and series.original_row(len(series)) == 500
    off = read(tmp_path, time.tolist(), values.tolist(), resample="off")
    assert off.origin_T is None and off.irregular and len(off) == 500 and "taken as it is" in off.notes[0]


def test_a_hole_in_time_is_a_gap(tmp_path):
    time = [*range(100), *range(100_000, 100_100)]
    series = read(tmp_path, time)
    assert len(series) == 200 + series_time.HOLE - 1
    assert series.gap_T.sum() == series_time.HOLE - 1 == series.counts["gap_rows"]
    assert not series.on_rows(series.gap_T).any()
    assert np.array_equal(series.time_T[series.origin_T], time)
    assert (np.diff(series.time_T) > 0).all()
    assert series.row_of(50_000) in np.flatnonzero(series.gap_T)


@given(st.lists(st.sampled_from([0.3, 1.0, 1.0, 1.0, 1.7, 500.0]), min_size=3, max_size=40))
def test_grids(steps):
    time_T = np.cumsum([0.0, *steps])
    plan = series_time.grid(time_T, 1.0, "x")
    assert (np.diff(plan.time_G) > 0).all()
    assert (np.diff(plan.origin_T) >= 0).all()
    assert not plan.hole_G[plan.origin_T].any()
    assert np.abs(plan.time_G[plan.origin_T] - time_T).max() <= 0.5 + 1e-9
    assert plan.hole_G.sum() >= (series_time.HOLE - 2) * sum(step > 100 for step in steps)


def test_grids_do_not_explode():
    time_T = np.cumsum(np.where(np.arange(3000) % 3 == 0, 60.0, 1.0))
    with pytest.raises(DataError, match="makes") as caught:
        series_time.grid(time_T, 1.0, "x.csv")
    assert caught.value.where == "x.csv" and "resample=" in str(caught.value.hint)


def test_resampling_on_request(tmp_path):
    x = np.random.default_rng(0).normal(size=400)
    series = series_of(x, np.arange(400) / 10, keys=SeriesKeys(resample=0.4))
    assert series.step == 0.4 and len(series) == 101
    inner = [x[np.flatnonzero(series.origin_T == row)].mean() for row in range(1, 100)]
    np.testing.assert_allclose(series.values_TC[1:100, 0], inner, rtol=1e-5)


def test_labels_follow_to_the_grid(tmp_path):
    path = tmp_path / "x.csv"
    time = np.cumsum(np.where(np.arange(300) % 5 == 0, 2.0, 1.0))
    path.write_text("t,a,w\n" + "".join(f"{t},{i % 9},{'xy'[i // 150]}\n" for i, t in enumerate(time)))
    series = read_series(path, SeriesKeys(label_col="w"))
    assert series.origin_T is not None
    middle = series.row_in_hand(150)
    assert series.labels == (Run(0, middle, "x", 2), Run(middle, len(series), "y", 152))


def test_rows_and_times():
    series = series_of(np.arange(10.0), time=np.arange(10) * 0.1 + 5)
    assert [series.row_of(t) for t in (5.0, 5.04, 5.3, 5.35, 5.9, 5.99)] == [0, 0, 3, 3, 9, 9]
    assert [series.edge_of(t) for t in (5.0, 5.04, 5.3, 6.0)] == [0, 1, 3, 10]
    assert series.time_of(10) == series.end_time == pytest.approx(6.0)
    assert series.step == pytest.approx(0.1)


def test_times_of_arrays():
    dates = np.array(["2024-05-01T00:00:00", "2024-05-01T00:00:01"], dtype="datetime64[s]")
    series = series_of(np.arange(2.0), time=dates)
    assert series.iso and series.time_T.tolist() == [1714521600, 1714521601]
    assert list(series.time_text()) == ["2024-05-01T00:00:00Z", "2024-05-01T00:00:01Z"]
    assert series_of(np.arange(2.0), time=["2024-05-01", "2024-05-02"]).iso
    with pytest.raises(DataError, match="no ISO-8601 date"):
        series_of(np.arange(2.0), time=["2024-05-01", "tomorrow"])
    with pytest.raises(DataError, match="2 times are wanted"):
        series_of(np.arange(2.0), time=[1.0])
    with pytest.raises(DataError, match="backwards"):
        series_of(np.arange(2.0), time=[1.0, 0.0])


def test_one_time_for_all_rows_is_told(tmp_path):
    series = read(tmp_path, ["2024-05-01"] * 40, name="date")
    assert series.notes == ("39 rows have the time of the row before (time=none takes the row index)",)
    assert series.step == 1.0 and not series.irregular
