"""Train the starter model of `recipes/tokmem/tiny.yaml` on the toy's operations, and write it to assets.

    python scripts/train_tokmem_starter.py [STEPS] [OUT]

About 20 minutes on one core. Same seed, same bytes on the same machine.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from memtoken_cli.data.operations import OPERATIONS, SEPARATOR, VOCABULARY, apply, draw, lesson
from memtoken_cli.engine import fresh, seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.task import At, Loss, Phase
from memtoken_cli.recipe.sections import NewModel

STEPS, BATCH, IGNORE, SEED = 4000, 64, -100, 0
OUT = Path(__file__).parents[1] / "memtoken_cli" / "assets" / "tokmem-toy"
TURNS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEMPLATE = "{{ '<s> ' }}" + TURNS + "{{ ' " + SEPARATOR + "' }}"
AT = {word: i for i, word in enumerate(VOCABULARY)}


@dataclass
class Lessons:
    """The `Task`: every parameter, cross-entropy of what is to be said and the end."""

    backbone: CausalLM
    steps: int

    def phases(self) -> Sequence[Phase]:
        named = dict(self.backbone.model.named_parameters())
        return [Phase("lessons", self.steps, 2e-3, named, self.steps // 20, "cosine", 0.01, 1.0, (0.9, 0.98))]

    def batch(self, at: At, generator: torch.Generator) -> Any:
        rng = random.Random(seeds.derive(SEED, "lessons", at.step))
        rows = []
        for _ in range(BATCH):
            given, said = lesson(rng)
            ids = [AT[w] for w in ("<s>", *given, *said, "</s>")]
            rows.append((ids, [IGNORE] * len(given) + ids[len(given) + 1 :]))
        T = max(len(ids) for ids, _ in rows)
        ids_BT, target_BT = torch.zeros(BATCH, T, dtype=torch.long), torch.full((BATCH, T), IGNORE)
        for b, (ids, target) in enumerate(rows):
            ids_BT[b, : len(ids)] = torch.tensor(ids)
            target_BT[b, : len(target)] = torch.tensor(target)
        return torch.stack([ids_BT, target_BT], 1)

    def loss(self, part: Any) -> Loss:
        ids_BT, target_BT = part[:, 0], part[:, 1]
        seen_BT = torch.ones_like(ids_BT)
        logits = self.backbone.model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False).logits
        wanted = target_BT != IGNORE
        picked, target = logits[wanted], target_BT[wanted]
        right = float((picked.argmax(-1) == target).sum())
        count = float(len(target))
        return Loss(cross_entropy(picked, target, reduction="sum"), count, {"accuracy": (right, count)})

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass


def main(steps: int = STEPS, out: Path = OUT) -> None:
    size = NewModel(new="llama", layers=4, width=128, heads=4, ffn=344, context=128)
    backbone = fresh.new_backbone(size, VOCABULARY, SEED, "tokmem-toy")
    backbone.tokenizer.chat_template = TEMPLATE
    backbone.model.generation_config.eos_token_id = AT["</s>"]
    # a new model is frozen by its adapter; `fit` thaws what a phase names
    with tempfile.TemporaryDirectory() as folder, run_dir(Path(folder) / "run", "starter: 1\n") as rundir:
        result = fit(Lessons(backbone, steps), rundir, seed=SEED, save_every=steps, log_every=100)
        print((rundir.path / "events.jsonl").read_text())
    print(result)
    backbone.model.to(torch.bfloat16)  # half the bytes; it is read as float32
    fresh.save(backbone, out)
    backbone.model.float()
    told(backbone)


@torch.no_grad()
def told(backbone: CausalLM) -> None:
    """Exact answers of each word, greedy, out of 40."""
    rng = random.Random("told")
    for word in OPERATIONS:
        right = 0
        for _ in range(40):
            x = draw(rng)
            ids = [AT[w] for w in ("<s>", *x, SEPARATOR, word)]
            wanted = [AT[w] for w in (*apply((word,), x), "</s>")]
            for target in wanted:
                logits = backbone.model(input_ids=torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] != target:
                    break
            else:
                right += 1
        print(word, right)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]) if arguments else STEPS, Path(arguments[1]) if len(arguments) > 1 else OUT)
