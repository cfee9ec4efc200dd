"""Series in .npz, .mat, .ts and .parquet files, and as arrays; what they refuse."""

import numpy as np
import pytest

from memtoken_cli.data.series import Run, SeriesKeys, read_series, series_of
from memtoken_cli.io.errors import DataError

X_TC = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
TIME = np.arange(60) / 4
LABELS = np.array(["walk"] * 20 + ["run"] * 40)


def pq(path, **columns):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def mat(path, **arrays):
    from scipy.io import savemat

    savemat(path, arrays)
    return path


def test_npz(tmp_path):
    path = npz(tmp_path / "x.npz", x=X_TC, time=TIME, label=LABELS, channels=np.array(["a", "b", "c"]))
    series = read_series(path)
    assert series.kind == "npz" and series.channels == ("a", "b", "c") and series.time_name == "time"
    np.testing.assert_array_equal(series.values_TC, X_TC)
    assert list(series.time_text())[:3] == ["0", "0.25", "0.5"]
    runs = read_series(path, SeriesKeys(label_col="label")).labels
    assert runs == (Run(0, 20, "walk", 0), Run(20, 60, "run", 0))


def test_npz_without_names(tmp_path):
    assert read_series(npz(tmp_path / "x.npz", x=X_TC)).channels == ("c0", "c1", "c2")
    two = read_series(npz(tmp_path / "y.npz", x=X_TC, y=X_TC[:, :2], z=X_TC[:, 0]))
    assert two.channels == ("x.0", "x.1", "x.2", "y.0", "y.1", "z")
    side = read_series(npz(tmp_path / "z.npz", x=X_TC.T))
    assert side.channels == ("c0", "c1", "c2") and "on its side" in side.notes[0]


def test_npz_with_arrays_that_do_not_fit(tmp_path):
    series = read_series(npz(tmp_path / "x.npz", x=X_TC, other=np.arange(5), deep=np.zeros((2, 2, 2))))
    assert series.channels == ("c0", "c1", "c2")
    assert len([note for note in series.notes if "left out" in note]) == 2


def test_npz_is_never_unpickled(tmp_path):
    path = npz(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="Python objects") as caught:
        read_series(path)
    assert "savez" in str(caught.value.hint) and caught.value.where == str(path)


