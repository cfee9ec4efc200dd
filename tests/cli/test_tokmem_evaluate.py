"""`memtok evaluate` of a bank: figures a procedure, chains, negatives, confusions, the total."""

import json
from pathlib import Path

import pytest
from cli_fixtures import Memtok
from tiny import save, tiny_llama


@pytest.fixture
def trained(memtok: Memtok, tmp_path: Path) -> tuple[Path, Path]:
    """A bank of two procedures, and the folder that they came from."""
    model = save(tiny_llama(), tmp_path / "model")
    folder = tmp_path / "procedures"
    folder.mkdir()
    for name, letters in {"cats": "abc", "dogs": "xyz"}.items():
        three = [a + b + c for a in letters for b in letters for c in letters]
        lines = [
            json.dumps({"input": t, "output": name, "split": "test" if i % 3 == 0 else "train"})
            for i, t in enumerate(three)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"method: tokmem\nmodel: {{name: {model}}}\ndata: {{path: {folder}, val: 0}}\n"
        "tokmem: {prompt: query}\ntrain: {epochs: 1}\n"
    )
    ran = memtok("train", str(recipe), "--out", str(tmp_path / "run"))
    assert ran.code == 0, ran.err
    return Path(ran.text.strip()), folder


def test_a_bank_is_measured(memtok: Memtok, trained: tuple[Path, Path], tmp_path: Path) -> None:
    bank, folder = trained
    (tmp_path / "no.jsonl").write_text('{"query": "hello there"}\n')
    chain = {"query": "abc and xyz", "calls": [{"procedure": n, "output": n} for n in ("cats", "dogs")]}
    (tmp_path / "chains.jsonl").write_text(json.dumps(chain) + "\n")
    keys = ("max_new_tokens=3", "test=5", "negatives=no.jsonl", "chains=chains.jsonl")
    ran = memtok("evaluate", str(bank), "--data", str(folder), *keys, "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.text)
    rows = document["rows"]
    parts = {
        part: [r for r in rows if r["part"] == part] for part in ("procedure", "chains", "negatives", "total")
    }
    assert [r["procedure"] for r in parts["procedure"]] == ["cats", "dogs"]
    (total,) = parts["total"]
    assert total["questions"] == 10
    assert total["top1"] == sum(r["top1"] for r in parts["procedure"]) / 2 == 1.0
    assert total["top1_low"] <= total["top1"] <= total["top1_high"]
    assert {
        "nll",
        "nll_unscaled",
        "ece",
        "rouge_l",
        "em",
        "set_match",
        "oracle_rouge_l",
        "routing_loss",
    } <= total.keys()
    assert total["routing_loss"] == 0.0  # every route is right
    # without TEXT and without min_prob a closed-form address fires on anything
    assert parts["negatives"][0]["false_fire"] == 1.0
    assert parts["chains"][0]["set_match"] == 0.0  # it was trained on one call


def test_the_curve_over_the_blocks_of_a_bank(
    memtok: Memtok, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    ran = memtok("train", str(tmp_path / "small.yaml"), "data.blocks=2", "--out", "grown")
    line = ("evaluate", ran.text.strip(), "--data", str(trained[1]), "generate=false")
    ran = memtok(*line, "plot=curve.svg", "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.text)["rows"]
    curve = [row for row in rows if row["part"] == "curve"]
    assert [(row["block"], row["procedures"], row["first"]) for row in curve] == [(1, 1, 1.0), (2, 2, 1.0)]
    assert curve[-1]["seen"] == rows[-1]["top1"] and Path("curve.svg").stat().st_size
    ran = memtok(*line, "plot=curve.txt")
    assert ran.code == 2 and ran.out == b""
    bank, folder = trained
    rows = json.loads(memtok("evaluate", str(bank), "--data", str(folder), "generate=false", "--json").text)
    assert not [row for row in rows["rows"] if row["part"] == "curve"], "it was made at once"


def test_chains_of_calls_by_their_number(memtok: Memtok, tmp_path: Path) -> None:
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("play", "stop"):
        lines = [json.dumps({"input": f"{name} {i}", "output": json.dumps({"n": i})}) for i in range(9)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    said = {"query": "play 1 then stop 2", "calls": [{"procedure": "play", "output": '{"n": 1}'}] * 2}
    Path("chains.jsonl").write_text(json.dumps(said) + "\n")
    model = save(tiny_llama(), tmp_path / "model")
    Path("tools.yaml").write_text(
        f"method: tokmem\nmodel: {{name: {model}}}\n"
        f"data: {{path: {folder}, chains: 3, bench: {{chains: 3}}}}\n"
        "tokmem: {prompt: query, segment_end: eoc}\ntrain: {steps: 2}\n"
    )
    bank = memtok("train", "tools.yaml", "--out", "run").text.strip()
    ran = memtok("evaluate", bank, "--data", str(folder), "chains=chains.jsonl", "max_new_tokens=2", "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.text)["rows"]
    assert {row["number"] for row in rows if row["part"] == "calls"} == {"2", "avg"}
    ran = memtok("evaluate", "tools.yaml", "--json", "data.bench.max_new_tokens=2")
    assert ran.code == 0, ran.err
    total = json.loads(ran.text)
    assert total["calls"].keys() >= {"1", "2", "avg"}, "test chains are asked where training had some"


def test_routing_alone(memtok: Memtok, trained: tuple[Path, Path]) -> None:
    bank, folder = trained
    ran = memtok("evaluate", str(bank), "--data", str(folder), "generate=false", "--json")
    assert ran.code == 0, ran.err
    total = json.loads(ran.text)["rows"][-1]
    assert total["part"] == "total"
    assert "rouge_l" not in total


def test_bad_records_of_other_procedures_are_nobodys_business(
    memtok: Memtok, trained: tuple[Path, Path]
) -> None:
    bank, folder = trained
    line = ("evaluate", str(bank), "--data", str(folder), "generate=false")
    before = memtok(*line)
    (folder / "birds.jsonl").write_text('{"input": "a", "output": ""}\n')
    ran = memtok(*line)
    assert (ran.code, ran.text) == (0, before.text)
    assert "1 procedures of" in ran.err
    with (folder / "cats.jsonl").open("a") as file:
        file.write('{"input": "a", "output": ""}\n')
    ran = memtok(*line)
    assert ran.code == 3 and "cats.jsonl:28" in ran.err


def test_what_cannot_be_measured(memtok: Memtok, trained: tuple[Path, Path], tmp_path: Path) -> None:
    bank, folder = trained
    assert memtok("evaluate", str(bank)).code == 2
    ran = memtok("evaluate", str(bank), "--data", str(folder), "tets=3")
    assert ran.code == 2
    assert "test" in ran.err
    for key in ("data", "data.path"):
        ran = memtok("evaluate", str(bank), f"{key}={folder}")
        assert ran.code == 2 and f"--data {folder}" in ran.err
    other = tmp_path / "other"
    other.mkdir()
    lines = [json.dumps({"input": f"a{i}", "output": "b"}) for i in range(9)]
    (other / "birds.jsonl").write_text("\n".join(lines) + "\n")
    ran = memtok("evaluate", str(bank), "--data", str(other))
    assert ran.code == 2
    assert "no procedure" in ran.err
    assert memtok("evaluate", str(bank), "--data", str(tmp_path / "nowhere")).code in (2, 3)


def test_a_recipe_s_bank_is_measured_on_its_own_tests(
    memtok: Memtok, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    keys = ("data.bench.tests=3", "data.bench.max_new_tokens=2", "--json")
    ran = memtok("evaluate", str(tmp_path / "small.yaml"), *keys)
    assert ran.code == 0, ran.err
    found = json.loads(ran.text)
    assert found["top1"] == 1.0
    assert found["questions"] == 6
    assert Path(found["path"]).is_file()
