"""Reading lines: numbers, encodings, strict JSON."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from memtoken_cli.io import records
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import Record, iter_jsonl, read_jsonl, read_lines


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    return path


def test_records_keep_their_line_numbers_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": [true, null]}')
    assert read_jsonl(path) == [Record(1, {"a": 1}), Record(4, {"b": [True, None]})]


def test_an_empty_file_has_no_record(tmp_path: Path) -> None:
    assert read_jsonl(write(tmp_path, b"")) == []


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    # U+2028 and \x0b end lines for str.splitlines, but not for JSON
    path = write(tmp_path, '{"a": "x\u2028y"}\n{"b": 1}\n'.encode())
    assert [r.line for r in read_jsonl(path)] == [1, 2]
    assert read_lines(path)[0] == (1, '{"a": "x\u2028y"}')


def test_records_come_before_the_rest_is_read(tmp_path: Path) -> None:
    reader = iter_jsonl(write(tmp_path, b'{"a": 1}\nnot json\n'))
    assert next(reader).value == {"a": 1}
    with pytest.raises(DataError, match="not JSON"):
        next(reader)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"a": 1}\n[]\n')))
    with pytest.raises(DataError, match=r"found a list in <stdin>:2"):
        read_jsonl("-")


@pytest.mark.parametrize("text", ['[{"input": "a"}]\n', '[\n{"input": "a"}\n]\n'])
def test_a_json_array_is_told_how_to_become_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    assert "jq -c '.[]' FILE" in str(caught.value.hint)


def test_the_place_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, b'{"a": 1}\n{"a": 1,}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_jsonl("in.jsonl")
    assert caught.value.where == "in.jsonl:2"
    assert caught.value.hint


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 100)
    with pytest.raises(DataError, match="a line is over"):
        read_jsonl(write(tmp_path, b'{"a": 1}\n' + b"x" * 200))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1, "a number"),
        (1.5, "a number"),
        ("x", "a string"),
        ([], "a list"),
    ],
)
def test_kinds_are_named_as_in_json(value: object, name: str) -> None:
    assert records.kind_of(value) == name
