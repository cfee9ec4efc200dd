"""Exports of Label Studio's time-series projects, as its versions write them, and predictions as it imports
them."""

import json
from typing import Any

import numpy as np
import pytest

from memtoken_cli.data.prompts import Prompt, Said, parse_prompts, resolve
from memtoken_cli.data.segment_files import written
from memtoken_cli.data.series import Series, SeriesKeys, series_of
from memtoken_cli.io.errors import DataError

X_TC = np.random.default_rng(0).normal(size=(200, 2))
KEYS = SeriesKeys(series="walk")
SERIES = series_of(X_TC, time=np.arange(200) / 10, keys=KEYS)
STAMPS = [f"2022-12-26 12:33:{s // 10:02d}.{s % 10}00" for s in range(200)]
DATED = series_of(X_TC, time=STAMPS, keys=KEYS)
EPOCH = DATED.time_of(0)


def region(start: Any, end: Any, label: str | None, **more: Any) -> dict[str, Any]:
    labels = {} if label is None else {"timeserieslabels": [label]}
    return {
        "value": {"start": start, "end": end, "instant": start == end, **labels},
        "id": f"id{start}{label}",
        "from_name": "label",
        "to_name": "ts",
        "type": "timeserieslabels",
        "origin": "manual",
        **more,
    }


def annotation(*regions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": 41,
        "completed_by": {"id": 1, "email": "a@b.org", "first_name": "", "last_name": ""},
        "result": list(regions),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2024-05-01T10:00:00.000000Z",
        "lead_time": 12.5,
        "prediction": {},
        "result_count": len(regions),
        **more,
    }


def task(*annotations: dict[str, Any], number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": list(annotations),
        "file_upload": "1a2b3c4d-walk.csv",
        "drafts": [],
        "predictions": [],
        "data": {"csv": "/data/upload/3/1a2b3c4d-walk.csv"},
        "meta": {},
        "inner_id": number,
        "total_annotations": len(annotations),
        "cancelled_annotations": 0,
        "project": 3,
        "comment_authors": [],
        **more,
    }


def smallest(
    number: int, *values: dict[str, Any], csv: str = "walk.csv", annotator: int = 1
) -> dict[str, Any]:
    """A record of JSON-MIN."""
    return {
        "csv": f"/data/upload/3/1a2b3c4d-{csv}",
        "id": number,
        "label": list(values),
        "annotator": annotator,
        "annotation_id": number + 100,
        "created_at": "2024-05-01T10:00:00.000000Z",
        "updated_at": "2024-05-01T10:00:00.000000Z",
        "lead_time": 3.2,
    }


def read(tmp_path, document: Any) -> Said:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(document, indent=1))
    said = parse_prompts(path)
    assert said.format == "labelstudio"
    return said


def spans(prompts: tuple[Prompt, ...], series: Series = SERIES) -> list[tuple[int, int, str]]:
    return [(p.start, p.end, p.labels[0]) for p in prompts]


def test_a_full_export(tmp_path):
    said = read(tmp_path, [task(annotation(region(1.0, 2.5, "walk"), region(4.0, 4.0, "run")))])
    assert spans(resolve(said, SERIES).prompts) == [(10, 25, "walk"), (40, 41, "run")]
    assert {r.by for r in said.records} == {"a@b.org"} and said.warnings == ()


def test_a_region_that_ends_with_the_chart_has_the_last_row(tmp_path):
    said = read(tmp_path, [task(annotation(region(15.0, 19.9, "walk")))])
    assert spans(resolve(said, SERIES).prompts) == [(150, 200, "walk")]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2022-12-26 12:33:01.000", "2022-12-26 12:33:02.500"),  # timeFormat="%Y-%m-%d %H:%M:%S.%L"
        ("2022-12-26T12:33:01.000Z", "2022-12-26T12:33:02.500Z"),
        ((EPOCH + 1) * 1000, (EPOCH + 2.5) * 1000),  # dates as JavaScript counts them
        (EPOCH + 1, EPOCH + 2.5),
    ],
)
def test_dates(tmp_path, start, end):
    said = read(tmp_path, [task(annotation(region(start, end, "walk")))])
    assert spans(resolve(said, DATED).prompts) == [(10, 25, "walk")]


