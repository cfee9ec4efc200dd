"""Text tables as series: layouts, columns, gaps, faults by line; the compiled reader against the plain."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data import series_csv
from memtoken_cli.data.series import SHORT_GAP, Run, Series, SeriesKeys, read_series, series_of
from memtoken_cli.data.series_columns import choose
from memtoken_cli.data.series_runs import Runs
from memtoken_cli.data.series_slow import read_slowly
from memtoken_cli.data.series_sniff import sniff
from memtoken_cli.data.series_source import source_of
from memtoken_cli.io.errors import DataError, UsageError


def read(folder: Path, text: str | bytes, name: str = "walk.csv", **keys: object) -> Series:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_series(path, SeriesKeys(**keys))


def fault(folder: Path, text: str | bytes, **keys: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, text, **keys)
    return caught.value


LAYOUTS = {
    "comma": "t,a,b\n0,1.5,-2\n1,2.5,-3e-1\n2,4,0.25\n",
    "semicolon": "t;a;b\n0;1.5;-2\n1;2.5;-3e-1\n2;4;0.25\n",
    "tab": "t\ta\tb\n0\t1.5\t-2\n1\t2.5\t-3e-1\n2\t4\t0.25\n",
    "decimal comma": "t;a;b\n0;1,5;-2\n1;2,5;-3e-1\n2;4;0,25\n",
    "decimal comma and tabs": "t\ta\tb\n0\t1,5\t-2\n1\t2,5\t-3e-1\n2\t4\t0,25\n",
    "byte order mark": "\ufefft,a,b\n0,1.5,-2\n1,2.5,-3e-1\n2,4,0.25\n",
    "CRLF": "t,a,b\r\n0,1.5,-2\r\n1,2.5,-3e-1\r\n2,4,0.25\r\n",
    "CR": "t,a,b\r0,1.5,-2\r1,2.5,-3e-1\r2,4,0.25\r",
    "no last line end": "t,a,b\n0,1.5,-2\n1,2.5,-3e-1\n2,4,0.25",
    "blank lines": "\nt,a,b\n0,1.5,-2\n\n1,2.5,-3e-1\n2,4,0.25\n\n\n",
    "spaces": "t, a ,b\n0, 1.5 ,-2\n1,2.5 , -3e-1\n2,4,0.25\n",
    "quotes": '"t","a","b"\n"0","1.5","-2"\n1,2.5,"-3e-1"\n2,4,0.25\n',
    "plus signs": "t,a,b\n0,+1.5,-2\n+1,2.5,-3e-1\n2,+4,.25\n",
    "a remark before the names": "# t,a,b\n0,1.5,-2\n1,2.5,-3e-1\n2,4,0.25\n",
    "text column": 't,who,a,b\n0,"x, y",1.5,-2\n1,"z\n""z""",2.5,-3e-1\n2,w,4,0.25\n',
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_same_series(tmp_path, layout):
    series = read(tmp_path, LAYOUTS[layout])
    assert series.channels == ("a", "b")
    assert series.time_name == "t"
    np.testing.assert_array_equal(series.values_TC, np.float32([[1.5, -2], [2.5, -0.3], [4, 0.25]]))
    np.testing.assert_array_equal(series.time_T, [0, 1, 2])
    assert (series.name, series.rows, series.step, series.end_time) == ("walk", 3, 1.0, 3.0)
    assert [float(t) for t in series.time_text()] == [0, 1, 2]


def test_no_header(tmp_path):
    series = read(tmp_path, "1.5,-2,x\n2.5,-3,y\n")
    assert series.channels == ("c0", "c1") and series.time_name is None
    assert series.values_TC.tolist() == [[1.5, -2], [2.5, -3]]
    assert list(series.time_text()) == ["0", "1"]
    assert "'c2' holds text" in series.notes[0]


