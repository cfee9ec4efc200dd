"""`memtok compress`: what is checked, where the artifact goes, and doing it twice. The method is the toy."""

import json
from pathlib import Path

import pytest
from cli_fixtures import Memtok

from memtoken_cli.io.artifact import read_header

pytestmark = pytest.mark.usefixtures("toy")

TOY = ("--method", "toy")
MEMORY = "prompts.memory.safetensors"


def test_prints_the_path_beside_the_shots(memtok: Memtok, tmp_path: Path, shots: Path) -> None:
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    shots.rename(folder / "a.b.jsonl")
    ran = memtok("compress", "--shots", "in/deep/a.b.jsonl", "--ratio", "4", *TOY)
    assert (ran.code, ran.text, ran.err) == (0, "in/deep/a.b.memory.safetensors\n", "")
    assert read_header(ran.text.strip()).slots == 1


def test_json_prints_the_report_instead(memtok: Memtok, shots: Path) -> None:
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", "--seed", "7", "--json", *TOY)
    report = json.loads(ran.out)
    assert report["path"] == MEMORY and report["bytes"] == Path(MEMORY).stat().st_size
    assert (report["kept"], report["seed"], report["source"]["shots"]) == (2, 7, 4)


def test_from_standard_input(memtok: Memtok, shots: Path) -> None:
    ran = memtok("compress", "-", "--slots", "1", *TOY, stdin=shots.read_bytes())
    assert (ran.code, ran.text) == (0, "memory.safetensors\n")


def test_again_is_a_no_op(memtok: Memtok, shots: Path) -> None:
    line = ("compress", "prompts.jsonl", "--ratio", "2", *TOY)
    memtok(*line)
    before = Path(MEMORY).stat()
    ran = memtok(*line)
    assert (ran.code, ran.text) == (0, f"{MEMORY}\n") and "already done" in ran.err
    assert Path(MEMORY).stat().st_ino == before.st_ino
    assert memtok(*line, "-q").err == ""
    assert json.loads(memtok(*line, "--json").out)["kept"] == 2


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--ratio", "4"], "ratio"),
        (["--ratio", "2", "--seed", "1"], "seed"),
        (["--ratio", "2", "width=3"], "config"),
    ],
)
def test_another_request_replaces_the_artifact(
    memtok: Memtok, shots: Path, changed: list[str], named: str
) -> None:
    memtok("compress", "prompts.jsonl", "--ratio", "2", *TOY)
    before = Path(MEMORY).read_bytes()
    ran = memtok("compress", "prompts.jsonl", *changed, *TOY)
    assert ran.code == 0 and f"({named})" in ran.err
    assert Path(MEMORY).read_bytes() != before


def test_changed_shots_replace_the_artifact(memtok: Memtok, shots: Path) -> None:
    memtok("compress", "prompts.jsonl", "--ratio", "2", *TOY)
    shots.write_text(shots.read_text().replace("lost", "gone"))
    assert "(shots)" in memtok("compress", "prompts.jsonl", "--ratio", "2", *TOY).err


def test_a_damaged_artifact_is_written_again(memtok: Memtok, shots: Path) -> None:
    memtok("compress", "prompts.jsonl", "--ratio", "2", *TOY)
    good = Path(MEMORY).read_bytes()
    Path(MEMORY).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", *TOY)
    assert ran.code == 0 and "damaged" in ran.err and Path(MEMORY).read_bytes() == good


def test_same_seed_same_bytes(memtok: Memtok, shots: Path) -> None:
    for name in ("a", "b"):
        memtok("compress", "prompts.jsonl", "--ratio", "2", "--out", f"{name}.safetensors", *TOY)
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_a_file_that_is_no_artifact_is_left_alone(memtok: Memtok, shots: Path) -> None:
    Path("mine.txt").write_text("precious")
    for more in ([], ["--dry-run"]):
        ran = memtok("compress", "prompts.jsonl", "--ratio", "2", "--out", "mine.txt", *more, *TOY)
        assert ran.code == 2 and "hint: --out" in ran.err
    assert Path("mine.txt").read_text() == "precious"
    assert memtok("compress", "prompts.jsonl", "--ratio", "2", "--out", "prompts.jsonl", *TOY).code == 2
    assert shots.read_text().startswith("{")


