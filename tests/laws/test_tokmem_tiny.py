"""Law 11 for a bank: the tiny recipe routes and answers far above no memory; a second block changes nothing
of the first one's answers."""

from pathlib import Path

import pytest
from tiny_bank import Run

from memtoken_cli.data import operations
from memtoken_cli.engine import models
from memtoken_cli.methods.tokmem import train as training
from memtoken_cli.methods.tokmem.api import TokMem
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.keys import Options
from memtoken_cli.recipe.schema import load

RECIPE = Path(__file__).parents[2] / "recipes" / "tokmem" / "tiny.yaml"
ROUTED, RIGHT, ABOVE = 0.95, 0.80, 0.60


@pytest.mark.slow
def test_11_the_tiny_bank(tmp_path):
    recipe = load(RECIPE)
    bank = Bank.load(training.train(recipe, Run(tmp_path)))
    backbone = models.load("tokmem-toy", "cpu")
    said = recipe.data
    procedures = operations.toy(said.toy.procedures, said.toy.samples, said.val, said.test, recipe.seed)
    asked = [(p.name, sample) for p in procedures for sample in p.test]
    queries = [sample.input for _, sample in asked]

    def answers(bank: Bank, of: list[str]) -> list[tuple[str, str | None]]:
        options = [
            Options(procedures=one if one in ("auto", "none") else (one,), max_new_tokens=16) for one in of
        ]
        found = TokMem(backbone, bank).results(queries[: len(of)], options)
        return [(r.text.strip(), r.routes[0].procedure if r.routes else None) for r in found]

    def right(found: list[tuple[str, str | None]]) -> float:
        return sum(text == s.output for (text, _), (_, s) in zip(found, asked, strict=True)) / len(asked)

    routed = answers(bank, ["auto"] * len(asked))
    assert (
        sum(name == gold for (_, name), (gold, _) in zip(routed, asked, strict=True)) / len(asked) >= ROUTED
    )
    bare = right(answers(bank, ["none"] * len(asked)))
    assert right(routed) >= max(RIGHT, bare + ABOVE)
    first = bank.select(bank.names[:4])
    forced = [name for name, _ in asked if name in first.names]
    assert answers(first, forced) == answers(bank, forced)
