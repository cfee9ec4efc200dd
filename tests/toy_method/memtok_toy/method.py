"""The toy's verbs. Shape suffixes: M tokens, D width."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memtok_toy import SPEC
from memtok_toy.config import Config
from memtoken_cli.data.shots import Shots
from memtoken_cli.engine.memory import Memory, Tokens
from memtoken_cli.engine.method import Answer, BankCall, Budget, GenerateOptions, Made, Run
from memtoken_cli.engine.segmenting import SegmentCall, Segmented
from memtoken_cli.io.errors import DataError
from memtoken_cli.recipe.schema import Recipe


def bag_D(text: str, config: Config) -> torch.Tensor:
    """[D] word counts, hashed, of length one."""
    out_D = torch.zeros(config.width)
    for word in (text if config.case == "keep" else text.lower()).split():
        out_D[zlib.crc32(word.encode()) % config.width] += 1
    return out_D / out_D.norm().clamp(min=1)


class Toy:
    spec = SPEC

    def compress(self, backbone: None, shots: Shots, budget: Budget, config: Config, seed: int) -> Made:
        kept = shots.items[: budget.slots_for(len(shots.items))]
        memory = Tokens(
            "prefix",
            torch.stack([bag_D(shot.input, config) for shot in kept]),
            tuple(s.output or "" for s in kept),
        )
        about = {"config": config.model_dump(), "labels": list(shots.labels) or None}
        return Made(memory, about, {"tokens": len(shots.items), "kept": len(kept), "seed": seed})

    def answer(
        self,
        backbone: None,
        memory: Memory,
        about: Mapping[str, Any],
        queries: Sequence[str],
        options: GenerateOptions,
    ) -> Iterator[Answer]:
        assert isinstance(memory, Tokens)
        config = Config(**about["config"])
        for query in queries:
            if len(query) > 200:
                raise DataError(f"a query of {len(query)} characters is longer than 200")
            near_M = memory.tokens_MD @ bag_D(query, config)
            scores = {
                label: max(
                    [float(s) for s, name in zip(near_M, memory.names, strict=True) if name == label]
                    or [-1.0]
                )
                for label in options.labels or ()
            }
            best = max(scores, key=scores.__getitem__) if scores else memory.names[int(near_M.argmax())]
            yield Answer(best, scores or None)

    def evaluate(self, recipe: Recipe, run: Run) -> dict[str, Any]:
        return {"accuracy": 1.0, "width": recipe.config.width, "seed": recipe.seed}

    def bench(self, recipes: Sequence[Recipe], run: Run) -> list[dict[str, Any]]:
        return [{"width": recipe.config.width} for recipe in recipes]

    def train(self, recipe: Recipe, run: Run) -> Path:
        run.out.mkdir(parents=True, exist_ok=True)
        path = run.out / "toy.json"
        path.write_text(json.dumps(recipe.resolved()))
        return path

    def segment(self, call: SegmentCall, keys: Config, run: Run) -> Segmented:
        end = len(Path(call.series).read_text().splitlines())
        rows = {"start": 0, "end": end, "label": call.prompts or ""}
        text = "".join(f"{','.join(map(str, values))}\n" for values in (rows, rows.values()))
        return Segmented(iter([text]), lambda: {"rows": [rows]}, skipped=int(keys.width == 13))

    def bank(self, call: BankCall, keys: Config, run: Run) -> Iterator[Mapping[str, Any]]:
        yield {"action": call.action, "arguments": list(call.arguments), "width": keys.width}
