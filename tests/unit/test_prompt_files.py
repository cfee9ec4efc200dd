"""Files of prompts in every known format, recognised by content; their faults by line."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data.prompts import Said, parse_prompts, resolve
from memtoken_cli.data.series import SeriesKeys, series_of
from memtoken_cli.io.errors import DataError

X_TC = np.random.default_rng(0).normal(size=(200, 2))
SERIES = series_of(X_TC, time=np.arange(200) / 10, keys=SeriesKeys(series="walk"))


def parsed(folder: Path, text: str, bad: str = "fail") -> Said:
    path = folder / "prompts"
    path.write_text(text, newline="")
    return parse_prompts(path, bad)


def spans(said: Said) -> list[tuple]:
    return [(p.type, p.start, p.end, p.labels) for p in resolve(said, SERIES).prompts]


def fault(folder: Path, text: str) -> DataError:
    with pytest.raises(DataError) as caught:
        parsed(folder, text)
    return caught.value


def test_jsonl(tmp_path):
    said = parsed(tmp_path, '\ufeff{"t": 1, "label": "a"}\r\n\r\n{"t": 2, "type": "boundary"}')
    assert said.format == "jsonl" and [r.line for r in said.records] == [1, 3]


def test_nothing_said(tmp_path):
    assert parsed(tmp_path, "").records == parsed(tmp_path, "\n \n").records == ()


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"t": 1, "label": "a"}\n{"t": 2}\n')))
    with pytest.raises(DataError) as caught:
        parse_prompts("-")
    assert caught.value.where == "<stdin>:2"


def test_skipped_records_are_told(tmp_path):
    said = parsed(tmp_path, 'x\n{"t": 1, "label": "a"}\n{"t": 2}\n'.replace("x", '{"t": '), bad="skip")
    assert len(said.records) == 1 and [str(e.where)[-2:] for e in said.skipped] == [":1", ":3"]


def test_a_first_line_that_is_nothing_can_be_skipped_too(tmp_path):
    said = parsed(tmp_path, 'walked at noon\n{"t": 1, "label": "a"}\n', bad="skip")
    assert said.format == "jsonl" and len(said.records) == 1
    assert [str(e.where)[-2:] for e in said.skipped] == [":1"]


def test_many_faults_are_cut_with_their_count(tmp_path):
    error = fault(tmp_path, '{"t": 1}\n' * 30)
    assert len(error.problems) == 21 and "10 more problems" in error.problems[-1].message


def test_csv(tmp_path):
    text = (
        "t,start,end,label,not,type,level,note\r\n"
        '1,,,"walk, fast",,,,"said ""so"""\r\n'
        ",2,4,2.50,,label,coarse,\r\n"
        '5,,,,"[""a"", 1.0]",,,\r\n'
        "6,,,,,boundary,,\r\n"
        '7,,,"two\nlines",,,,\r\n'
        "\r\n"
        "8,,,,walk,,,\r\n"
    )
    said = parsed(tmp_path, text)
    assert said.format == "csv"
    assert [r.line for r in said.records] == [2, 3, 4, 5, 6, 9]
    assert spans(said) == [
        ("label", 20, 40, ("2.50",)),
        ("label", 10, 11, ("walk, fast",)),
        ("not", 50, 51, ("1.0", "a")),
        ("boundary", 60, 61, ()),
        ("label", 70, 71, ("two\nlines",)),
        ("not", 80, 81, ("walk",)),
    ]
    assert said.records[0].note == 'said "so"'
    assert spans(parsed(tmp_path, "row;label\n5;a\n")) == spans(parsed(tmp_path, "row\tlabel\n5\ta\n"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("t,label\n1,a\n2\n", 3, "1 values instead of 2"),
        ("t,label\n1,a\nx,b\n", 3, "'x' is no time"),
        ("t,label\n1,\n", 2, "empty label"),
        ("t,label,colour\n1,a,red\n", 2, "unknown field 'colour'"),
        ('t,label\n1,"a\n2,b\n', 2, "not CSV"),
        ("t,t,label\n1,1,a\n", 1, "stands twice"),
        ('t,not\n1,"[a"\n', 2, "no JSON list"),
        ("hello world\n", 1, "no known format"),
        ("walk,run\n1,2\n", 1, "no known format"),
        ("1\t2\twalk\n3\trun\n", 2, "no line of a label track"),
        ("1\t2\t\n", 1, "empty label"),
        ("2\t1\tx\n", 1, "start 2.0 after end 1.0"),
        ("series,timestamp,value,label\na,noon,1,1\n", 2, "'noon' is no ISO-8601 date"),
        ("series,timestamp,value,label\na,2024-05-01,1\n", 2, "3 values instead of 4"),
        ("series,timestamp,value,label\na,2024-05-02,1,1\na,2024-05-01,1,1\n", 3, "backwards"),
    ],
)
def test_faults_name_their_line(tmp_path, text, line, what):
    error = fault(tmp_path, text)
    assert what in error.message and error.where == f"{tmp_path / 'prompts'}:{line}"


def test_suggestions_in_csv(tmp_path):
    said = parsed(tmp_path, "t,label,guess,margin\n1,,walk,0.1\n2,run,walk,0.2\n")
    assert spans(said) == [("label", 20, 21, ("run",))]
    assert said.warnings == ("1 suggestions have no label yet and are left aside",)


