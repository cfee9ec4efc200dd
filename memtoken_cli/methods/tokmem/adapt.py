"""Adaptation (TokMem algorithm 1): LoRA and temporary rows on other procedures; the rows are thrown away, the
LoRA is merged, and what is left is a model folder that banks are then made for.

OUT/  recipe.lock.yaml · events.jsonl · checkpoints/ · adapter/ (the LoRA by itself) · model/

Whole sequences with gradients: the prompts' keys change with every step. Needs the extra `peft`.

Shape suffixes: B rows, T tokens, M targets, P procedures, k control tokens, E model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from memtoken_cli.engine import fresh, seeds, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.checkpoint import RunDir
from memtoken_cli.engine.dist import World
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.task import At, Loss, Phase
from memtoken_cli.io import atomic
from memtoken_cli.methods.tokmem import initial
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import AdaptSection, Config, TrainConfig
from memtoken_cli.methods.tokmem.examples import IGNORE, QUERY, Example, layout
from memtoken_cli.methods.tokmem.loss import Table, positions_loss
from memtoken_cli.methods.tokmem.material import Material
from memtoken_cli.methods.tokmem.meta import Meta
from memtoken_cli.methods.tokmem.plan import plan
from memtoken_cli.methods.tokmem.prompt import Prompts

MODEL, ADAPTER = "model", "adapter"
TARGETS = ("q_proj", "v_proj")


@dataclass
class Adapting:
    """The `Task`: LoRA parameters, and rows that are offset_PkE * faster + start_PkE.

    Adam moves every parameter by about the learning rate, so a factor in front of the rows is a rate of their
    own.
    """

    backbone: CausalLM
    lora: Mapping[str, Parameter]
    start_PkE: Tensor
    offset_PkE: Parameter
    faster: float
    examples: list[Example]
    config: Config
    train: TrainConfig
    seed: int

    def phases(self) -> Sequence[Phase]:
        said = self.config.adapt
        assert said is not None, "the caller adapts because the section says so"
        each = -(-len(self.examples) // self.train.batch)
        steps = self.train.steps or each * (self.train.epochs or 1)
        named = {**self.lora, "rows": self.offset_PkE}
        warmup = round(self.train.warmup * steps)
        # no clip: the rows' gradients are so many times larger
        return [
            Phase(
                "adapt",
                steps,
                said.lr,
                named,
                warmup,
                self.train.decay,
                0.0,
                None,
                self.train.betas,
                self.train.decay_to,
            )
        ]

    def batch(self, at: At, generator: torch.Generator) -> Any:
        count, size = len(self.examples), self.train.batch
        epoch, place = divmod(at.index, -(-count // size))
        order = torch.randperm(count, generator=seeds.generator(self.seed, "order", "adapt", epoch))
        return [self.examples[i] for i in order[place * size : (place + 1) * size].tolist()]

    def loss(self, part: Sequence[Example]) -> Loss:
        backbone, k = self.backbone, self.start_PkE.shape[1]
        rows_PkE = self.start_PkE + self.faster * self.offset_PkE
        table_RE = torch.cat([rows_PkE.new_zeros(1, rows_PkE.shape[2]), rows_PkE.flatten(0, 1)])
        end = Prompts(backbone.tokenizer).end
        ids, targets = [], []
        for example in part:
            laid = layout(example.segments, backbone.dims.vocab, k, end, "none", "all")
            prompt = example.prompts[QUERY].ids
            ids.append([*prompt, *laid.ids])
            targets.append([IGNORE] * (len(prompt) - 1) + [laid.first, *laid.targets])
        T = max(len(row) for row in ids)
        # padded behind what is real: causality hides it
        ids_BT = torch.tensor([row + [0] * (T - len(row)) for row in ids], device=backbone.device)
        target_BT = torch.tensor([row + [IGNORE] * (T - len(row)) for row in targets], device=backbone.device)
        x_BTE = vocab.embed(backbone, ids_BT, table_RE).to(backbone.dtype)
        backbone.model.train()  # dropout on the adapter
        try:
            h_BTE = backbone.model.get_decoder()(inputs_embeds=x_BTE, use_cache=False).last_hidden_state
        finally:
            backbone.model.eval()
        wanted_BT = target_BT != IGNORE
        table = Table(table_RE, rows_PkE[:, 0], False, False, self.config.route_weight)
        return positions_loss(backbone, table, h_BTE[wanted_BT], target_BT[wanted_BT])

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass


def adapt(
    backbone: CausalLM,
    config: Config,
    train: TrainConfig,
    found: Material,
    seed: int,
    rundir: RunDir,
    world: World,
) -> Path:
    """Adapt the backbone on the material, and write the merged model; returns its folder.

    Raises DataError for bad samples.
    """
    from peft import LoraConfig, get_peft_model

    said: AdaptSection = config.adapt or AdaptSection()
    tokens = config.tokens if isinstance(config.tokens, int) else 1
    prompts = Prompts(backbone.tokenizer)
    laid = plan(found, None, config, prompts, train.longest(backbone.dims.context))
    examples = [example for part in laid.parts for example in part.learned]
    bare = Bank.empty(Meta(tokens=tokens), backbone.dims.width)
    start = initial.control_rows(backbone, found.procedures, tokens, config.init, seed, bare)
    vocab.head(backbone)  # checked before the model is changed
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(seed, "lora"))
        asked = LoraConfig(
            r=said.rank, lora_alpha=said.alpha, lora_dropout=said.dropout, target_modules=list(TARGETS)
        )
        wrapped = get_peft_model(backbone.model, asked)
    lora = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    offset = Parameter(torch.zeros_like(start).to(backbone.device))
    rate = train.lr if isinstance(train.lr, float) else 5e-3
    task = Adapting(
        backbone, lora, start.to(backbone.device), offset, rate / said.lr, examples, config, train, seed
    )
    fit(task, rundir, seed=seed, save_every=train.save_every, log_every=train.log_every, world=world)
    if world.leader:
        with atomic.directory(rundir.path / ADAPTER) as folder:
            wrapped.save_pretrained(folder)
    merged = CausalLM(wrapped.merge_and_unload(), backbone.tokenizer, backbone.name)
    if world.leader:
        fresh.save(merged, rundir.path / MODEL)
    world.gather(0)
    return rundir.path / MODEL
