"""Makes banks of material: read the prompts, learn the rows, collect the statistics, join block after block.

Shape suffixes: P procedures, k control tokens, E model width, D feature width, Q projected width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from memtoken_cli.data.procedures import Procedure
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.checkpoint import RunDir
from memtoken_cli.engine.dist import World
from memtoken_cli.engine.fit import fit
from memtoken_cli.io.artifact import ModelRef
from memtoken_cli.methods.tokmem import initial, trials
from memtoken_cli.methods.tokmem.adapter import NOTE as ADAPTER
from memtoken_cli.methods.tokmem.adapter import worn
from memtoken_cli.methods.tokmem.bank import Bank, digest_of
from memtoken_cli.methods.tokmem.collect import boundary_site, first_site, kept_of, map_of, prompt_kinds
from memtoken_cli.methods.tokmem.config import Config, TrainConfig
from memtoken_cli.methods.tokmem.examples import Example
from memtoken_cli.methods.tokmem.features import Frozen
from memtoken_cli.methods.tokmem.learn import Block, Learning
from memtoken_cli.methods.tokmem.material import Material
from memtoken_cli.methods.tokmem.meta import Block as Entry
from memtoken_cli.methods.tokmem.meta import Meta, Row
from memtoken_cli.methods.tokmem.plan import Part, Plan, check, plan
from memtoken_cli.methods.tokmem.pool import Pool
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.replay import Replay
from memtoken_cli.methods.tokmem.statistics import Kind, Statistics, merged

FROM_CHAINS = 4  # procedures that an answer may use where there are chains

Note = Callable[[str], None]


class Maker:
    """Makes banks on one backbone. Without a run directory nothing is trained: rows stay as they start."""

    def __init__(
        self,
        backbone: CausalLM,
        config: Config,
        train: TrainConfig,
        seed: int = 0,
        rundir: RunDir | None = None,
        world: World | None = None,
        note: Note = lambda text: None,
    ) -> None:
        self.backbone, self.config, self.train, self.seed = backbone, config, train, seed
        self.rundir, self.world, self.note = rundir, world or World(), note
        self.prompts = Prompts(backbone.tokenizer)
        self.pool = Pool(Frozen(backbone, config.features, train.cache_gib), config)

    def bank(self, found: Material, old: Bank | None = None) -> Bank:
        """The bank of the material; joined behind `old` where there is one, which is not changed.

        Raises UsageError, DataError for material or a configuration that the old bank does not allow.
        """
        check(found, old, self.config, self.backbone)
        longest = self.train.longest(self.backbone.dims.context)
        laid = plan(found, old, self.config, self.prompts, longest)
        for part in laid.parts:
            self.pool.read([*part.learned, *part.val, *part.told])
        rates, counts = trials.candidates(self.config, self.train, old.meta.tokens if old else None)
        rate, tokens = trials.choose(
            lambda rate, tokens: self._task(laid.first, old, tokens, rate),
            rates,
            counts,
            self.rundir,
            self._entry(laid.parts[0]),
            self.world,
            self.note,
        )
        task = self._task(laid, old, tokens, rate)
        if self.rundir is not None and task.phases():
            every = {"save_every": self.train.save_every, "log_every": self.train.log_every}
            fit(task, self.rundir, seed=self.seed, **every, world=self.world)
        meta = self._meta(tokens, laid)
        bank = (
            old if old is not None else Bank.empty(meta, self.backbone.dims.width, ModelRef.of(self.backbone))
        )
        project_DQ = map_of(self.config.lda, self.backbone.dims.width, self.seed)
        if old is not None and len(old):
            project_DQ = old.project_DQ
        blocks = [self._block(laid, task, b, meta, project_DQ) for b in range(len(laid.parts))]
        return bank.merge(blocks, "update" if self.config.on_clash == "update" else "error")

    def _task(self, laid: Plan, old: Bank | None, tokens: int, rate: float) -> Learning:
        device = self.backbone.device
        start = old if old is not None else Bank.empty(self._meta(tokens, laid), self.backbone.dims.width)
        statistics = [start.sites["first"]] if "first" in start.sites else []
        blocks = []
        for part in laid.parts:
            control_PkE = Parameter(self._control(part, start, tokens).to(device))
            address_PE = None
            if self.config.address == "decoupled":
                address_PE = Parameter(self._address(part.procedures, start).to(device))
            replay = self._replay(part, laid, statistics)
            examples = self._examples(part)
            blocks.append(Block(part.rows, control_PkE, examples, part.val, address_PE, replay))
        eoc_1E: Tensor | None = None
        if start.eoc_E is not None:
            eoc_1E = start.eoc_E[None].to(device)
        elif self.config.segment_end == "eoc":
            eoc_1E = Parameter(initial.eoc_row(self.backbone, self.seed).to(device))
        next_PE = None
        if isinstance(eoc_1E, Parameter) and self.config.by_states and laid.chained:
            next_PE = Parameter(self._address(laid.parts[0].procedures, start).to(device))
        return Learning(
            self.backbone,
            self.pool,
            self.config,
            self.train,
            blocks,
            start.control_PkE.to(device),
            eoc_1E,
            self.prompts.end,
            self.seed,
            rate,
            None if start.address_PE is None else start.address_PE.to(device),
            next_PE,
        )

    def _examples(self, part: Part) -> list[Example]:
        """What rows learn from: a part of a query is answered as a query for one is, so that these are
        enough."""
        one = [example for example in part.learned if len(example.segments) == 1]
        return one if one and self.config.by_parts else part.learned

    def _control(self, part: Part, start: Bank, tokens: int) -> Tensor:
        """The rows of a block as they start; what is updated goes on from where it is."""
        config, seed = self.config, self.seed
        rows_PkE = initial.control_rows(
            self.backbone, part.procedures, tokens, config.init, seed, start, part.rows[0]
        )
        for i, p in enumerate(part.procedures):
            if p.described and config.init == "mean":
                rows_PkE[i] = initial.control_rows(self.backbone, [p], tokens, "text", seed, start)[0]
            if p.name in start.names:
                rows_PkE[i] = start.control_PkE[start.index(p.name)]
        return rows_PkE

    def _address(self, procedures: Sequence[Procedure], start: Bank) -> Tensor:
        rows_PE = initial.address_rows(self.backbone, [p.name for p in procedures], self.seed)
        for i, p in enumerate(procedures):
            if start.address_PE is not None and p.name in start.names:
                rows_PE[i] = start.address_PE[start.index(p.name)]
        return rows_PE

    def _replay(self, part: Part, laid: Plan, statistics: list[Statistics]) -> Replay | None:
        """The procedures before a block, whose own statistics are then put with the others."""
        if self.config.replay == "none" or self.config.address == "lda":
            return None
        mine = set(part.own.values())
        others = {name: row for name, row in laid.rows.items() if name not in mine}
        found = None
        if statistics:
            found = Replay(merged(statistics), 0, self.config.lda.shrinkage, others)
        if part.learned:
            statistics.append(first_site(self.pool, part.learned, part.own))
        return found

    @torch.no_grad()
    def _block(self, laid: Plan, task: Learning, b: int, meta: Meta, project_DQ: Tensor | None) -> Bank:
        """The rows and statistics of one block, as a bank of its own."""
        part, block = laid.parts[b], task.blocks[b]
        negatives = []
        if b == 0 and laid.negatives:
            negatives = self.pool.frozen.read([self.prompts.render(q) for q in laid.negatives])
        seen = [*part.learned, *part.told]
        sites: dict[Kind, Statistics]
        if self.config.address == "lda":
            sites = prompt_kinds(self.pool, seen, part.own, negatives, project_DQ)
        else:  # trained addresses learn chains and singles as one
            sites = {"first": first_site(self.pool, seen, part.own, project_DQ)}
        if laid.chained and self.config.by_states and part.learned:
            sites["boundary"] = boundary_site(task, b, part.learned, part.own, project_DQ)
        trained = self.rundir is not None and bool(part.learned)
        scores = task.examine(part.val, b) if trained else {}
        entry = self._entry(part)
        rows = tuple(
            Row(
                p.name,
                p.description,
                digest_of(p.instruction) if p.instruction else "",
                len(p.train),
                entry,
                p.described,
                round(scores[row][1] / scores[row][2], 6) if row in scores else None,
            )
            for row, p in zip(part.rows, part.procedures, strict=True)
        )
        samples = sum(len(p.train) for p in part.procedures)
        notes: dict[str, Any] = {"lr": task.lr, "steps": task.steps(block) if trained else 0}
        if self.config.adapter is not None:
            notes[ADAPTER] = self.config.adapter
        address_PE = None if block.address_PE is None else block.address_PE.detach().cpu().clone()
        return Bank(
            rows,
            block.control_PkE.detach().cpu().clone(),
            replace(meta, blocks=(Entry(entry, len(rows), samples),), notes=notes),
            ModelRef.of(self.backbone),
            address_PE,
            None if address_PE is None else torch.zeros(len(address_PE)),
            None if task.eoc_1E is None else task.eoc_1E.detach().cpu()[0].clone(),
            sites,
            project_DQ=project_DQ,
        )

    def _entry(self, part: Part) -> str:
        """The block's id: of its samples and of how it was made."""
        config = self.config.model_dump(exclude={"bank", "on_clash", "adapter"})
        texts = [str((config, self.train.model_dump(exclude={"cache_gib"}), self.seed))]
        texts.append(worn(self.backbone) or "")
        texts += [str((p.name, p.description, p.instruction)) for p in part.procedures]
        texts += [str((e.key, dict(e.prompts), e.segments)) for e in part.learned]
        return digest_of(*texts)

    def _meta(self, tokens: int, laid: Plan) -> Meta:
        config = self.config
        return Meta(
            address=config.address,
            tokens=tokens,
            features=config.features,
            segment_end=config.segment_end,
            max_procedures=config.max_procedures or (FROM_CHAINS if laid.chained else 1),
            prompt=self.prompts.digest,
            dtype=str(self.backbone.dtype).removeprefix("torch."),
            adapter=worn(self.backbone),
            softmax=config.route_softmax,
            shrinkage=config.lda.shrinkage,
            keep_val=kept_of(config.lda),
            keep_features=config.lda.keep_features,
            scatter=config.lda.scatter,
            following=config.lda.following,
        )
