"""Law 11 for `compact`: its tiny recipe meets what it expects of a bench, or the command says so."""

import json
from pathlib import Path

import pytest
from cli_fixtures import Memtok, memtok  # noqa: F401

from memtoken_cli.recipe.schema import load

RECIPES = Path(__file__).parents[2] / "recipes" / "compact"
TINY = str(RECIPES / "tiny.yaml")
QUICK = ("model.pretrain.steps=2", "data.draws=1", "data.queries=4", "data.ratios=[2]", "--json")


@pytest.mark.slow
def test_law_11_the_tiny_recipe_beats_what_it_says_it_beats(memtok: Memtok) -> None:  # noqa: F811
    expected = load(TINY).expect
    assert {"over_fewer", "over_none"} <= expected.keys() and min(expected.values()) > 0
    ran = memtok("bench", TINY, "--json")
    assert ran.code == 0, ran.err


def test_below_its_expectation_a_bench_prints_its_rows_and_exits_with_4(memtok: Memtok) -> None:  # noqa: F811
    ran = memtok("bench", TINY, *QUICK, "expect.over_fewer=1.5")
    assert ran.code == 4 and "expect.over_fewer: 1.5, found" in ran.err
    assert [row["method"] for row in json.loads(ran.out)["rows"][:3]] == ["full", "none", "fewer"]


def test_the_new_model_is_trained_once(memtok: Memtok, tmp_path: Path) -> None:  # noqa: F811
    nothing = ("expect.over_none=-1", "expect.over_fewer=-1")
    first = memtok("bench", TINY, *QUICK, *nothing)
    weights = tmp_path / "runs" / "compact-tiny" / "backbone" / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    again = memtok("bench", TINY, *QUICK, *nothing, "data.draws=2")
    assert (first.code, again.code) == (0, 0) and weights.stat().st_mtime_ns == stamp
    assert memtok("bench", TINY, *QUICK, *nothing, "model.pretrain.lr=0.01").code == 2


def test_a_new_model_needs_a_stream(memtok: Memtok, tmp_path: Path) -> None:  # noqa: F811
    text = Path(TINY).read_text().splitlines()
    skipped = ("  stream:", "  lessons:", "    -", "  counts:")
    kept = [line for line in text if not line.startswith(skipped)]
    (tmp_path / "bad.yaml").write_text("\n".join(kept) + "\n")
    (tmp_path / "p.csv").write_text("input,output\na,b\n")
    ran = memtok("bench", "bad.yaml", "data.pool=p.csv")
    assert ran.code == 2 and "data.stream" in ran.err


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_read_without_its_model(path: Path) -> None:
    assert load(path).method == "compact"
