"""A ninth method is one folder and no edit elsewhere: a package with an entry point answers every command."""

import json
from pathlib import Path

import pytest
from cli_fixtures import Memtok, memtok, shots, toy  # noqa: F401

from memtoken_cli import methods

pytestmark = pytest.mark.usefixtures("toy")

RECIPE = "method: toy\nseed: 4\ntoy:\n  width: 8\n"


def compressed(memtok: Memtok, *more: str) -> str:  # noqa: F811
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", "--method", "toy", "width=32", *more)
    assert (ran.code, ran.err) == (0, "")
    return ran.text.strip()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def test_discovered_beside_the_built_in_methods() -> None:
    assert methods.discover()["toy"].line == "Bags of words, for tests."
    assert type(methods.load("toy")).__name__ == "Toy"


def test_compress_then_inspect(memtok: Memtok, shots: Path) -> None:  # noqa: F811
    assert compressed(memtok) == "prompts.memory.safetensors"
    ran = memtok("inspect", "prompts.memory.safetensors", "--json")
    header = json.loads(ran.out)
    assert (header["method"], header["slots"], header["ratio"], header["port"]) == ("toy", 2, 2.0, "prefix")
    assert header["shapes"] == {"tokens_MD": [2, 32]}
    assert header["about"]["names"] == ["card", "card"]
    assert header["about"]["request"]["config"] == {"width": 32, "case": "fold"}


def test_generate_reads_what_compress_wrote(memtok: Memtok, shots: Path) -> None:  # noqa: F811
    memory = memtok("compress", "prompts.jsonl", "--ratio", "1", "--method", "toy").text.strip()
    ran = memtok("generate", "a rate please", "--memory", memory)
    assert (ran.code, ran.text) == (0, "rate\n")


def test_artifact_through_a_pipe(memtok: Memtok, shots: Path) -> None:  # noqa: F811
    made = memtok(
        "compress", "--shots", "-", "--slots", "4", "--method", "toy", "--out", "-", stdin=shots.read_bytes()
    )
    assert made.code == 0
    ran = memtok("generate", "my lost card", "--memory", "-", stdin=made.out)
    assert (ran.code, ran.text) == (0, "card\n")


def test_segment_dispatches_to_it(memtok: Memtok, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "series.csv").write_text("t,x\n0,1\n1,2\n")
    ran = memtok("segment", "series.csv", "--method", "toy", "--json")
    assert json.loads(ran.out)["rows"] == [{"start": 0, "end": 3, "label": ""}]
    (tmp_path / "series.prompts.jsonl").write_text("{}\n")
    ran = memtok("segment", "series.csv", "--prompts", "--method", "toy")
    assert (ran.code, ran.text) == (0, "start,end,label\n0,3,series.prompts.jsonl\n")
    ran = memtok("segment", "series.csv", "--method", "toy", "width=13")
    assert ran.code == 4 and ran.text == "start,end,label\n0,3,\n" and "1 prompts were skipped" in ran.err


def test_evaluate_bench_and_train_take_its_recipe(memtok: Memtok, recipe: Path) -> None:  # noqa: F811
    ran = memtok("evaluate", "tiny.yaml", "--seed", "9", "--json")
    assert json.loads(ran.out) == {"accuracy": 1.0, "width": 8, "seed": 9}
    ran = memtok("bench", "tiny.yaml", "width=16")
    assert ran.text.split() == ["method", "width", "--------", "-------", "toy", "16"]
    ran = memtok("bench", "tiny.yaml", "--json")
    assert json.loads(ran.out) == {"rows": [{"method": "toy", "width": 8}]}
    ran = memtok("train", "tiny.yaml")
    assert (ran.code, ran.text) == (0, "runs/toy-tiny/toy.json\n")
    assert json.loads(Path("runs/toy-tiny/toy.json").read_text())["seed"] == 4


def test_evaluate_an_artifact(memtok: Memtok, shots: Path) -> None:  # noqa: F811
    memory = memtok("compress", "prompts.jsonl", "--ratio", "1", "--method", "toy").text.strip()
    Path("test.jsonl").write_text(
        '{"input": "my card", "output": "card"}\n{"input": "exchange", "output": "rate"}\n'
        '{"input": "dollars", "output": "card"}\n{"input": "lost", "output": "card"}\n'
    )
    ran = memtok("evaluate", memory, "--data", "test.jsonl", "--json")
    report = json.loads(ran.out)
    [row] = report["rows"]
    assert (row["accuracy"], row["queries"], report["ratio"], report["method"]) == (0.75, 4, 1.0, "toy")
    assert row["low"] < 0.75 < row["high"]
    assert memtok("evaluate", memory, "path=test.jsonl", "queries=2", "-q").text.split()[-1] == "2"
    assert memtok("evaluate", memory, "--data", "test.jsonl", "shots=prompts.jsonl").code == 0
    ran = memtok("evaluate", memory, "--data", "test.jsonl", "shots=test.jsonl")
    assert ran.code == 3 and "not what" in ran.err
    table = memtok("evaluate", memory, "--data", "test.jsonl").text
    assert "accuracy" in table and "0.75" in table


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"input": "a"}', "test.jsonl:1"),
        ('{"input": "a", "output": "none"}', "test.jsonl:1"),
        ("", "no queries"),
    ],
)
def test_evaluate_names_a_bad_record(memtok: Memtok, shots: Path, record: str, said: str) -> None:  # noqa: F811
    memory = compressed(memtok)
    Path("test.jsonl").write_text(record + "\n")
    ran = memtok("evaluate", memory, "--data", "test.jsonl")
    assert ran.code == 3 and said in ran.err
    assert memtok("evaluate", memory).code == 2


def test_bank_dispatches_by_the_artifact(memtok: Memtok, shots: Path) -> None:  # noqa: F811
    ran = memtok("bank", "remove", compressed(memtok), "card", "width=3", "--in-place")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == {"action": "remove", "arguments": ["card"], "width": 3}


def test_its_keys_are_checked_like_any_other(memtok: Memtok, shots: Path) -> None:  # noqa: F811
    ran = memtok("compress", "prompts.jsonl", "--ratio", "2", "--method", "toy", "widht=3", "case=kep")
    assert ran.code == 2 and "widht" in ran.err and "width" in ran.err and "did you mean keep?" in ran.err
    assert not Path("prompts.memory.safetensors").exists()