def test_times_that_nobody_can_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"'12/26/2022 12:33' is no time in .*export\.json:\d+"):
        read(tmp_path, [task(annotation(region("12/26/2022 12:33", "12/26/2022 12:34", "walk")))])


def test_who_is_heard(tmp_path):
    first, second = annotation(region(1.0, 2.0, "a")), annotation(region(1.0, 3.0, "b"), id=42)
    guess = {"model_version": "m", "result": [region(1.0, 2.0, "guess")], "score": 0.5}
    cancelled = annotation(region(5.0, 6.0, "c"), was_cancelled=True)

    def heard(
        *annotations: dict[str, Any], **more: Any
    ) -> tuple[list[tuple[int, int, str]], tuple[str, ...]]:
        said = read(tmp_path, [task(*annotations, **more)])
        found = resolve(said, SERIES)
        return spans(found.prompts), found.warnings

    assert heard(first, second)[0] == [(10, 30, "b")]  # the later one wins, and says so
    assert "two labels for rows 10 to 19" in heard(first, second)[1][0]
    assert heard(annotation(region(1.0, 2.0, "a"), ground_truth=True), second) == ([(10, 20, "a")], ())
    found, warnings = heard(first, cancelled, predictions=[guess])
    assert found == [(10, 20, "a")] and warnings == ("1 annotations that were cancelled are left aside",)
    assert heard(cancelled, predictions=[guess])[0] == []  # somebody looked and had nothing to say
    assert heard(annotation(), predictions=[guess]) == ([], ())
    assert heard(predictions=[guess]) == ([(10, 20, "guess")], ())
    newer = {**guess, "result": [region(1.0, 2.0, "newer")]}
    found, warnings = heard(predictions=[guess, newer])
    assert found == [(10, 20, "newer")] and "1 predictions before" in warnings[0]


