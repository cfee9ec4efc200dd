"""Where results go, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memtoken_cli.io import sink as module
from memtoken_cli.io.errors import PartialFailure, UsageError
from memtoken_cli.io.sink import CLOSED_PIPE, Sink


def test_rows_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Sink() as sink:
        sink.row({"output": "é", "score": float("nan"), "list": (1, float("inf"))})
        assert capsys.readouterr().out == '{"output": "é", "score": null, "list": [1, null]}\n'
        sink.row({})
    assert capsys.readouterr().out == "{}\n"


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    with Sink(json=True) as sink:
        sink.row({"a": 1})
        sink.path("x.safetensors")
        sink.text("words")
        sink.table([["m", 2]], ["name", "n"])
        sink.document({"ratio": 4.0})
        sink.document({"out": "x.safetensors"})
        assert capsys.readouterr().out == ""
    document = json.loads(capsys.readouterr().out)
    assert document == {"ratio": 4.0, "out": "x.safetensors", "rows": [{"a": 1}, {"name": "m", "n": 2}]}


def test_without_json_the_path_is_printed_and_the_document_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with Sink() as sink:
        sink.document({"ratio": 4.0})
        sink.path("x.safetensors")
    assert capsys.readouterr().out == "x.safetensors\n"


def test_a_failed_command_prints_no_document(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError), Sink(json=True) as sink:
        sink.document({"a": 1})
        raise UsageError("bad")
    assert capsys.readouterr().out == ""


def test_rows_to_a_file_appear_at_the_end_and_its_path_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    with Sink(out=str(out)) as sink:
        sink.row({"a": 1})
        assert not out.exists()
        sink.row({"a": 2})
    assert out.read_text() == '{"a": 1}\n{"a": 2}\n'
    assert capsys.readouterr().out == f"{out}\n"


@pytest.mark.parametrize(
    ("error", "kept"), [(PartialFailure("two failed"), True), (UsageError("bad"), False)]
)
def test_a_file_is_kept_where_only_some_records_failed(tmp_path: Path, error: Exception, kept: bool) -> None:
    out = tmp_path / "rows.jsonl"
    with pytest.raises(type(error)), Sink(out=str(out)) as sink:
        sink.row({"a": 1})
        raise error
    assert [p.name for p in tmp_path.iterdir()] == (["rows.jsonl"] if kept else [])


def test_a_command_that_only_writes_artifacts_makes_no_file(tmp_path: Path) -> None:
    with Sink(out=str(tmp_path / "m.safetensors")) as sink:
        sink.note("nothing to do")
    assert list(tmp_path.iterdir()) == []


def test_a_table_keeps_its_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Sink() as sink:
        sink.table([["a", "0.10"], ["b", "010"]], ["name", "n"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "n"],
        ["------", "----"],
        ["a", "0.10"],
        ["b", "010"],
    ]


def test_notes_are_for_stderr_and_quiet_silences_them_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Sink(quiet=True) as sink:
        sink.note("by the way")
        sink.warn("careful")
    with Sink() as sink:
        sink.note("by the way")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: careful\nby the way\n"


def test_binary_goes_out_unchanged_but_not_to_a_terminal(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sink() as sink:
        sink.binary(b"\x00\r\n\xff")
        assert capfdbinary.readouterr().out == b"\x00\r\n\xff"
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        with pytest.raises(UsageError, match="terminal"):
            sink.binary(b"x")
    assert capfdbinary.readouterr().out == b""


def test_binary_goes_to_the_file_that_was_named(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    with Sink(out=str(tmp_path / "x")) as sink:
        sink.binary(b"\x00\xff")
        sink.binary(b"\n")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"\x00\xff\n"
    assert capfdbinary.readouterr().out == f"{tmp_path / 'x'}\n".encode()


def test_a_full_standard_output_is_named_and_python_ends_quietly() -> None:
    write = "try: Sink().row({'a': 1})\nexcept OSError as e: raise SystemExit(str(e))"
    code = f"from memtoken_cli.io.sink import Sink\n{write}"
    env = {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [sys.executable, "-c", code], env=env, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ran.stderr == b"[Errno 28] No space left on device: 'standard output'\n"
    assert ran.returncode == 1


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    code = "from memtoken_cli.io.sink import Sink\ns = Sink()\nwhile True: s.row({'a': 1})"
    env = {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == b'{"a": 1}\n'
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == CLOSED_PIPE
