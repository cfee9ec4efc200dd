"""Training a compressor from a recipe, and the artifact that holds what was trained.

OUT/  recipe.lock.yaml · events.jsonl · checkpoints/ · memory.safetensors
      backbone/ · pretrain/                               where the recipe's model is new
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.dist import World, join
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.method import Run
from memtoken_cli.engine.pretrain import BACKBONE
from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header, ModelRef
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memcom.config import READING, Config, TrainConfig
from memtoken_cli.methods.memcom.learn import Compression
from memtoken_cli.methods.memcom.model import Writer, compressor
from memtoken_cli.methods.memcom.source import episodes, target, template_of, trained_by
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NewModel

NAME = "memcom"
VARIANTS: dict[str, dict[str, str]] = {
    "soft": {"layers": "last"},
    "gist": {"writer": "gist"},
    "frozen": {"weights": "frozen"},
    "lora": {"weights": "lora"},
}


def train(recipe: Recipe, run: Run) -> Path:
    """Train the recipe's compressor in `run.out`, or go on with it. Raises UsageError, DataError."""
    with join(run.device) as world:
        backbone = target(recipe, run.out, run, world)
        return train_on(backbone, recipe, run.out, run, world)


def train_on(backbone: CausalLM, recipe: Recipe, folder: Path, run: Run, world: World) -> Path:
    """`train` with the target at hand."""
    config: Config = recipe.config
    text = trained_by(recipe, ("method", "seed", "model", "data", NAME, "train"))
    with run_dir(folder, text, fresh=run.fresh, world=world, warn=run.note) as rundir:
        if rundir.artifact.exists():
            run.note(f"{rundir.artifact}: already done")
            return rundir.artifact
        writer = compressor(backbone, config, recipe.seed)
        task = Compression(backbone, writer, episodes(recipe, backbone), recipe.train)
        result = fit(
            task,
            rundir,
            seed=recipe.seed,
            save_every=recipe.train.save_every,
            log_every=recipe.train.log_every,
            world=world,
        )
        if world.leader:
            report = {"steps": result.steps, "skipped": result.skipped, "last": dict(result.last)}
            save(rundir.artifact, writer, backbone, recipe, report)
        world.gather(0)
        return rundir.artifact


def variant(recipe: Recipe, name: str) -> Recipe:
    """The recipe of another compressor: the same target, data and steps."""
    return replace(recipe, config=recipe.config.model_copy(update=VARIANTS[name]))


def save(path: Path, writer: Writer, backbone: CausalLM, recipe: Recipe, report: dict[str, Any]) -> None:
    """What training moved, and what it takes to build the rest anew."""
    train: TrainConfig = recipe.train
    moved = writer.new_parts() | (writer.copied_parts() if train.whole_steps else {})
    tensors = {name: parameter.detach().contiguous() for name, parameter in moved.items()}
    # a new model lies beside the artifact: its path must not get into the bytes
    model = ModelRef.of(backbone)
    if isinstance(recipe.model, NewModel):
        model = model.model_copy(update={"name": BACKBONE})
    about = {
        "config": recipe.config.shape,
        "template": template_of(recipe).text,
        "ratios": list(train.ratios),
        "report": report,
    }
    artifact.write(path, tensors, Header(method=NAME, kind="model", model=model, about=about))


def open_compressor(path: str | Path, backbone: CausalLM) -> tuple[Writer, dict[str, Any]]:
    """A trained compressor for its target, and the notes of its header.

    Raises UsageError where it is not one, or belongs to another model, DataError where it is damaged.
    """
    header, tensors = artifact.read(path)
    if header.method != NAME or header.kind != "model":
        raise UsageError(
            f"{path} holds a {header.kind} of {header.method}, not a trained compressor",
            hint="compressor=FILE, the path that `memtok train` printed",
        )
    if header.model is None or header.model.fingerprint != backbone.fingerprint:
        made = header.model.name if header.model else "no model"
        raise UsageError(
            f"{path} was trained for {made}, whose weights are not those of {backbone.name}",
            hint=f"--model {made}",
        )
    writer = compressor(backbone, Config(**header.about["config"]), 0)
    parts = writer.new_parts() | writer.copied_parts()
    known = tensors.keys() <= parts.keys() and writer.new_parts().keys() <= tensors.keys()
    if not known or any(parts[n].shape != x.shape for n, x in tensors.items()):
        raise DataError(f"{path}: the tensors are not those of its configuration", hint="train it again")
    with torch.no_grad():
        for name, x in tensors.items():
            parts[name].copy_(x)
            parts[name].requires_grad_(False)
    return writer, header.about


def check_reading(config: Config) -> None:
    """Raises UsageError where a compression sets what its compressor decides, or names no compressor."""
    shape = sorted(config.model_fields_set - READING)
    if config.compressor is None:
        raise UsageError(
            "memcom compresses with a trained compressor",
            hint="compressor=FILE, the path that `memtok train recipes/memcom/tiny.yaml` printed",
        )
    if shape:
        raise UsageError(
            f"{', '.join(shape)} is decided by the compressor's training",
            hint="leave it out, or train another",
        )