def test_header_of_column_numbers(tmp_path):
    assert read(tmp_path, "0,1,state\n7,8,1\n6,5,2\n").channels == ("0", "1")
    told = read(tmp_path, "0,1\n1.5,2\n2.5,3\n")
    assert told.channels == ("0", "1") and "taken as names" in told.notes[0]
    assert read(tmp_path, "0,1\n5,2\n2,3\n").rows == 3


def test_one_value_a_line(tmp_path):
    series = read(tmp_path, "  -3.2e-01\n 4\n\n6\n\n\n", name="x.txt")
    assert series.kind == "txt" and series.channels == ("c0",)
    assert series.values_TC[:, 0].tolist() == [
        np.float32(-0.32),
        4.0,
        5.0,
        6.0,
    ]  # the blank line inside is a gap
    assert series.counts["bridged"] == 1


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("t", "t"),
        ("T_ms", "T_ms"),
        ("Timestamp", "Timestamp"),
        ("DATE of it", "DATE of it"),
        ("temperature", None),
        ("torque", None),
        ("t_x", None),
    ],
)
def test_time_columns(tmp_path, header, name):
    series = read(tmp_path, f"a,{header}\n5,0\n6,10\n4,20\n")
    assert series.time_name == name
    assert series.channels == (("a",) if name else ("a", header))
    assert series.unit == (1e-3 if header == "T_ms" else 1.0)


def test_time_by_key(tmp_path):
    text = "t,clock,a\n0,5,1\n1,6,2\n2,7,4\n"
    assert read(tmp_path, text, time="clock").time_T.tolist() == [5, 6, 7]
    none = read(tmp_path, text, time="none")
    assert none.time_name is None and none.channels == ("t", "clock", "a")
    with pytest.raises(UsageError, match="time=clok") as caught:
        read(tmp_path, text, time="clok")
    assert caught.value.hint == "time=clock"


def test_columns_that_look_like_labels_are_left_out(tmp_path):
    names = ["a", "Label", "is_state", "annotation", "is_anomaly", "changepoint", "statement"]
    series = read(tmp_path, ",".join(names) + "\n1,1,1,1,1,1,1\n2,2,2,2,2,2,2\n")
    assert series.channels == ("a", "statement")
    assert len(series.notes) == 5 and all("looks like labels" in note for note in series.notes)


def test_channels_by_name_and_glob(tmp_path):
    text = "t,acc x,acc y,gyro,state\n" + "".join(f"{i},{i},{i * 2},{i * 3},{i % 2}\n" for i in range(4))
    assert read(tmp_path, text, channels="acc*").channels == ("acc x", "acc y")
    assert read(tmp_path, text, channels="gyro,acc x").channels == ("acc x", "gyro")
    assert read(tmp_path, text, channels="*").channels == ("acc x", "acc y", "gyro")
    assert read(tmp_path, text, channels="state").channels == ("state",)
    with pytest.raises(UsageError, match="no numeric column 'gyros'") as caught:
        read(tmp_path, text, channels="gyros")
    assert caught.value.hint == "did you mean gyro?"


def test_names_that_stand_twice_or_nowhere(tmp_path):
    series = read(tmp_path, "x,x,,x.2\n1,2,3,5\n2,3,4,4\n")
    assert series.channels == ("x", "x.2", "c2", "x.2.2")
    assert len(series.notes) == 2