def test_what_is_no_labelled_region_is_counted(tmp_path):
    relation = {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"}
    choice = {
        "value": {"choices": ["good"]},
        "id": "x",
        "from_name": "ok",
        "to_name": "ts",
        "type": "choices",
    }
    doubt = {"value": {"start": 1, "end": 2, "choices": ["sure"]}, "id": "y", "type": "choices"}
    regions = (region(1.0, 2.5, "walk"), region(3.0, 4.0, None), relation, choice, doubt)
    said = read(tmp_path, [task(annotation(*regions))])
    assert spans(resolve(said, SERIES).prompts) == [(10, 25, "walk")]
    assert said.warnings == (
        "3 regions of other types than timeserieslabels are left aside",
        "1 regions without a label are left aside",
    )


@pytest.mark.parametrize(
    "data",
    [
        {"csv": "/data/upload/3/1a2b3c4d-walk.csv"},
        {"csv_url": "https://x.org/a/walk.csv?token=1"},
        {"csv": "s3://bucket/a/walk.csv"},
        {"csv": "/data/local-files/?d=recordings/walk.csv"},
        {"video": "https://x.org/other.mp4", "csv": "walk.csv", "note": "seen twice"},
        {"ts": "C:\\data\\walk.csv"},
    ],
)
def test_whose_regions_they_are(tmp_path, data):
    mine = task(annotation(region(1.0, 2.0, "mine")), data=data, file_upload=None)
    other = task(
        annotation(region(3.0, 4.0, "other")),
        number=2,
        data={"csv": "run.csv"},
        file_upload="9a2b3c4d-run.csv",
    )
    said = read(tmp_path, [other, mine])
    found = resolve(said, SERIES)
    assert spans(found.prompts) == [(10, 20, "mine")] and "1 prompts of other series" in found.warnings[0]
    alone = resolve(
        read(tmp_path, [other]), SERIES
    )  # one task is about the series in hand, whatever its name
    assert spans(alone.prompts) == [(30, 40, "other")]


def test_tasks_that_name_no_file_or_several_are_left_aside(tmp_path):
    inline = task(
        annotation(region(1.0, 2.0, "a")), data={"ts": {"time": [0, 1], "x": [1, 2]}}, file_upload=None
    )
    both = task(
        annotation(region(1.0, 2.0, "b")),
        number=2,
        data={"one": "walk.csv", "two": "run.csv"},
        file_upload=None,
    )
    said = read(tmp_path, [inline, both, task(annotation(region(5.0, 6.0, "c")), number=3)])
    assert spans(resolve(said, SERIES).prompts) == [(50, 60, "c")]
    assert "2 regions of tasks that do not say" in said.warnings[0]
    assert spans(resolve(read(tmp_path, [inline]), SERIES).prompts) == [(10, 20, "a")]


def test_json_min(tmp_path):
    walk = {"start": 1.0, "end": 2.5, "instant": False, "timeserieslabels": ["walk"]}
    run = {"start": 4.0, "end": 4.0, "instant": True, "timeserieslabels": ["run"]}
    nobody = {**smallest(3), "annotator": {}, "annotation_id": None}
    document = [smallest(1, walk, run), smallest(2, walk, csv="other.csv"), nobody]
    document[0]["coarse"] = [{"start": 1.0, "end": 5.0, "instant": False, "timeserieslabels": ["gait"]}]
    said = read(tmp_path, document)
    found = resolve(said, SERIES)
    assert [(p.level, p.start, p.end, p.labels[0]) for p in found.prompts] == [
        ("coarse", 10, 50, "gait"),
        ("default", 10, 25, "walk"),
        ("default", 40, 41, "run"),
    ]
    assert {p.by for p in found.prompts} == {"1"} and len({p.id for p in found.prompts}) == 3
    assert "1 prompts of other series" in found.warnings[0]
    # two annotators of one task: one record each, and still one task
    two = [smallest(1, walk), smallest(1, run, annotator=2)]
    assert spans(resolve(read(tmp_path, two), SERIES).prompts) == [
        (10, 25, "walk"),
        (40, 41, "run"),
    ]


def prediction(series: Series, *rows: tuple[int, int, str]) -> dict[str, Any]:
    segments = [
        {"level": "default", "start_row": a, "end_row": b, "state": s, "confidence": 0.5} for a, b, s in rows
    ]
    [made] = json.loads("".join(written("labelstudio", segments, series)))
    return made


def test_what_is_written_is_what_a_project_imports():
    made = prediction(SERIES, (0, 50, "walk"), (50, 199, "run"), (199, 200, "rest"))
    assert set(made) == {"data", "predictions"} and made["data"] == {"csv": "walk.csv"}
    [guess] = made["predictions"]
    assert guess["model_version"] == "memtok"
    first, second, last = guess["result"]
    assert first == {
        "id": first["id"],
        "from_name": "label",
        "to_name": "ts",
        "type": "timeserieslabels",
        "value": {"start": 0.0, "end": 5.0, "instant": False, "timeserieslabels": ["walk"]},
        "score": 0.5,
    }
    # nothing lies beyond the chart
    assert second["value"]["end"] == last["value"]["end"] == 19.9 and last["value"]["instant"] is True


def test_dates_are_written_as_the_file_writes_them(tmp_path):
    made = prediction(DATED, (0, 50, "walk"), (50, 200, "run"))
    values = [r["value"] for r in made["predictions"][0]["result"]]
    assert [values[0]["start"], values[1]["end"]] == ["2022-12-26 12:33:00.000", "2022-12-26 12:33:19.900"]
    (tmp_path / "a").write_text(json.dumps([made]))
    found = resolve(parse_prompts(tmp_path / "a"), DATED)
    assert spans(found.prompts) == [(0, 50, "walk"), (50, 200, "run")]
