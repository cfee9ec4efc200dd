"""Segments in other tools' formats, and back as prompts."""

import json

import numpy as np
import pytest

from memtoken_cli.data.prompts import parse_prompts, resolve
from memtoken_cli.data.segment_files import trainset_codes, written
from memtoken_cli.data.series import SeriesKeys, series_of
from memtoken_cli.io.errors import DataError

X_TC = np.random.default_rng(0).normal(size=(200, 2))
KEYS = SeriesKeys(series="walk")
DATES = np.datetime64("2024-05-01T12:00:00") + np.arange(200) * np.timedelta64(100, "ms")
CLOCKS = {
    "rows": None,
    "seconds": np.arange(200) / 3 + 7,
    "dates": DATES,
    "epoch": 1.7e9 + np.arange(200) / 10,
    "irregular": np.cumsum(np.where(np.arange(200) % 4 == 0, 3.0, 1.0)),
}


def row(start: int, end: int, state: str, level: str = "default") -> dict:
    return {"level": level, "start_row": start, "end_row": end, "state": state, "confidence": 0.5}


SEGMENTS = [row(0, 50, "walk"), row(50, 80, ""), row(80, 200, "run, fast")]


def back(tmp_path, format, segments, series):
    path = tmp_path / "segments"
    path.write_text("".join(written(format, segments, series)), newline="")
    said = parse_prompts(path)
    assert said.format == format
    return resolve(said, series).prompts


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("format", ["labelstudio", "audacity", "trainset"])
def test_round_trips(tmp_path, format, clock):
    series = series_of(X_TC, time=CLOCKS[clock], keys=KEYS)
    names = (
        {"walk": "walk", "run, fast": "run, fast"}
        if format != "trainset"
        else {"walk": "0", "run, fast": "1"}
    )
    found = [
        (series.original_row(p.start), series.original_row(p.end), p.labels[0])
        for p in back(tmp_path, format, SEGMENTS, series)
    ]
    assert found == [(0, 50, names["walk"]), (80, 200, names["run, fast"])]


def test_change_points_become_boundaries(tmp_path):
    series = series_of(X_TC, keys=KEYS)
    found = back(tmp_path, "changepoints", SEGMENTS, series)
    assert [(p.type, p.start) for p in found] == [("boundary", 50), ("boundary", 80)]


def test_levels(tmp_path):
    series = series_of(X_TC, keys=KEYS)
    both = [*SEGMENTS, row(0, 200, "gait", "coarse")]
    found = back(tmp_path, "labelstudio", both, series)
    assert [(p.level, p.start, p.end) for p in found] == [
        ("coarse", 0, 200),
        ("default", 0, 50),
        ("default", 80, 200),
    ]
    assert "".join(written("changepoints", both, series)) == "50\n80\n"
    assert "".join(written("audacity", both, series, "coarse")) == "0.000000000\t200.000000000\tgait\n"


def test_label_studio_form():
    series = series_of(X_TC, time=DATES, keys=KEYS)
    [task] = json.loads("".join(written("labelstudio", SEGMENTS, series)))
    region = task["predictions"][0]["result"][0]
    assert (region["from_name"], region["to_name"], region["type"]) == ("label", "ts", "timeserieslabels")
    assert region["value"] == {
        "start": "2024-05-01T12:00:00Z",
        "end": "2024-05-01T12:00:05Z",
        "instant": False,
        "timeserieslabels": ["walk"],
    }


def test_audacity_labels_stay_on_their_line():
    series = series_of(X_TC, keys=KEYS)
    text = "".join(written("audacity", [row(0, 9, "two\nlines\tand a tab")], series))
    assert text.endswith("\ttwo lines and a tab\n") and text.count("\n") == 1


def test_trainset_is_binary():
    series = series_of(X_TC, keys=KEYS)
    with pytest.raises(DataError, match="two states, here are 3") as caught:
        written("trainset", [*SEGMENTS, row(190, 200, "sit")], series)
    assert "labelstudio" in str(caught.value.hint)
    assert trainset_codes(SEGMENTS) == {"walk": "0", "run, fast": "1"}
    assert trainset_codes(SEGMENTS[:2]) == {"walk": "1"}
    assert trainset_codes([row(0, 9, "1"), row(9, 20, "0")]) == {"1": "1", "0": "0"}
    lines = "".join(written("trainset", SEGMENTS, series)).splitlines()
    assert lines[0] == "series,timestamp,value,label" and len(lines) == 401
    assert lines[1].startswith("c0,1970-01-01T00:00:00Z,") and lines[1].endswith(",0")
    assert lines[60].endswith(",") and lines[400].startswith("c1,")


def test_no_segments():
    series = series_of(X_TC, keys=KEYS)
    assert "".join(written("audacity", [], series)) == "".join(written("changepoints", [], series)) == ""
    assert json.loads("".join(written("labelstudio", [], series)))[0]["predictions"][0]["result"] == []