def test_a_column_that_counts_rows_is_left_out(tmp_path):
    rows = "".join(f"{i},{i * i % 7}\n" for i in range(1, 30))
    assert read(tmp_path, rows).channels == ("c1",)
    assert read(tmp_path, rows, channels="c0,c1").channels == ("c0", "c1")
    assert read(tmp_path, "ramp,b\n" + rows).channels == ("ramp", "b")
    assert read(tmp_path, ",b\n" + rows).channels == ("b",)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("t,a\n0,1\n1,2\n2,x\n", 4, "'x' is no number, in column 'a'"),
        ("t,a\n0,1\n1,2\nz,3\n", 4, "the time 'z' is not a number, in column 't'"),
        ("t,a\n0,1\n,2\n2,3\n", 3, "no time in column 't'"),
        ("t,a\n0,1\n1,2\n2", 4, "1 value instead of 2"),
        ("t,a\n0,1\n1,2,3\n2,3\n", 3, "3 values instead of 2"),
        ("t,a\n0,1\n2,2\n1,3\n", 4, "time goes backwards in column 't': 1 after 2"),
        ('t,a,w\n0,1,"x\ny"\n2,2,z\n1,3,z\n', 5, "time goes backwards"),
        ('t,a\n0,1\n1,"2\n2,3\n', 3, "not CSV"),
        ("date,a\n2024-05-01,1\n2024-05-02,2\n01/02/2024,3\n", 4, "is not an ISO-8601 date"),
        ("time,a\n10:15,1\n10:16,2\n", 2, "is not a number or an ISO-8601 date"),
        (b"t,a\n0,1\n1,\xe92\n", 3, "not UTF-8"),
        (b"t,a\n0,1\n1,\x002\n", 3, "NUL byte"),
        ("\ufeff1 2 3\n4 5 6\n", 1, "parted by spaces"),
        ("t;a\n0;1,5\n1;2,5\n2;3.5\n", 4, "'3.5' is no number"),
    ],
)
def test_faults_name_their_line(tmp_path, text, line, what):
    error = fault(tmp_path, text)
    assert what in error.message
    assert error.where == f"{tmp_path / 'walk.csv'}:{line}"
    assert error.hint and error.exit_code == 3


def test_faults_far_inside(tmp_path):
    rows = [f"{i},{i % 13}.5\n" for i in range(40_000)]
    rows[33_333] = "33333,wrong\n"
    assert fault(tmp_path, "t,a\n" + "".join(rows)).where.endswith(":33335")
    rows[33_333] = "33333,1.0,\n"
    assert fault(tmp_path, "t,a\n" + "".join(rows)).where.endswith(":33335")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("t,a\n", "no rows"),
        ("t,a\n0,7\n1,7\n", "no channel left: channel 'a' is constant"),
        ("t,a\n0,nan\n1,\n", "no channel left: channel 'a' is empty"),
        ("who,what\nx,y\nz,w\n", "no channel: who, what"),
    ],
)
def test_series_with_nothing_in_them(tmp_path, text, what):
    error = fault(tmp_path, text)
    assert what in error.message and str(tmp_path) in str(error.where) and error.hint


def test_one_row(tmp_path):
    series = read(tmp_path, "t,a,b\n5,1,2\n")
    assert series.values_TC.tolist() == [[1, 2]]
    assert (series.step, series.end_time, series.irregular) == (1.0, 6.0, False)


def test_constant_channels_are_dropped(tmp_path):
    series = read(tmp_path, "a,b,c\n1,5,\n2,5,\n3,5,\n")
    assert series.channels == ("a",) and series.counts["dropped"] == 2
    assert [note.split(" is ")[1] for note in series.notes] == ["constant and", "empty and"]


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_series(tmp_path / "no.csv")
    with pytest.raises(DataError, match="cannot read"):
        read_series(tmp_path)


def test_utf16_is_told(tmp_path):
    assert "UTF-16" in fault(tmp_path, "t,a\n0,1\n".encode("utf-16")).message


def test_gzip_is_told(tmp_path):
    import gzip

    assert "gunzip" in str(fault(tmp_path, gzip.compress(b"t,a\n0,1\n")).hint)


def gapped(gap: range, rows: int = 400) -> str:
    cells = [f"{i}" if i not in gap else ("", "nan", "inf", "-Infinity", "NA")[i % 5] for i in range(rows)]
    return "".join(f"{cell},{i % 5}\n" for i, cell in enumerate(cells))


