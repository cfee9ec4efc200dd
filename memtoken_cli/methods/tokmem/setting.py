"""What all contestants of one bench share: the model, the samples, the questions, the encoder, and the folder
in which their banks and sheets lie."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.encoder import Encoder
from memtoken_cli.engine.method import Run
from memtoken_cli.io import atomic
from memtoken_cli.methods.tokmem.bank import Bank, digest_of
from memtoken_cli.methods.tokmem.config import FINAL, Config, Feature, TrainConfig
from memtoken_cli.methods.tokmem.cost import Cost, metered
from memtoken_cli.methods.tokmem.curve import Point
from memtoken_cli.methods.tokmem.exam import Question, chain_questions, outputs_are_calls, questions
from memtoken_cli.methods.tokmem.exam_config import BenchSection
from memtoken_cli.methods.tokmem.maker import Maker
from memtoken_cli.methods.tokmem.material import Material, exam_chains
from memtoken_cli.methods.tokmem.pool import Pool
from memtoken_cli.methods.tokmem.replies import Examined, Memo, final_of
from memtoken_cli.methods.tokmem.rivals_icl import Library
from memtoken_cli.methods.tokmem.routers import Encodes, Labelled
from memtoken_cli.methods.tokmem.sheets import Sheet
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe

LATENCIES = 8  # questions that the time to a first token is the median of


@dataclass
class Done:
    """What a contestant hands in."""

    sheets: list[Sheet] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)


class Remembering:
    """An encoder that reads no text twice."""

    def __init__(self, encoder: Encodes) -> None:
        self.encoder = encoder
        self.known: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 [N,D]."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.encoder.encode(new), strict=True))
        return torch.stack([self.known[text] for text in texts])


@dataclass
class Setting:
    """folder: where banks, LoRA's marks and sheets are kept from one call to the next."""

    recipe: Recipe
    backbone: CausalLM
    found: Material
    folder: Path
    run: Run
    memo: Memo = field(default_factory=dict)
    pools: dict[tuple[tuple[Feature, ...], str], Pool] = field(default_factory=dict)

    @property
    def bench(self) -> BenchSection:
        section: BenchSection = self.recipe.data.bench
        return section

    @property
    def instructed(self) -> bool:
        return self.bench.prompt == "instruction+query"

    @cached_property
    def asked(self) -> list[Question]:
        """Test samples, procedure by procedure, then generated test chains where training has chains."""
        single = questions(self.found.procedures, self.bench.tests, self.instructed)
        return [*single, *chain_questions(exam_chains(self.recipe, self.found))]

    @property
    def single(self) -> list[int]:
        """Indices of questions of one procedure."""
        return [i for i, question in enumerate(self.asked) if len(question.gold) == 1]

    @cached_property
    def library(self) -> Library:
        return Library(self.found.procedures, self.found.chains, outputs_are_calls(self.asked))

    @cached_property
    def encoder(self) -> Encodes:
        """MiniLM. Raises UsageError where it cannot be had."""
        return Remembering(Encoder.load(str(self.backbone.device)))

    def labelled(self, split: str) -> Labelled:
        """Queries of the training or validation part."""
        pairs = [
            (sample.input, i)
            for i, p in enumerate(self.found.procedures)
            for sample in (p.train if split == "train" else p.val)
        ]
        return Labelled(tuple(q for q, _ in pairs), tuple(i for _, i in pairs))

    def examined(self, bank: Bank) -> Examined:
        return Examined(self.backbone, bank, self.bench.batch, self.memo)

    def train(self, config: Config) -> TrainConfig:
        """The recipe's; where nothing is generated, control rows take one step and addresses are all."""
        section: TrainConfig = self.recipe.train
        if self.bench.generate:
            return section
        return section.model_copy(update={"steps": 1, "epochs": None, "lr": 1e-3})

    def untrained(self, config: Config, found: Material, seed: int) -> Bank:
        """A bank whose control rows stay as they start: what its closed-form addresses need."""
        return self._maker(config, seed).bank(found)

    def trained(
        self, name: str, config: Config, found: Material, seed: int, old: Bank | None = None
    ) -> tuple[Bank, Cost]:
        """A bank of the material in the folder `name`, made or gone on with or found there."""
        train = self.train(config)
        said = {
            "config": config.model_dump(mode="json"),
            "train": train.model_dump(mode="json"),
            "seed": seed,
            "procedures": list(found.names),
            "old": [] if old is None else [block.id for block in old.meta.blocks],
        }
        path = self.place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            rundir = stack.enter_context(run_dir(path, dump(said), warn=self.run.note))
            told = path / "cost.json"
            if rundir.artifact.exists() and told.exists():
                return Bank.load(rundir.artifact), Cost(**json.loads(told.read_text()))
            maker = self._maker(config, seed, train)
            maker.rundir = rundir
            with metered(self.backbone.device) as cost:
                bank = maker.bank(found, old)
            bank.save(rundir.artifact, self.backbone)
            atomic.write_text(told, json.dumps(vars(cost)) + "\n")
        return bank, cost

    def place(self, name: str) -> Path:
        """The folder of a bank."""
        return (self.folder if self.bench.generate else self.folder / "routing") / name

    def place_of(self, name: str, *said: object) -> Path:
        """The file of what a contestant found out under one seed for the others, and what that depends on."""
        return self.folder / "found" / f"{name}-{digest_of(*map(str, said))[:8]}.json"

    def size(self, name: str) -> int:
        """Bytes of a bank on disk; 0 where none was kept."""
        file = self.place(name) / "memory.safetensors"
        return file.stat().st_size if file.exists() else 0

    def _maker(self, config: Config, seed: int, train: TrainConfig | None = None) -> Maker:
        maker = Maker(self.backbone, config, train or self.train(config), seed, note=self.run.note)
        # prompts are read once for all banks: the final state comes with any other
        key = (config.features, config.prompt)
        if key not in self.pools and config.features == (FINAL,):
            for (_, prompt), pool in self.pools.items():
                if prompt == config.prompt:
                    maker.pool.found = {k: final_of(prefix) for k, prefix in pool.found.items()}
        maker.pool = self.pools.setdefault(key, maker.pool)
        return maker

    def blocks(self) -> list[Material]:
        """The material in steps, each with the chains that it makes possible."""
        names, steps = list(self.found.names), []
        count, parts = len(names), min(self.bench.blocks, len(names))
        cuts = [round(b * count / parts) for b in range(parts + 1)]
        done: set[int] = set()
        for start, stop in pairwise(cuts):
            seen = set(names[:stop])
            chosen = [
                i
                for i, chain in enumerate(self.found.chains)
                if i not in done and seen >= {call.procedure for call in chain.calls}
            ]
            done |= set(chosen)
            steps.append(
                replace(
                    self.found,
                    procedures=self.found.procedures[start:stop],
                    blocks=(range(stop - start),),
                    chains=tuple(self.found.chains[i] for i in chosen),
                    negatives=self.found.negatives if start == 0 else (),
                )
            )
        return steps

    def up_to(self, steps: Sequence[Material]) -> Material:
        """Steps as one block: what a joint fit sees."""
        procedures = tuple(p for step in steps for p in step.procedures)
        chains = tuple(chain for step in steps for chain in step.chains)
        return replace(self.found, procedures=procedures, blocks=(range(len(procedures)),), chains=chains)

    def latency(self, answer: Callable[[Sequence[Question], int], object]) -> float:
        """Median seconds to the first token of a question asked alone."""
        found = []
        step = max(1, len(self.asked) // LATENCIES)
        for question in self.asked[::step][:LATENCIES]:
            start = time.perf_counter()
            answer([question], 1)
            found.append(time.perf_counter() - start)
        return median(found)


Sit = Callable[[Setting, int, frozenset[str]], Done]
"""(setting, seed, wanted rows) to what they hand in."""
