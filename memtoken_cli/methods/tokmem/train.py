"""`memtok train`: from a recipe to a bank's artifact. How banks are made of material is `maker.py`'s.

OUT/  recipe.lock.yaml · events.jsonl · checkpoints/ · memory.safetensors
      trials/                                             where train.lr=find or tokmem.tokens=auto
"""

from __future__ import annotations

from pathlib import Path

from memtoken_cli.engine import models
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.dist import join
from memtoken_cli.engine.method import Run
from memtoken_cli.io.artifact import sha256_of
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.tokmem import adapt as adapting
from memtoken_cli.methods.tokmem import adapter
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import Config
from memtoken_cli.methods.tokmem.extras import need_peft
from memtoken_cli.methods.tokmem.maker import Maker
from memtoken_cli.methods.tokmem.material import material
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NamedModel

__all__ = ["Maker", "train"]


def train(recipe: Recipe, run: Run) -> Path:
    """Train the recipe's bank in `run.out`, or go on with it; returns the artifact (with `adapt:` the adapted
    model's folder). Raises UsageError, DataError."""
    if not isinstance(recipe.model, NamedModel):
        raise UsageError("a bank stands beside a pretrained model", hint="model: {name: smollm2-135m}")
    config: Config = recipe.config
    if config.adapt is not None:
        need_peft("adapting")
    said = recipe.resolved() | {"expect": {}}
    # what only a comparison reads changes no bank
    said["data"] = {key: value for key, value in said["data"].items() if key not in ("bench", "test")}
    if config.bank is not None:
        said["bank_sha256"] = sha256_of(config.bank)
    if config.adapter is not None:
        said["adapter_digest"] = adapter.digest(config.adapter)
    with (
        join(run.device) as world,
        run_dir(run.out, dump(said), fresh=run.fresh, world=world, warn=run.note) as rundir,
    ):
        result = rundir.artifact if config.adapt is None else rundir.path / adapting.MODEL
        if result.exists():
            run.note(f"{result}: already done")
            return result
        old = None if config.bank is None else Bank.load(config.bank)
        backbone = models.load(recipe.model.name, device=run.device, dtype=dtype_for(old))
        if config.adapter is not None:
            adapter.wear(backbone, config.adapter)
        prompts = Prompts(backbone.tokenizer)
        longest = recipe.train.longest(backbone.dims.context)
        known = () if old is None else old.names
        found = material(recipe.data, prompts, longest, recipe.seed, known=known, note=run.note)
        if config.adapt is not None:
            return adapting.adapt(backbone, config, recipe.train, found, recipe.seed, rundir, world)
        maker = Maker(backbone, config, recipe.train, recipe.seed, rundir, world, run.note)
        bank = maker.bank(found, old)
        if world.leader:
            bank.save(rundir.artifact, backbone)
        world.gather(0)
        return rundir.artifact


def dtype_for(old: Bank | None) -> str:
    """Features are collected as they were for the bank that is added to."""
    return "auto" if old is None else old.meta.dtype