def test_gaps(tmp_path):
    short = read(tmp_path, "a,b\n" + gapped(range(100, 100 + SHORT_GAP)))
    np.testing.assert_allclose(short.values_TC[:, 0], np.arange(400), rtol=1e-6)
    assert not short.gap_T.any()
    assert short.counts == {**short.counts, "gaps": SHORT_GAP, "bridged": SHORT_GAP, "gap_rows": 0}
    long = read(tmp_path, "a,b\n" + gapped(range(100, 101 + SHORT_GAP)))
    assert np.flatnonzero(long.gap_T).tolist() == list(range(100, 101 + SHORT_GAP))
    assert np.isnan(long.values_TC[long.gap_T, 0]).all() and np.isfinite(long.values_TC[~long.gap_T]).all()
    assert long.counts["gap_rows"] == SHORT_GAP + 1 and "carry no state" in long.notes[-1]


def test_gaps_at_the_ends_are_held(tmp_path):
    series = read(tmp_path, "a,b\n" + gapped(range(3)) + "nan,1\n")
    assert series.values_TC[:4, 0].tolist() == [3, 3, 3, 3]
    assert series.values_TC[-1, 0] == series.values_TC[-2, 0]


def test_a_channel_empty_in_most_rows_is_left_out(tmp_path):
    rows = "".join(f"{i % 7},{i if i < 90 else ''}\n" for i in range(400))
    assert read(tmp_path, "a,b\n" + rows).channels == ("a",)
    kept = read(tmp_path, "a,b\n" + rows, channels="a,b")
    assert kept.gap_T.sum() == 310
    # where the whole row is empty, no channel is to blame
    both = "".join(f"{i % 7},{i}\n" if i < 90 else ",\n" for i in range(400))
    assert read(tmp_path, "a,b\n" + both).channels == ("a", "b")


def test_label_column(tmp_path):
    text = 't,a,w\n0,1,walk\n1,2,walk\n2,3,\n3,4,"run, fast"\n4,5,1.50\n5,6,1.50\n'
    series = read(tmp_path, text, label_col="w")
    assert series.channels == ("a",)
    assert series.labels == (
        Run(0, 2, "walk", 2),
        Run(3, 4, "run, fast", 5),
        Run(4, 6, "1.50", 6),
    )
    assert read(tmp_path, text).labels is None
    with pytest.raises(UsageError, match="both time and label_col"):
        read(tmp_path, text, label_col="t")


def test_label_runs_do_not_depend_on_blocks(tmp_path):
    rows = "".join(f"{i % 97},{'abc'[i // 7000 % 3]}\n" for i in range(60_000))
    runs = [read(tmp_path, "a,state\n" + rows, label_col="state", chunk=n).labels for n in (1, 1 << 20)]
    assert runs[0] == runs[1]
    assert [run.start for run in runs[0]] == list(range(0, 60_000, 7000))


def test_reading_units_leave_no_trace(tmp_path):
    rng = np.random.default_rng(1)
    rows = "".join(f"{i / 100},{a:.6f},{b:.3f}\n" for i, (a, b) in enumerate(rng.normal(1e5, 3, (30_000, 2))))
    found = [read(tmp_path, "t,a,b\n" + rows, chunk=n) for n in (1000, 4097, 10**9)]
    assert len({series.fingerprint for series in found}) == 1
    assert len({series.values_TC.tobytes() for series in found}) == 1
    assert list(found[0].time_text()) == list(found[2].time_text())


def test_standard_input_equals_the_file(tmp_path, monkeypatch):
    text = "t,a\n0,1.5\n1,2\n2,7\n"
    from_file = read(tmp_path, text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    piped = read_series("-")
    assert piped.name == "stdin" and piped.source == "<stdin>"
    assert piped.fingerprint == from_file.fingerprint
    assert list(piped.time_text()) == list(piped.time_text()) == ["0", "1", "2"]


def test_a_file_that_changes_is_told(tmp_path):
    series = read(tmp_path, "t,a\n0,1.5\n1,2\n2,7\n")
    (tmp_path / "walk.csv").write_text("t,a\n0,1.5\n")
    with pytest.raises(DataError, match="changed"):
        list(series.time_text())


def test_values_far_from_zero_keep_their_digits(tmp_path):
    x = 1e9 + np.sin(np.arange(500) / 9)
    series = read(tmp_path, "pressure\n" + "".join(f"{v:.9f}\n" for v in x))
    assert series.offset_C[0] != 0
    np.testing.assert_allclose(series.values_TC[:, 0] + series.offset_C[0], x, atol=1e-6, rtol=0)
    again = series_of(x[:, None], channels=["pressure"])
    np.testing.assert_allclose(again.values_TC, series.values_TC, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 23, 300])