def test_an_empty_file_may_be_written_over(memtok: Memtok, shots: Path) -> None:
    Path("made-by-mktemp").touch()
    assert memtok("compress", "prompts.jsonl", "--ratio", "2", "--out", "made-by-mktemp", *TOY).code == 0
    assert read_header("made-by-mktemp").method == "toy"


def test_dry_run_writes_nothing(memtok: Memtok, shots: Path) -> None:
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", "--dry-run", *TOY)
    assert ran.code == 0 and MEMORY in ran.text and "toy" in ran.text
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", "--dry-run", "--json", *TOY)
    assert json.loads(ran.out)["labels"] == ["card", "rate"]
    assert not Path(MEMORY).exists()


def test_out_dash_is_binary_and_never_on_a_terminal(memtok: Memtok, shots: Path) -> None:
    line = ("compress", "prompts.jsonl", "--ratio", "2", "--out", "-", *TOY)
    ran = memtok(*line, tty=("stdout",))
    assert (ran.code, ran.out) == (2, b"") and "hint: --out FILE" in ran.err
    ran = memtok(*line)
    assert ran.code == 0 and read_header(ran.out).method == "toy"
    assert memtok(*line, "--json").code == 2


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["prompts.jsonl"], 2, "--ratio 4"),
        ([], 2, "no shots"),
        (["--ratio", "2"], 2, "no shots"),
        (["prompts.jsonl", "--ratio", "2", "--slots", "3"], 2, "exclude"),
        (["prompts.jsonl", "--ratio", "0.5"], 2, "from 1 up"),
        (["prompts.jsonl", "--ratio", "nan"], 2, "from 1 up"),
        (["prompts.jsonl", "--ratio", "inf"], 2, "from 1 up"),
        (["prompts.jsonl", "--ratio", "four"], 2, "ratio"),
        (["prompts.jsonl", "--slots", "0"], 2, "no memory"),
        (["prompts.jsonl", "--slots", "-3"], 2, "no memory"),
        (["prompts.jsonl", "--slots", "5"], 3, "--slots 4"),
        (["prompts.jsonl", "--ratio", "9"], 3, "keeps no token"),
        (["prompts.jsonl", "--shots", "prompts.jsonl", "--ratio", "2"], 2, "twice"),
        (["prompts.jsonl", "other.jsonl", "--ratio", "2"], 2, "twice"),
        (["missing.jsonl", "--ratio", "2"], 3, "missing.jsonl"),
        (["prompts.jsonl", "--ratio", "2", "--out", "no/dir/m"], 2, "mkdir -p no/dir"),
        (["prompts.jsonl", "--ratio", "2", "--out", "."], 2, "directory"),
        (["prompts.jsonl", "--ratio", "2", "colour=red"], 2, "colour"),
    ],
)
def test_what_is_wrong_is_said(memtok: Memtok, shots: Path, argv: list[str], code: int, said: str) -> None:
    ran = memtok("compress", *argv, *TOY)
    assert (ran.code, ran.out) == (code, b"")
    assert ran.err.startswith("error: ") and said in ran.err and "Traceback" not in ran.err


def test_an_unknown_method_names_the_nearest(memtok: Memtok, shots: Path) -> None:
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", "--method", "tooy")
    assert ran.code == 2 and "did you mean toy?" in ran.err


def test_a_bad_line_is_named(memtok: Memtok, shots: Path) -> None:
    shots.write_text(shots.read_text() + '{"input": "x"}\n')
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", *TOY)
    assert ran.code == 3 and "in prompts.jsonl:5" in ran.err.splitlines()[0]


def test_an_unknown_option_names_the_nearest(memtok: Memtok) -> None:
    ran = memtok("compress", "--shot", "x")
    assert (
        ran.code == 2 and "--shots" in ran.err and ran.err.splitlines()[1] == "hint: memtok compress --help"
    )