def test_mat(tmp_path):
    path = mat(tmp_path / "x.mat", data=X_TC, labels=np.arange(60)[:, None] // 20, note="words")
    series = read_series(path)
    assert series.kind == "mat" and series.channels == ("c0", "c1", "c2")
    np.testing.assert_array_equal(series.values_TC, X_TC)
    assert any("looks like labels" in note for note in series.notes)
    runs = read_series(path, SeriesKeys(label_col="labels", channels="c0,c2"))
    assert runs.channels == ("c0", "c2")
    assert [(r.start, r.end, r.label) for r in runs.labels] == [(0, 20, "0"), (20, 40, "1"), (40, 60, "2")]


def test_mat_row_vectors(tmp_path):
    series = read_series(mat(tmp_path / "x.mat", t=TIME, emg=X_TC[:, 0], acc=X_TC[:, 1]))
    assert series.channels == ("emg", "acc") and series.time_name == "t" and series.rows == 60


def test_parquet(tmp_path):
    dates = (1714521600 * 10**9 + np.arange(60) * 10**9).astype("datetime64[ns]")
    gaps = [None if i == 5 else float(i) for i in range(60)]
    path = pq(
        tmp_path / "x.parquet", date=dates, a=X_TC[:, 0], b=gaps, who=list(LABELS), n=np.arange(60) ** 2
    )
    series = read_series(path)
    assert series.kind == "parquet" and series.channels == ("a", "b", "n") and series.iso
    assert series.values_TC[5, 1] == 5 and series.counts["bridged"] == 1
    assert series.time_T[1] == 1714521601 and list(series.time_text())[1] == "2024-05-01T00:00:01Z"
    assert any("'who' holds text" in note for note in series.notes)
    assert len(read_series(path, SeriesKeys(label_col="who")).labels) == 2


def test_parquet_faults_name_the_row(tmp_path):
    path = pq(tmp_path / "x.parquet", a=["1", "2", "3", "x"], b=[1, 2, 3, 5])
    with pytest.raises(DataError, match="'x' is no number, in column 'a'") as caught:
        read_series(path)
    assert caught.value.where == f"{path}, row 3"


@pytest.mark.parametrize("suffix", [".npz", ".mat", ".parquet"])
def test_truncated_and_wrong_files(tmp_path, suffix):
    whole = {
        ".npz": lambda p: npz(p, x=X_TC),
        ".mat": lambda p: mat(p, x=X_TC),
        ".parquet": lambda p: pq(p, a=X_TC[:, 0]),
    }[suffix](tmp_path / f"whole{suffix}")
    raw = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for size in (0, 3, 10, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(DataError) as caught:
            read_series(path)
        assert str(path) in str(caught.value)
    path.write_text("t,a\n0,1\n1,2\n")
    with pytest.raises(DataError):
        read_series(path)


@pytest.mark.parametrize("suffix", [".npz", ".mat", ".parquet"])
def test_flipped_bytes_are_read_or_told(tmp_path, suffix):
    makers = {".npz": npz, ".mat": mat, ".parquet": pq}
    path = makers[suffix](tmp_path / f"x{suffix}", a=X_TC[:, 0], b=X_TC[:, 1])
    raw = path.read_bytes()
    for place in range(0, len(raw), 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :])
        try:
            series = read_series(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert series.rows > 0


def test_binary_files_on_standard_input(tmp_path, monkeypatch):
    import io
    import sys

    path = npz(tmp_path / "x.npz", x=X_TC)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert read_series("-").fingerprint == read_series(path).fingerprint


TS = """# about it
@problemName Two
@timeStamps false
@univariate false
@dimensions 2
@classLabel true a b
@data
1,2,3:4,5,6:a
7,?:9,10:b
"""


def test_ts(tmp_path):
    path = tmp_path / "x.ts"
    path.write_text(TS)
    series = read_series(path)
    assert series.channels == ("c0", "c1") and series.rows == 5
    assert series.values_TC[:, 1].tolist() == [4, 5, 6, 9, 10] and series.counts["bridged"] == 1
    assert "2 cases are read as one series" in series.notes[0]
    assert read_series(path, SeriesKeys(label_col="label")).labels == (Run(0, 3, "a", 0), Run(3, 5, "b", 0))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (TS.replace("7,?:", "7,x:"), 9, "'x' is no number"),
        (TS.replace("9,10:b", "9:b"), 9, "different lengths"),
        (TS.replace(":9,10:b", ":b"), 9, "1 channels instead of 2"),
        (TS.replace("@timeStamps false", "@timeStamps true"), 3, "time stamps"),
        (TS.replace("@data\n", ""), 7, "before @data"),
    ],
)
def test_ts_faults(tmp_path, text, line, what):
    path = tmp_path / "x.ts"
    path.write_text(text)
    with pytest.raises(DataError, match=what) as caught:
        read_series(path)
    assert caught.value.where == f"{path}:{line}" and caught.value.hint


def test_arrays():
    series = series_of(X_TC)
    assert series.channels == ("c0", "c1", "c2") and series.kind == "array"
    assert np.shares_memory(series.values_TC, X_TC) is False
    assert series_of(X_TC, channels=["state", "time", "b"]).channels == ("state", "time", "b")
    timed = series_of(X_TC, TIME, channels=["time", "b", "c"])
    assert timed.channels == ("time", "b", "c") and timed.step == 0.25
    assert series_of(X_TC[:, 0]).values_TC.shape == (60, 1)
    assert series_of(X_TC).fingerprint == series_of(X_TC.astype(np.float64)).fingerprint
    for wrong in (np.zeros((2, 2, 2)), np.array(["a", "b"])):
        with pytest.raises(DataError, match="shape"):
            series_of(wrong)
    with pytest.raises(DataError, match="channel names"):
        series_of(X_TC, channels=["a", "b"])