def test_channel_counts(tmp_path, channels):
    x_TC = np.random.default_rng(0).normal(size=(50, channels)).astype(np.float32)
    header = ",".join(f"x{c}" for c in range(channels))
    series = read(tmp_path, header + "\n" + "".join(",".join(map(repr, row)) + "\n" for row in x_TC.tolist()))
    np.testing.assert_array_equal(series.values_TC, x_TC)


def test_keys_are_checked():
    assert SeriesKeys(sep="tab").sep == "\t"
    for wrong in (
        {"sep": ",,"},
        {"sep": "."},
        {"resample": 0.0},
        {"resample": "no"},
        {"chunk": 0},
        {"chanels": "a"},
    ):
        with pytest.raises(ValueError):
            SeriesKeys(**wrong)


cells = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False).map(repr),
    st.integers(-(10**6), 10**6).map(str),
    st.sampled_from(["", "nan", "NaN", "inf", "-inf", "NA", "null", "None", "N/A", "Infinity"]),
)


@given(st.lists(st.tuples(cells, cells, st.sampled_from(["", "walk", "a b", "7"])), min_size=1, max_size=40))
def test_the_compiled_reader_equals_the_plain_one(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("both") / "x.csv"
    path.write_text("t,a,b,w\n" + "".join(f"{i},{a},{b},{w}\n" for i, (a, b, w) in enumerate(rows)))
    source, keys = source_of(path), SeriesKeys(label_col="w", channels="a,b")
    layout = sniff(source, keys)
    choice = choose(layout.names, layout.cells, keys, "x", layout.headed)
    offset_C = np.array([0.0, 2.0])
    fast_TC, fast_T, runs = series_csv._read_fast(source, layout, choice, offset_C, 7)
    slow_TC, slow_T, labels = read_slowly(source, layout, choice, offset_C)
    fast_TC[~np.isfinite(fast_TC)] = np.nan
    np.testing.assert_array_equal(fast_TC, slow_TC)
    np.testing.assert_array_equal(fast_T, slow_T)
    assert runs == Runs(layout.line).add(labels).runs


PIECES = [
    *',;\t\n"1+{[:é\0\x0b\u2028\ufeff ',
    "\r\n",
    "2,5",
    "-3",
    "nan",
    "",
    "t",
    "2024-05-01",
    "1e400",
    "label",
]
pieces = st.sampled_from([*PIECES, '"t"', "@data", "9" * 20])


@given(st.one_of(st.lists(pieces, max_size=40).map(lambda p: "".join(p).encode()), st.binary(max_size=80)))
def test_any_bytes_are_a_series_or_a_named_fault(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    for name in ("x.csv", "x.txt", "x.ts"):
        path = folder / name
        path.write_bytes(data)
        try:
            series = read_series(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert len(list(series.time_text())) == series.rows == len(series.on_rows(series.time_T))


@pytest.mark.data
@pytest.mark.parametrize(
    "pattern",
    [
        "mocap/*.csv",
        "pump/*.csv",
        "usc_had/*.csv",
        "synthetic_tss/*.csv",
        "tssb/[A-Z]*.txt",
        "utsa/[A-Z]*.txt",
        "aeon_small/*.csv",
        "aeon_small/*.ts",
        "actrectut/*/data.mat",
    ],
)
def test_public_files_can_be_read(data_folder, pattern):
    files = sorted(data_folder.glob(pattern))
    assert files
    for file in files:
        series = read_series(file)
        assert len(series) == series.rows > 500 and np.isfinite(series.values_TC).all(), file
        assert not any(name in ("state", "labels", "is_anomaly") for name in series.channels)
