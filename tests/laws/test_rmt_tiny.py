"""Law 11 for a recurrent memory: the tiny recipe's answers are far above those of the same training without a
memory, and of its own weights with no memory, or another row's."""

from pathlib import Path

import pytest
from tiny_bank import Run

from memtoken_cli.engine.expect import unmet
from memtoken_cli.methods.rmt import bench
from memtoken_cli.recipe.schema import load

RECIPE = Path(__file__).parents[2] / "recipes" / "rmt" / "tiny.yaml"
ABOVE = 0.4


@pytest.mark.slow
def test_11_the_tiny_recipe(tmp_path):
    recipe = load(RECIPE)
    assert recipe.expect["accuracy_over_none"] >= ABOVE
    own, none = rows = bench.bench([recipe], Run(tmp_path))
    assert (own["method"], none["method"]) == (recipe.config.policy, "none")
    assert unmet(recipe.expect, rows, "rmt") == []
    assert own["low"] >= none["high"]
    assert own["accuracy"] >= own["no_memory"] + ABOVE
    assert own["accuracy"] >= own["shuffled"] + ABOVE
