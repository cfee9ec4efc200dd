"""A long stream takes no more memory than a short one, as keeping all hidden states would."""

import os
import subprocess
import sys

import pytest

from memtoken_cli.engine import resident
from memtoken_cli.methods.rmt import speed
from memtoken_cli.recipe.schema import parse

WIDTH, SHORT, LONG = 64, 20_000, 200_000
RECIPE = f"""
method: rmt
model: {{new: llama, layers: 1, width: {WIDTH}, heads: 2, context: 300, tie: false}}
task: {{name: copy}}
rmt: {{slots: 4, segment: 250, mask: blocks}}
bench: {{repeats: 1, generate: 300}}
"""
KEEPING = """
import sys, torch
from memtoken_cli.engine import resident
from memtoken_cli.methods.rmt.run import built
from memtoken_cli.recipe.schema import parse

model = built(parse(sys.argv[1]), "cpu").backbone.model.model
ids_1S = torch.zeros(1, 250, dtype=torch.int64)
with torch.no_grad():
    model(ids_1S)
    peak, kept = resident.above(), []
    for _ in range(int(sys.argv[2]) // 250):
        kept.append(model(ids_1S).last_hidden_state)
    print(peak() / 2**20)
"""


def keeping(length: int) -> float:
    ran = subprocess.run(
        [sys.executable, "-c", KEEPING, RECIPE, str(length)], capture_output=True, text=True, check=True
    )
    return float(ran.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not os.access(resident.CLEAR, os.W_OK), reason="this system does not count peaks anew")
def test_memory_does_not_grow_with_the_text():
    recipe = parse(RECIPE)
    section = recipe.own["bench"]
    short, long = (speed.cell(recipe, n, section, "cpu")["peak_mib"] for n in (SHORT, LONG))
    grown = 4 * WIDTH * (LONG - SHORT) / 2**20  # MiB of one hidden state a token
    assert long - short < 0.1 * grown
    assert keeping(LONG) - keeping(SHORT) > 0.9 * grown
