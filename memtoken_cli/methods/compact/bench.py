"""`compact` beside the baselines on a recipe's data: which draws, which contestants, which model."""

from collections.abc import Iterator
from typing import Any

from ...data.pool import Draw, draw, read_pool
from ...data.render import Template, answer_ids
from ...data.shots import read_shots
from ...engine import models
from ...engine.backbone import CausalLM
from ...engine.compare import average, compare
from ...engine.compare_report import check_plot, plot
from ...engine.contest import entrant
from ...engine.method import Compresses, Run
from ...engine.rivals import rivals
from ...recipe.schema import Recipe
from ...recipe.sections import NamedModel
from .config import Config, DataConfig


def bench(method: Compresses, recipe: Recipe, data: DataConfig, run: Run) -> list[dict[str, Any]]:
    """Mean rows over the draws. Raises UsageError or DataError for data that cannot be compared on."""
    if data.plot:
        check_plot(data.plot)
    backbone = _backbone(recipe, run)
    config: Config = recipe.config
    template = Template(config.template) if config.template else Template()
    ours = entrant(method.spec.name, method, config.model_copy(update={"calibrate": "off"}))
    done = list(
        compare(
            backbone,
            _draws(data, backbone, template, recipe.seed),
            template,
            [*rivals(data.rivals), ours],
            data.ratios,
            instruction=config.instruction,
            scoring=data.labels,
            calibrated=data.calibrate,
            batch_tokens=data.batch_tokens,
        )
    )
    rows = average(done)
    if data.plot:
        plot(data.plot, rows)
        run.note(f"plot: {data.plot}")
    return [row.record() for row in rows]


def _backbone(recipe: Recipe, run: Run) -> CausalLM:
    assert isinstance(recipe.model, NamedModel)
    return models.load(recipe.model.name, device=run.device)


def _draws(data: DataConfig, backbone: CausalLM, template: Template, seed: int) -> Iterator[Draw]:
    test = read_pool(data.path) if data.path else None
    if data.pool is None:
        yield Draw(read_shots(data.shots or ""), tuple((test or [])[: data.queries]), seed)
        return
    pool = read_pool(data.pool)
    first = (
        None if data.labels == "whole" else lambda label: answer_ids(template, backbone.tokenizer, label)[0]
    )
    for number in range(data.draws):
        yield draw(
            pool,
            classes=data.classes,
            per_class=data.per_class,
            queries=data.queries,
            seed=seed + number,
            test=test,
            distinct=first,
        )
