"""Training from a recipe, and the artifact that holds what was trained.

OUT/  recipe.lock.yaml · events.jsonl · checkpoints/ · memory.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from memtoken_cli.data.streams import PAD, Stream, stream_for
from memtoken_cli.data.task_config import CurriculumSection, TaskSection
from memtoken_cli.engine import fresh, models, seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.bytes_tokenizer import bytes_tokenizer
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.curriculum import Curriculum
from memtoken_cli.engine.dist import World, join
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.method import Run
from memtoken_cli.methods.rmt import official
from memtoken_cli.methods.rmt.config import CACHES, Config
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.learn import Learning
from memtoken_cli.methods.rmt.model_file import save
from memtoken_cli.methods.rmt.ordered import Reading, in_order
from memtoken_cli.methods.rmt.places import places_for
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.policy import Policy
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NewModel

NAME = "rmt"


@dataclass
class Bench:
    """What a recipe names: the task, the model and the policy, before any training."""

    stream: Stream
    backbone: CausalLM
    policy: Policy
    config: Config


def built(recipe: Recipe, device: str | None) -> Bench:
    """Raises UsageError, DataError where parts do not fit."""
    device = models.pick_device(device)
    config: Config = recipe.config
    task: TaskSection = recipe.own["task"]
    if isinstance(recipe.model, NewModel):
        stream = stream_for(task, config.segment, recipe.seed, None, recipe.data.path)
        in_bytes = task.name == "text" and task.words is None
        tokenizer = bytes_tokenizer(stream.vocabulary) if in_bytes else None
        backbone = fresh.new_backbone(recipe.model, stream.vocabulary, recipe.seed, "new", tokenizer)
        backbone.model.to(device)
    else:
        check_limits(recipe.model.name, config)
        backbone = models.load(recipe.model.name, device=device)
        stream = stream_for(task, config.segment, recipe.seed, backbone.tokenizer, recipe.data.path)
    if config.init is None:
        return Bench(stream, backbone, policy_for(backbone, config, recipe.seed), config)
    checkpoint = official.read(config.init)
    backbone, config = checkpoint.fitted(backbone, config)
    policy = policy_for(backbone, config, recipe.seed)
    checkpoint.put(backbone, policy)
    return Bench(stream, backbone, policy, config)


def check_limits(name: str, config: Config) -> None:
    """Raises UsageError where a segment does not fit the model `name`, before its weights are read.

    What only the loaded model, or an imported checkpoint, can say is left to the policy."""
    if config.policy in CACHES or config.init is not None:
        return
    context, windows = models.limits(name)
    if context is not None:
        places_for(config, context, windows)


def train(recipe: Recipe, run: Run) -> Path:
    """Train the recipe's policy in `run.out`, or go on with it; returns the artifact's path."""
    with join(run.device) as world:
        return _train(recipe, run, world)


def _train(recipe: Recipe, run: Run, world: World) -> Path:
    text = locked(recipe)
    with run_dir(run.out, text, fresh=run.fresh, world=world, warn=run.note) as rundir:
        if rundir.artifact.exists():
            run.note(f"{rundir.artifact}: already done")
            return rundir.artifact
        bench = built(recipe, str(world.device))
        task = learning(recipe, bench)
        said = recipe.train
        bench.backbone.model.train(bench.config.trained != "memory" and drops(bench.backbone.model))
        result = fit(
            task,
            rundir,
            seed=recipe.seed,
            save_every=said.save_every,
            log_every=said.log_every,
            micro=said.micro,
            world=world,
        )
        bench.backbone.model.eval()
        if world.leader:
            report: dict[str, Any] = {
                "steps": result.steps,
                "skipped": result.skipped,
                "size": task.curriculum.n,
                "last": dict(result.last),
            }
            made = replace(recipe, config=bench.config)
            save(rundir.artifact, bench.backbone, bench.policy, task.parameters, made, report)
        world.gather(0)
        return rundir.artifact


def locked(recipe: Recipe) -> str:
    """What the trained weights depend on; what they are tested on may change."""
    said = recipe.resolved()
    if not recipe.config.bptt.startswith("window"):
        del said[NAME]["restart"]  # nothing else reads it
    if recipe.config.init is not None:
        said[NAME]["init_sha256"] = official.digest(recipe.config.init)
    keys = ("method", "seed", "model", NAME, "task", "curriculum", "train")
    return dump({key: said[key] for key in keys} | {"data": {"path": said["data"]["path"]}})


def learning(recipe: Recipe, bench: Bench) -> Learning | Reading:
    """The task of `engine/fit.py`; the policy's scales are set on the fullest segment of some rows."""
    plan: CurriculumSection = recipe.own["curriculum"]
    loss = recipe.own["task"].name == "text"
    stages = Curriculum(plan, bench.stream.size(), unit=bench.stream.unit, loss=loss)
    rows = min(64, recipe.train.batch)
    sample = bench.stream.draw(stages.n, rows, seeds.generator(recipe.seed, "calibrate"))
    device = bench.backbone.device
    cuts = cut(sample.length_B, bench.config.segment, bench.config.align)
    fullest = int(cuts.count_NB.sum(1).argmax())
    bench.policy.calibrate(cuts.take(sample.ids_BT, fullest, PAD).to(device))
    parameters = trainable(bench.backbone, bench.policy, bench.config)
    bench.policy.training = True
    task = Learning(bench.policy, bench.stream, bench.config, recipe.train, stages, parameters, device)
    return in_order(task, recipe.seed) if task.bptt.kind == "window" else task


def drops(model: PreTrainedModel) -> bool:
    """Whether the backbone, or low-rank parts in it, have any dropout."""
    shares = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    return any([*shares, model.config.get_text_config().to_dict().get("attention_dropout", 0.0)])


def trainable(backbone: CausalLM, policy: Policy, config: Config) -> dict[str, Parameter]:
    """What `rmt.trained` lets move, by its names in the artifact. Raises UsageError without peft."""
    own = dict(policy.parameters())
    if config.trained == "memory":
        return own
    if config.trained == "lora":
        from memtoken_cli.methods.rmt.lora import injected

        return own | injected(backbone, config.rank)
    return own | {f"weights.{name}": p for name, p in backbone.model.named_parameters()}