def test_audacity(tmp_path):
    said = parsed(tmp_path, "0.500000\t1.500000\twalk\n\\\t100.0\t200.0\n2.000000\t2.000000\ta\tb\n")
    assert said.format == "audacity"
    assert spans(said) == [("label", 5, 15, ("walk",)), ("label", 20, 21, ("a\tb",))]


def test_audacity_times_are_rounded_to_microseconds(tmp_path):
    series = series_of(X_TC, time=np.arange(200) / 3, keys=SeriesKeys(series="walk"))
    for row in range(0, 190, 7):
        text = f"{row / 3:.6f}\t{(row + 7) / 3:.6f}\tx\n"
        [prompt] = resolve(parsed(tmp_path, text), series).prompts
        assert (prompt.start, prompt.end) == (row, row + 7)


def test_a_track_starts_with_the_recording(tmp_path):
    dates = np.datetime64("2024-05-01T12:00:00") + np.arange(200) * np.timedelta64(100, "ms")
    for time in (dates, 1.7e9 + np.arange(200) / 10):
        series = series_of(X_TC, time=time, keys=SeriesKeys(series="walk"))
        [prompt] = resolve(parsed(tmp_path, "1.0\t2.5\twalk\n"), series).prompts
        assert (prompt.start, prompt.end) == (10, 25)


def test_trainset(tmp_path):
    rows = ["series,timestamp,value,label"]
    for channel in ("a", "b"):
        for i in range(200):
            label = "1" if 20 <= i < 30 else "" if i < 40 else "0"
            rows.append(f"{channel},1970-01-01T00:00:{i / 10:06.3f}Z,{i},{label}")
    said = parsed(tmp_path, "\n".join(rows))
    assert said.format == "trainset"
    assert spans(said) == [("label", 20, 30, ("1",)), ("label", 40, 200, ("0",))]


def test_change_points(tmp_path):
    said = parsed(tmp_path, "10\n150\n")
    assert said.format == "changepoints"
    assert spans(said) == [("boundary", 10, 11, ()), ("boundary", 150, 151, ())]


def region(**value: object) -> dict:
    return {
        "id": "r" + str(value.get("start")),
        "from_name": "label",
        "to_name": "ts",
        "type": "timeserieslabels",
        "value": value,
    }


def studio(*regions: dict, key: str = "annotations", **task: object) -> dict:
    return {
        "id": 1,
        "data": {"csv": "/data/upload/3/1a2b3c4d-walk.csv"},
        key: [{"result": list(regions)}],
        **task,
    }


WALK = region(start=1, end=2.5, instant=False, timeserieslabels=["walk"])
POINT = region(start=4.0, end=4.0, instant=True, timeserieslabels=["run"])


@pytest.mark.parametrize("key", ["annotations", "predictions"])
@pytest.mark.parametrize("shape", ["list", "one", "lines", "indented"])
def test_label_studio(tmp_path, key, shape):
    task = studio(WALK, POINT, key=key)
    text = {
        "list": json.dumps([task]),
        "one": json.dumps(task),
        "lines": json.dumps(task) + "\n",
        "indented": json.dumps([task], indent=2),
    }[shape]
    said = parsed(tmp_path, text)
    assert said.format == "labelstudio"
    assert spans(said) == [("label", 10, 25, ("walk",)), ("label", 40, 41, ("run",))]
    assert [r.id for r in said.records] == ["r1", "r4.0"]


def test_label_studio_levels_people_and_other_regions(tmp_path):
    other = {"from_name": "ok", "type": "choices", "value": {"choices": ["yes"]}}
    task = studio()
    task["annotations"] = [
        {
            "completed_by": {"id": 3, "email": "a@b.org"},
            "result": [WALK, {**POINT, "from_name": "coarse"}, other],
        },
        {"was_cancelled": True, "result": [region(start=9, end=10, timeserieslabels=["no"])]},
    ]
    task["predictions"] = [{"result": [region(start=9, end=10, timeserieslabels=["no"])]}]
    said = parsed(tmp_path, json.dumps(task))
    assert [(r.level, r.by, r.labels) for r in said.records] == [
        ("default", "a@b.org", ("walk",)),
        ("coarse", "a@b.org", ("run",)),
    ]
    assert said.warnings[0] == "1 regions of other types than timeserieslabels are left aside"


def test_label_studio_with_several_tasks(tmp_path):
    tasks = [studio(WALK), studio(POINT, id=2, data={"csv": "https://x.org/other.csv?token=1"})]
    found = resolve(parsed(tmp_path, json.dumps(tasks)), SERIES)
    assert [p.labels for p in found.prompts] == [("walk",)] and "other series" in found.warnings[0]


def test_label_studio_faults(tmp_path):
    two = region(start=3, end=5, timeserieslabels=["a", "b"])
    for wrong, what in (
        (two, "a region with 2 labels"),
        ({"id": "r3"}, "has no value"),
    ):
        error = fault(tmp_path, json.dumps([studio(WALK, wrong)], indent=1))
        assert what in error.message
        line = int(str(error.where).rpartition(":")[2])
        assert '"r3"' in (tmp_path / "prompts").read_text().splitlines()[line - 1]


PIECES = [
    *',;\t\n"1{}[]:\0é ',
    '"t"',
    '"label"',
    '"annotations"',
    "true",
    "null",
    "label",
    "t",
    "series,timestamp,value,label",
]


@given(
    st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
        st.text(max_size=60),
    )
)
def test_any_text_is_prompts_or_a_named_fault(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "prompts"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        resolve(parse_prompts(path), SERIES)
    except DataError as error:
        assert str(path) in str(error)
