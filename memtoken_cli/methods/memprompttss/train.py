"""`memtok train`: from a recipe to a trained backend's artifact, which `segment` and the exams open again.

OUT/  recipe.lock.yaml · events.jsonl · checkpoints/ · memory.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.dist import World, join
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.method import Run
from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memprompttss.config import Config
from memtoken_cli.methods.memprompttss.learn import Learning, Network, network_of
from memtoken_cli.methods.memprompttss.paper_data import Material, material
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe

NAME = "memprompttss"
LEARNT_FROM = ("path", "transfer", "channels", "levels", "group", "train", "valid", "generated", "limit")


@dataclass(frozen=True)
class Trained:
    """A backend as it was trained. channels: names; mean_C, std_C: what its input is standardised with.
    classes: the ids as written behind every class, level by level. about: the rest of the header."""

    network: Network
    config: Config
    channels: tuple[str, ...]
    mean_C: Tensor
    std_C: Tensor
    classes: tuple[tuple[tuple[int, ...], ...], ...]
    digest: str
    about: Mapping[str, Any]


def train(recipe: Recipe, run: Run) -> Path:
    """Train the recipe's backend in `run.out`, or go on with it; returns the artifact.

    Raises UsageError, DataError for folders that are no labelled series.
    """
    found = material(recipe.data, recipe.config, recipe.seed)
    with join(run.device) as world:
        return train_on(recipe, found, run.out, run, world)


def train_on(recipe: Recipe, found: Material, folder: Path, run: Run, world: World) -> Path:
    """`train` with the data at hand."""
    config: Config = recipe.config
    with run_dir(folder, locked(recipe, found), fresh=run.fresh, world=world, warn=run.note) as rundir:
        if rundir.artifact.exists():
            run.note(f"{rundir.artifact}: already done")
            return rundir.artifact
        network = network_of(config, len(found.channels), found.outputs, found.levels, recipe.seed)
        task = Learning(network.to(world.device), found, config, recipe.train, recipe.seed, world)
        result = fit(
            task,
            rundir,
            seed=recipe.seed,
            save_every=recipe.train.save_every,
            log_every=recipe.train.log_every,
            validate_every=task.epoch_steps,
            micro=recipe.train.micro,
            world=world,
        )
        if result.steps < task.phases()[0].steps:
            run.note(f"no better epoch than {task.chosen + 1} in {recipe.train.patience}: training ends")
        task.settle()
        if world.leader:
            save(rundir.artifact, task)
        world.gather(0)
        return rundir.artifact


def locked(recipe: Recipe, found: Material) -> str:
    """What the trained weights depend on; exams may change."""
    said = recipe.resolved()
    data = {key: said["data"][key] for key in LEARNT_FROM}
    kept = {key: said[key] for key in ("method", "seed", NAME, "train")}
    return dump(kept | {"data": data, "digest": found.digest})


def save(path: Path, task: Learning) -> None:
    """The chosen epoch's weights, and what it takes to use them."""
    found = task.data
    about = {
        "config": task.config.model_dump(mode="json"),
        "channels": list(found.channels),
        "mean": found.mean_C.tolist(),
        "std": found.std_C.tolist(),
        "classes": [[list(ids) for ids in level] for level in found.classes],
        "majority": majority(found),
        "data": found.digest,
        "epoch": task.chosen + 1,
        "curve": task.curve,
    }
    tensors = {name: x.detach().cpu().contiguous() for name, x in task.network.named_parameters()}
    artifact.write(path, tensors, Header(method=NAME, kind="model", port="cross", about=about))


def majority(found: Material) -> list[int]:
    """The most frequent class of the training part, level by level (the least id among equals)."""
    real_BL = found.train.real_BL()
    return [int(torch.bincount(y_BL[real_BL]).argmax()) for y_BL in found.train.y_GBL]


def open_trained(path: str | Path, device: str | None = None) -> Trained:
    """A trained backend. Raises UsageError where the file is not one, DataError where it is damaged."""
    header, tensors = artifact.read(path)
    about = header.about
    if header.method != NAME or header.kind != "model" or "classes" not in about:
        raise UsageError(
            f"{path} holds a {header.kind} of {header.method}, not a trained backend",
            hint="the path that `memtok train recipes/memprompttss/tiny.yaml` printed",
        )
    config = Config.model_validate(about["config"])
    classes = tuple(tuple(tuple(ids) for ids in level) for level in about["classes"])
    outputs = max(map(len, classes))
    network = network_of(config, len(about["channels"]), outputs, len(classes), 0)
    named = dict(network.named_parameters())
    if named.keys() != tensors.keys() or any(named[n].shape != x.shape for n, x in tensors.items()):
        raise DataError(f"{path}: the tensors are not those of its configuration", hint="train it again")
    with torch.no_grad():
        for name, x in tensors.items():
            named[name].copy_(x)
            named[name].requires_grad_(False)
    return Trained(
        network.eval().to(device or "cpu"),
        config,
        tuple(about["channels"]),
        torch.tensor(about["mean"]),
        torch.tensor(about["std"]),
        classes,
        header.digest,
        about,
    )
