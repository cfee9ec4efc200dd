"""`memtok evaluate BANK --data DIR`: how well a bank routes and answers on the test part of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memtoken_cli.data.chains import read_chains, read_negatives
from memtoken_cli.data.procedures import Caps, Procedure, read_procedures
from memtoken_cli.engine import models
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.compare_report import check_plot
from memtoken_cli.engine.elsewhere import Elsewhere
from memtoken_cli.engine.memory import Memory, Rows
from memtoken_cli.engine.method import Run
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem.adapter import wear_as
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import EvaluateKeys
from memtoken_cli.methods.tokmem.curve import of_blocks, plot
from memtoken_cli.methods.tokmem.exam import (
    Question,
    by_procedure,
    chain_questions,
    mark_replies,
    mark_routes,
    negatives,
    questions,
)
from memtoken_cli.methods.tokmem.exam_config import BenchSection
from memtoken_cli.methods.tokmem.material import exam_chains, material
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.replies import Examined, gold
from memtoken_cli.methods.tokmem.sheets import Sheet, confusions, summary
from memtoken_cli.methods.tokmem.train import train
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NamedModel

RUNS = "runs"


def measure(
    backbone: CausalLM, memory: Memory, about: Mapping[str, Any], data: str, keys: EvaluateKeys, run: Run
) -> list[dict[str, Any]]:
    """Rows: one a procedure, chains, negatives, the curve over the bank's blocks, confusions, and last the
    total with 95 % intervals.

    Raises DataError for data that cannot be read, UsageError where the bank has none of its procedures.
    """
    if not isinstance(memory, Rows):
        raise DataError(f"a bank is a memory of the vocab port, this one is of the {memory.port} port")
    bank = Bank.of(memory, about)
    wear_as(bank.meta, backbone, keys.adapter, "the bank")
    if keys.plot:
        check_plot(keys.plot)
    tests = _tests(bank, data, keys, run)
    if bank.meta.dtype != (here := str(backbone.dtype).removeprefix("torch.")):
        run.note(f"warning: the bank was made in {bank.meta.dtype}, the model is in {here}")
    examined = Examined(backbone, bank, keys.batch)
    total, sheet = _total(examined, tests, keys)
    rows = [{"part": "procedure", **row} for row in by_procedure(sheet, tests)]
    if keys.chains:
        asked = chain_questions(read_chains(keys.chains, bank.names))
        found = _total(examined, asked, keys)[0]
        calls = [{"part": "calls", "number": n, **marks} for n, marks in found.pop("calls", {}).items()]
        rows += [{"part": "chains", **found}, *calls]
    if keys.negatives:
        strangers = Sheet("negatives")
        asked = negatives(read_negatives(keys.negatives))
        mark_routes(strangers, asked, examined.routes(asked))
        rows.append({"part": "negatives", **_plain(summary([strangers]))})
    points = of_blocks("bank", bank.rows, examined.log_probs(tests), tests)
    rows += [{"part": "curve", **point.record()} for point in points]
    if keys.plot and points:
        plot(keys.plot, points)
        run.note(f"plot: {keys.plot}")
    pairs = [{"part": "confusion", **pair} for pair in confusions(sheet.pairs)]
    return [*rows, *pairs, {"part": "total", **total}]


def of_recipe(recipe: Recipe, run: Run) -> dict[str, Any]:
    """The recipe's bank, trained where it is not yet, on the test part of the recipe's own data.

    Runs lie in runs/tokmem-NAME for recipes/tokmem/NAME.yaml. Raises UsageError, DataError.
    """
    if not isinstance(recipe.model, NamedModel):
        raise UsageError("a bank stands beside a pretrained model", hint="model: {name: smollm2-135m}")
    path = train(recipe, Elsewhere(run, run.out / RUNS / f"tokmem-{Path(recipe.source).stem}"))
    bank = Bank.load(path)
    section: BenchSection = recipe.data.bench
    backbone = models.load(recipe.model.name, device=run.device, dtype=bank.meta.dtype)
    wear_as(bank.meta, backbone, recipe.config.adapter, str(path))
    longest = recipe.train.longest(backbone.dims.context)
    found = material(recipe.data, Prompts(backbone.tokenizer), longest, recipe.seed, note=run.note)
    asked = questions(found.procedures, section.tests, section.prompt == "instruction+query")
    asked += chain_questions(exam_chains(recipe, found))
    keys = EvaluateKeys(max_new_tokens=section.max_new_tokens, batch=section.batch, generate=section.generate)
    total, sheet = _total(Examined(backbone, bank, keys.batch), asked, keys)
    rows = [{"part": "procedure", **row} for row in by_procedure(sheet, asked)]
    return total | {"path": str(path), "rows": rows}


def _tests(bank: Bank, data: str, keys: EvaluateKeys, run: Run) -> list[Question]:
    found = read_procedures(data, tasks=keys.tasks, only=bank.names, caps=Caps(test=keys.test))
    known: list[Procedure] = [p for p in found.items if p.test]
    if not known:
        raise UsageError(f"the bank has no procedure of {data}", hint="--data DIR, the folder it was made of")
    if found.others:
        run.note(f"{found.others} procedures of {data} are not in the bank: left out")
    return questions(known, keys.test, keys.prompt == "instruction+query")


def _total(examined: Examined, asked: Sequence[Question], keys: EvaluateKeys) -> tuple[dict[str, Any], Sheet]:
    """Marks over all questions; with replies, also those under the gold route and what routing costs."""
    sheet, oracle = Sheet("bank"), Sheet("oracle")
    routed = examined.routes(asked)
    mark_routes(sheet, asked, routed)
    if keys.generate:
        mark_replies(sheet, asked, examined.replies(asked, examined.own(routed), keys.max_new_tokens))
        mark_replies(oracle, asked, examined.replies(asked, gold(asked), keys.max_new_tokens))
    row = _plain(summary([sheet]))
    if examined.bank.alpha:
        row["nll_unscaled"] = _unscaled(examined, asked)
    if keys.generate:
        row["oracle_rouge_l"] = summary([oracle])["rouge_l"]
        row["routing_loss"] = row["oracle_rouge_l"] - row["rouge_l"]
    return row, sheet


def _unscaled(examined: Examined, asked: Sequence[Question]) -> float:
    """The NLL of the raw discriminant, beside which that of the scaled one shows what the scale is worth."""
    bare = Examined(examined.ready.backbone, replace(examined.bank, alpha={}), examined.batch, examined.memo)
    sheet = Sheet("unscaled")
    mark_routes(sheet, asked, bare.routes(asked))
    return float(summary([sheet])["nll"])


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing of one bank."""
    return {key: value for key, value in row.items() if key not in ("method", "seeds")}
