"""`memtok bench`: a recipe's bank beside everything it is held against, on the same samples, in one table.

A contestant's sheets lie in RUNS/tokmem-NAME/bench-DIGEST for recipes/tokmem/NAME.yaml; the same command goes
on with what is missing. Contestants are `contestants.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memtoken_cli.engine import models
from memtoken_cli.engine.compare_report import check_plot
from memtoken_cli.engine.method import Run
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.tokmem import adapter
from memtoken_cli.methods.tokmem.contestants import ENCODED, UNITS, Unit
from memtoken_cli.methods.tokmem.curve import Point, averaged, plot
from memtoken_cli.methods.tokmem.evaluate import RUNS
from memtoken_cli.methods.tokmem.exam_config import BenchSection
from memtoken_cli.methods.tokmem.material import material
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.setting import Done, Setting
from memtoken_cli.methods.tokmem.sheets import Sheet, as_json, difference, from_json, summary
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NamedModel

OURS = "tokmem-lda"
# what every sheet depends on
ALWAYS = ("tests", "chains", "wording", "prompt", "max_new_tokens", "batch", "generate")
COMPARED = ("top1", "rouge_l", "em", "tool_f1", "arg_f1")


def bench(recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
    """One row a contestant (means over seeds), then the forgetting curves' points.

    `over_*`: the paired difference of `tokmem-lda` over the row, with its 95 % interval. Raises UsageError
    for a contestant that was asked for by name and lacks its extra, DataError for bad data.
    """
    rows = []
    for recipe in recipes:
        named = {"recipe": recipe.source} if len(recipes) > 1 else {}
        rows += [row | named for row in compared(recipe, run)]
    return rows


def compared(recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    """`bench` of one recipe."""
    section: BenchSection = recipe.data.bench
    if section.plot:
        check_plot(section.plot)
    setting = opened(recipe, run)
    sheets: dict[str, list[Sheet]] = {}
    points: list[Point] = []
    skipped: dict[str, str] = {}
    for unit in UNITS:
        wanted = _wanted(unit, section)
        wanted = frozenset(name for name in wanted if not _lacks(unit, name, setting, section, skipped))
        for seed in _seeds(unit, recipe) if wanted else ():
            done = _sat(unit, setting, seed, wanted)
            points += done.points
            for sheet in done.sheets:
                sheets.setdefault(sheet.name, []).append(sheet)
            run.note(f"{', '.join(sorted(wanted))}: seed {seed} done")
    curve = averaged(_with_joint(points, sheets))
    if section.plot and curve:
        plot(section.plot, curve)
        run.note(f"plot: {section.plot}")
    order = [name for unit in UNITS for name in unit.rows]
    table = [_row(name, sheets, skipped) for name in order if name in sheets or name in skipped]
    return [*table, *(point.record() for point in curve)]


def opened(recipe: Recipe, run: Run) -> Setting:
    """The model, the samples and the folder of a bench. Raises UsageError or DataError."""
    if not isinstance(recipe.model, NamedModel):
        raise UsageError("a bank stands beside a pretrained model", hint="model: {name: smollm2-135m}")
    backbone = models.load(recipe.model.name, device=run.device)
    if recipe.config.adapter is not None:
        adapter.wear(backbone, recipe.config.adapter)
    prompts = Prompts(backbone.tokenizer)
    longest = recipe.train.longest(backbone.dims.context)
    found = material(recipe.data, prompts, longest, recipe.seed, note=run.note)
    found = replace(found, blocks=(range(len(found.procedures)),))
    said = recipe.resolved() | {"expect": {}}
    del said["data"]["bench"]
    said["samples"] = _digest(repr(found.procedures) + repr(found.chains))
    said["model"] = backbone.fingerprint
    if recipe.config.adapter is not None:
        said["adapter"] = adapter.worn(backbone)
    folder = run.out / RUNS / f"tokmem-{Path(recipe.source).stem}" / f"bench-{_digest(dump(said))[:12]}"
    return Setting(recipe, backbone, found, folder, run)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _wanted(unit: Unit, section: BenchSection) -> frozenset[str]:
    if unit.writes and not section.generate:
        return frozenset()
    rows = unit.rows if section.rows is None else [name for name in unit.rows if name in section.rows]
    if not section.generate:
        rows = [name for name in rows if name != "oracle"]
    return frozenset(rows)


def _lacks(unit: Unit, name: str, setting: Setting, section: BenchSection, skipped: dict[str, str]) -> bool:
    """Whether a row's extra is missing, which is told; asked for by name, it is an error."""
    try:
        if name in ENCODED:
            _ = setting.encoder
        unit.check(setting)
    except UsageError as error:
        if section.rows is not None:
            raise
        skipped[name] = f"{error.message}; {error.hint}" if error.hint else error.message
        return True
    return False


def _seeds(unit: Unit, recipe: Recipe) -> Iterator[int]:
    section: BenchSection = recipe.data.bench
    count = section.seeds if unit.seeded else 1
    if unit.seeded and unit.writes:
        count = section.lora_seeds or count
    yield from range(recipe.seed, recipe.seed + count)


def _sat(unit: Unit, setting: Setting, seed: int, wanted: frozenset[str]) -> Done:
    """What a unit hands in, or handed in before."""
    section = setting.bench.model_dump(mode="json")
    said = dump({key: section[key] for key in (*ALWAYS, *unit.keys)})
    name = f"{'+'.join(sorted(wanted))}-seed-{seed}-{_digest(said)[:8]}"
    path = setting.folder / "sheets" / f"{name if len(name) < 100 else _digest(name)}.json"
    if path.exists():
        value = json.loads(path.read_text())
        return Done([from_json(s) for s in value["sheets"]], [Point(**p) for p in value["points"]])
    done = unit.sit(setting, seed, wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"sheets": [as_json(s) for s in done.sheets], "points": [vars(p) for p in done.points]}
    atomic.write_text(path, json.dumps(record) + "\n")
    return done


def _with_joint(points: Sequence[Point], sheets: dict[str, list[Sheet]]) -> list[Point]:
    """Points with the joint run's accuracy at their last block, where that was trained too."""
    found = []
    for point in points:
        base = "-".join(["tokmem", *point.method.split("-")[1:2]])
        last = max(p.block for p in points if p.method == point.method)
        if point.joint is None and base in sheets and point.block == last:
            joint = summary(sheets[base]).get("top1")
            point = replace(point, joint=joint)
        found.append(point)
    return found


def _row(name: str, sheets: dict[str, list[Sheet]], skipped: dict[str, str]) -> dict[str, Any]:
    if name in skipped:
        return {"method": name, "skipped": skipped[name]}
    row = summary(sheets[name])
    for column in COMPARED if OURS in sheets and name != OURS else ():
        if (found := difference(sheets[OURS], sheets[name], column)) is not None:
            row |= {f"over_{column}": found.value, f"over_{column}_low": found.low}
            row[f"over_{column}_high"] = found.high
    return row
