"""`memtok bench` and `memtok evaluate` of segmentation: folders, recipes, banks."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import Memtok

RECIPES = Path(__file__).parents[2] / "recipes" / "memprompttss"


def folder(path: Path) -> Path:
    """Two series of six segments of 200 rows whose level is their state."""
    path.mkdir()
    for seed, name in enumerate(("one_1", "one_2")):
        states_T = np.repeat([1, 2, 3, 1, 2, 3], 200)
        values_TC = np.random.default_rng(seed).normal(3.0 * states_T[:, None], 0.3, (1200, 2))
        lines = [f"{a:.4f},{b:.4f},{s}" for (a, b), s in zip(values_TC, states_T, strict=True)]
        (path / f"{name}.csv").write_text("x,y,state\n" + "\n".join(lines) + "\n")
    return path


def test_bench_of_a_folder(memtok: Memtok, tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    keys = (f"data={data}", "clicks=4", "contestants=[time,tss,ceiling]", "plot=curve.svg")
    ran = memtok("bench", str(RECIPES / "clicks.yaml"), *keys, "--json", "-q")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.text)["rows"]
    assert [row["method"] for row in rows] == ["time", "tss", "ceiling"]
    time, tss, ceiling = rows
    assert tss["auc"] <= ceiling["auc"]
    assert tss["below"] == pytest.approx(ceiling["auc"] - tss["auc"])
    assert time["over_auc"] == pytest.approx(tss["auc"] - time["auc"])
    assert len(tss["series"]) == 2
    assert len(tss["series"][0]["accuracy"]) == 4
    assert (tmp_path / "curve.svg").stat().st_size > 1000


def test_bench_holds_rows_to_what_a_recipe_expects(memtok: Memtok, tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    recipe = tmp_path / "strict.yaml"
    recipe.write_text(
        f"method: memprompttss\ndata: {{path: {data}, task: clicks, clicks: 2, contestants: [time]}}\n"
        "expect: {time.auc: 0.99}\n"
    )
    ran = memtok("bench", str(recipe), "-q")
    assert ran.code == 4
    assert "expect.time.auc: 0.99" in ran.err


def test_evaluate_prints_one_table(memtok: Memtok, tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    recipe = str(RECIPES / "clicks.yaml")
    ran = memtok("evaluate", recipe, "--data", str(data), "task=unsup", "contestants=[tss,whole]", "-q")
    assert ran.code == 0, ran.err
    lines = ran.text.splitlines()
    assert any(line.split()[:1] == ["whole"] for line in lines)
    assert not any("one_1" in line for line in lines)  # what belongs to a series is for --json
    ran = memtok("evaluate", recipe, "--data", str(data), "task=unsup", "contestants=[whole]", "-q", "--json")
    document = json.loads(ran.text)
    assert document["task"] == "unsup"
    assert [one["name"] for one in document["table"][0]["series"]] == ["one_1", "one_2"]


def test_a_banks_file_is_read_on_a_folder(memtok: Memtok, tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    series = tmp_path / "plain.csv"
    labelled = (data / "one_1.csv").read_text().splitlines()
    series.write_text("\n".join(line.rpartition(",")[0] for line in labelled) + "\n")
    prompts = "".join(json.dumps({"row": 100 + 200 * i, "label": str(i + 1)}) + "\n" for i in range(3))
    keys = ("cache=off", "--prompts", "-", "--memory", "bank.safetensors", "-q")
    ran = memtok("segment", str(series), *keys, stdin=prompts)
    assert ran.code == 0, ran.err
    ran = memtok("evaluate", "bank.safetensors", "--data", str(data), "--json", "-q")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.text)["rows"]
    assert [row["series"] for row in rows] == ["one_1", "one_1", "one_2", "one_2", "mean", "mean"]
    assert rows[2]["accuracy"] > 0.9
    ran = memtok("evaluate", "bank.safetensors", "--data", str(data), "task=clicks")
    assert ran.code == 2
    assert "task=transfer" in ran.err
    assert memtok("evaluate", "bank.safetensors").code == 2
