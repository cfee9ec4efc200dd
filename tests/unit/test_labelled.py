"""Folders of labelled series: CSV in several shapes, MATLAB files, benchmark lists, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from memtoken_cli.data.labelled import bridged, pick, read_labelled
from memtoken_cli.io.errors import DataError


def test_csv_with_and_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("x,state,y\n1,7,2.5\n3,7,4\n5,-1,6\n")
    (tmp_path / "a.csv").write_text("0.5,1,3\n0.25,2,3\n")
    plain, named = read_labelled(tmp_path)
    assert (plain.name, plain.channels) == ("a", ("c0", "c1"))
    assert plain.states_T.tolist() == [3, 3]
    assert plain.values_TC.tolist() == [[0.5, 1.0], [0.25, 2.0]]
    assert (named.name, named.channels) == ("b", ("x", "y"))
    assert named.states_T.tolist() == [7, 7, -1]
    assert named.values_TC.tolist() == [[1.0, 2.5], [3.0, 4.0], [5.0, 6.0]]
    assert named.changes.tolist() == [2]
    assert named.values_TC.dtype == np.float32


def test_numbers_as_column_names_are_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0,1,state\n5,6,40.0\n")
    (series,) = read_labelled(tmp_path)
    assert series.channels == ("0", "1")
    assert series.states_T.tolist() == [40]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,state\n1,2\n1,2.5\n", "a.csv:3"),
        ("x,state\n1,2\nno,2\n", "'no' is no number in column x in {}/a.csv:3"),
        ("x,state\n1,2\n1,2,3\n", "a.csv:3"),
        ("1,\n1,\n", "a.csv:1"),
        ("", "an empty file"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError) as error:
        read_labelled(tmp_path)
    assert said.format(tmp_path) in str(error.value)


def test_a_folder_without_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no labelled series"):
        read_labelled(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_labelled(tmp_path / "nothing")


def test_matlab_files_of_subfolders(tmp_path: Path) -> None:
    folder = tmp_path / "subject7"
    folder.mkdir()
    data = np.arange(12.0).reshape(4, 3)
    savemat(folder / "data.mat", {"data": data, "labels": np.array([[1], [1], [2], [2]], np.uint8)})
    (series,) = read_labelled(tmp_path, channels="0-1")
    assert series.name == "subject7"
    assert series.channels == ("c0", "c1")
    assert series.values_TC.tolist() == data[:, :2].tolist()
    assert series.states_T.tolist() == [1, 1, 2, 2]
    savemat(folder / "data.mat", {"data": data, "labels": np.array([[1]])})
    with pytest.raises(DataError, match="unequal length"):
        read_labelled(tmp_path)


def test_benchmark_lists(tmp_path: Path) -> None:
    (tmp_path / "desc.txt").write_text("One,10,2\nAbsent,5,1\nTwo,10,1,3\n")
    (tmp_path / "properties.txt").write_text("One,true,0,4,3,3\nAbsent,true,0,1,0,1\nTwo,false,1,2,2,3,4\n")
    (tmp_path / "One.txt").write_text("1\n2\n3\n")
    (tmp_path / "Two.txt").write_text("1\n2\n3\n4\n")
    one, two = read_labelled(tmp_path)
    assert one.states_T.tolist() == [3, 3, 3]
    assert two.states_T.tolist() == [1, 1, 1, 2]  # labels 2 and 3 are one behind a cut of 1
    assert two.values_TC.shape == (4, 1)
    (tmp_path / "properties.txt").write_text("One,4\n")
    with pytest.raises(DataError, match="1 states for 2 segments of One"):
        read_labelled(tmp_path)


def test_channels_by_name_glob_position_and_range() -> None:
    names = ("acc_x", "acc_y", "gyro", "3")
    assert pick(names, "acc_*,3") == [0, 1, 3]
    assert pick(names, "1-2") == [1, 2]
    with pytest.raises(DataError, match="no channel 'mag'"):
        pick(names, "gyro,mag")


def test_gaps_are_bridged() -> None:
    x = np.array([[np.nan, np.nan], [1.0, np.nan], [np.inf, np.nan], [3.0, np.nan]])
    assert bridged(x).tolist() == [[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]


@pytest.mark.data
def test_public_folders(data_folder: Path) -> None:
    (walk,) = read_labelled(data_folder / "actrectut", channels="0-22")
    assert (walk.rows, len(walk.channels), len(walk.changes)) == (31392, 23, 42)
    assert sorted(set(walk.states_T.tolist())) == [1, 2, 3, 4, 5, 6]
    assert {series.name: series.rows for series in read_labelled(data_folder / "tssb")}["Adiac"] == 1408
