"""`compact` beside the baselines on a recipe's data: which draws, which contestants, which model.

A new model lies in runs/compact-NAME for recipes/compact/NAME.yaml; a finished one is used as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data import icl
from ...data.course import Course
from ...data.pool import Draw, draw, read_pool
from ...data.render import Template, answer_ids
from ...data.shots import read_shots
from ...engine import models
from ...engine.backbone import CausalLM
from ...engine.compare import average, compare
from ...engine.compare_report import check_plot, plot
from ...engine.contest import entrant
from ...engine.dist import join
from ...engine.method import Compresses, Run
from ...engine.pretrain import exams, trained
from ...engine.rivals import rivals
from ...io.errors import UsageError
from ...recipe.canonical import part
from ...recipe.schema import Recipe
from ...recipe.sections import NamedModel
from .config import Config, DataConfig

RUNS = "runs"


def bench(method: Compresses, recipe: Recipe, data: DataConfig, run: Run) -> list[dict[str, Any]]:
    """Mean rows over the draws. Raises UsageError or DataError for data that cannot be compared on."""
    if data.plot:
        check_plot(data.plot)
    backbone = _backbone(recipe, run)
    config: Config = recipe.config
    text = config.template or (icl.TEMPLATE if data.stream is not None else None)
    template = Template(text) if text else Template()
    ours = entrant(method.spec.name, method, config.model_copy(update={"calibrate": "off", "template": text}))
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
    if isinstance(recipe.model, NamedModel):
        return models.load(recipe.model.name, device=run.device)
    course, folder = _course(recipe.data), run.out / RUNS / f"{recipe.method}-{Path(recipe.source).stem}"
    text = part(recipe, ("seed", "model"), ("stream", "lessons", "counts"))
    with join(run.device) as world:
        return trained(recipe.model, course, folder, text, seed=recipe.seed, run=run, world=world)


def _course(data: DataConfig) -> Course:
    if data.stream is None:
        raise UsageError(
            "a new model needs a task to learn", hint="data.stream.classes=4, or model.name=smollm2-135m"
        )
    return Course.of(data.stream, data.lessons, data.counts)


def _draws(data: DataConfig, backbone: CausalLM, template: Template, seed: int) -> Iterator[Draw]:
    if data.stream is not None:
        yield from exams(_course(data), data.draws, data.queries, seed)
        return
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
